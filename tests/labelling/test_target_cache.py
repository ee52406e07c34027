"""Teacher vectors on disk: read back as they were written, whole or not at all, and refused where they do not fit."""

# Shape legend: N rows of a shard, D size of the teacher's vectors.

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jasper_ray.config import ConfigError
from jasper_ray.encoders import HashEncoder
from jasper_ray.labelling.target_cache import TargetCache

IDS = ["0a" * 8, "1b" * 8, "2c" * 8]
SHARD = "f" * 64
VECTORS_ND = HashEncoder(24).encode(["a wing", "a card", ""])


@pytest.fixture
def cache(tmp_path: Path) -> TargetCache:
    return TargetCache(tmp_path / "targets" / "hash-0123456789ab")


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_vectors_come_back_in_half_precision(cache: TargetCache, dtype: type[np.floating]) -> None:
    assert not cache.holds(SHARD)
    cache.write(SHARD, IDS, VECTORS_ND.astype(dtype))
    assert cache.holds(SHARD)
    found_ND = cache.read(SHARD, IDS)
    assert found_ND.dtype == np.float16
    np.testing.assert_array_equal(found_ND, VECTORS_ND.astype(np.float16))


def test_a_file_is_readable_parquet_of_two_columns(cache: TargetCache) -> None:
    cache.write(SHARD, IDS, VECTORS_ND)
    table = pq.read_table(cache.folder / f"{SHARD}.parquet")
    assert table.schema.names == ["id", "vector"]
    assert table.schema.field("vector").type == pa.list_(pa.float16(), 24)


def test_writing_again_replaces(cache: TargetCache) -> None:
    cache.write(SHARD, IDS, VECTORS_ND)
    cache.write(SHARD, IDS, -VECTORS_ND)
    np.testing.assert_array_equal(cache.read(SHARD, IDS), -VECTORS_ND.astype(np.float16))


def test_half_a_file_never_has_a_shards_name(cache: TargetCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(table: pa.Table, path: Path, **_: object) -> None:
        path.write_bytes(b"half a file")
        assert path.parent == cache.folder  # the same file system, so that renaming is one step
        assert not cache.holds(SHARD)
        raise OSError("no space left on device")

    monkeypatch.setattr("jasper_ray.labelling.target_cache.pq.write_table", fails)
    with pytest.raises(OSError, match="no space left"):
        cache.write(SHARD, IDS, VECTORS_ND)
    assert not cache.holds(SHARD)
    assert list(cache.folder.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"not a parquet file at all"])
def test_a_damaged_file_is_named(cache: TargetCache, damage: bytes) -> None:
    cache.write(SHARD, IDS, VECTORS_ND)
    cache.file(SHARD).write_bytes(damage)
    for look in (lambda: cache.read(SHARD, IDS), lambda: cache.size(SHARD)):
        with pytest.raises(ConfigError, match=rf"{SHARD}\.parquet' cannot be read \(.*\); delete that file") as caught:
            look()
        assert "\n" not in str(caught.value)


def test_a_file_cut_short_is_named(cache: TargetCache) -> None:
    cache.write(SHARD, IDS, VECTORS_ND)
    whole = cache.file(SHARD).read_bytes()
    cache.file(SHARD).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="cannot be read"):
        cache.read(SHARD, IDS)


def test_a_file_of_other_columns_is_named(cache: TargetCache) -> None:
    cache.folder.mkdir(parents=True)
    pq.write_table(pa.table({"text": ["a"]}), cache.file(SHARD))
    with pytest.raises(ConfigError, match="has the columns text, expected id and vector; delete that file"):
        cache.read(SHARD, IDS)


@pytest.mark.parametrize("ids", [IDS[:2], [*IDS[:2], "3d" * 8], IDS[::-1], []])
def test_vectors_of_other_texts_are_refused(cache: TargetCache, ids: list[str]) -> None:
    cache.write(SHARD, IDS, VECTORS_ND)
    with pytest.raises(ConfigError, match="belong to other texts; delete that file"):
        cache.read(SHARD, ids)


def test_some_shards_may_be_kept_apart(tmp_path: Path) -> None:
    other = "e" * 64
    cache = TargetCache(tmp_path / "targets", {SHARD: tmp_path / "heldout"})
    assert cache.held() == set()
    for shard in (SHARD, other):
        cache.write(shard, IDS, VECTORS_ND)
    assert cache.held() == {SHARD, other}
    assert cache.size(SHARD) == 24
    assert TargetCache(tmp_path / "targets").held() == {other}
    assert TargetCache(tmp_path / "heldout").held() == {SHARD}
    assert TargetCache(tmp_path / "heldout", {SHARD: tmp_path / "targets"}).held() == set()  # not in its place
