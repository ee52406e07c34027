"""Image–caption pairs prepared by Ray Data on this machine, a tenth of them damaged, from every format."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pair_files import FilePair, write_folder, write_parquet, write_tar
from picture_files import bomb, digits, palette_with_alpha, photo, written
from ray.data import DataContext

from jasper_ray.config import ConfigError
from jasper_ray.corpus.images import IMAGES
from jasper_ray.corpus.prepare import prepare
from jasper_ray.corpus.settings import Images
from jasper_ray.corpus.sharding import drop_duplicates
from jasper_ray.corpus.shards import PairManifest, load_manifest, read_shard
from jasper_ray.images import decode
from jasper_ray.sources.hashing import image_id, is_held_out, pair_id, sort_key

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]


def odd(index: int) -> list[FilePair]:
    """Six kinds of odd images, two of which are usable; every index gives other ones."""
    image = photo(100 + index, 80)
    return [
        (written(image, "JPEG")[: 1500 + index], f"a cut photo, {index}"),
        (f"<html>{index}</html>".encode(), f"a page, {index}"),
        (bomb(), f"a bomb, {index}"),
        (b"", f"nothing, {index}"),
        (written(image.convert("CMYK"), "JPEG"), f"a printed flower, {index}"),
        (palette_with_alpha(image), f"a clear flower, {index}"),
    ]


REASONS = {"a cut photo": "broken", "a page": "not_an_image", "a bomb": "too_many_pixels", "nothing": "empty"}


def damaged_set() -> list[FilePair]:
    """360 pairs, of which 54 have odd images and 36 cannot be used."""
    pairs: list[FilePair] = list(digits()[:306])
    for index in range(9):
        for place, pair in enumerate(odd(index)):
            pairs.insert(40 * index + 6 * place, pair)
    return pairs


def good(pairs: list[FilePair]) -> set[FilePair]:
    return {(image, caption) for image, caption in pairs if str(caption).partition(",")[0] not in REASONS}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder, pairs = tmp_path_factory.mktemp("files"), damaged_set()
    for part in range(3):
        write_tar(pairs[part * 120 : (part + 1) * 120], folder / "tars" / f"{part}.tar")
    return {
        "parquet": write_parquet(pairs, folder / "pairs.parquet"),
        "folder": write_folder(pairs, folder / "folder"),
        "webdataset": {"path": str(folder / "tars"), "format": "webdataset"},
    }


def images(*sources: dict[str, Any], **settings: object) -> Images:
    return Images.model_validate({"sources": sources, "shard_rows": 32, "bad_share": 0.2, **settings})


def rows_of(manifest: PairManifest, folder: Path, part: str = "train") -> list[dict[str, Any]]:
    return [row for shard in getattr(manifest, part) for row in read_shard(folder / shard.file).to_pylist()]


def pairs_of(manifest: PairManifest, folder: Path, part: str = "train") -> set[FilePair]:
    return {(row["image"], row["text"]) for row in rows_of(manifest, folder, part)}


def rejected(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]


Prepared = tuple[PairManifest, Path]


@pytest.fixture(scope="module")
def prepared(sources: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Prepared]:
    """The set from each format, with a fifth of the images held out."""
    found = {}
    for form, source in sources.items():
        folder = tmp_path_factory.mktemp(form)
        found[form] = prepare(IMAGES, images({**source, "prompt": "s2p_query"}, holdout=0.2), folder, seed=3), folder
    return found


FORMATS = ["parquet", "folder", "webdataset"]


@pytest.mark.parametrize("form", FORMATS)
def test_good_pairs_are_in_shards_with_their_bytes_as_found(form: str, prepared: dict[str, Prepared]) -> None:
    manifest, folder = prepared[form]
    train, heldout = pairs_of(manifest, folder), pairs_of(manifest, folder, "heldout")
    assert train | heldout == good(damaged_set())
    assert sum("flower" in str(caption) for _, caption in train | heldout) == 18
    assert all(decode(row["image"]).mode == "RGB" for row in rows_of(manifest, folder))


@pytest.mark.parametrize("form", FORMATS)
def test_every_bad_pair_is_listed_with_its_reason(form: str, prepared: dict[str, Prepared]) -> None:
    manifest, folder = prepared[form]
    found = {row["origin"]: row["reason"] for row in rejected(folder)}
    expected = {}
    for index, (_, caption) in enumerate(damaged_set()):
        if reason := REASONS.get(str(caption).partition(",")[0]):
            expected[index] = reason
    origins = {
        "parquet": lambda index: f"pairs.parquet:{index}",
        "folder": lambda index: f"metadata.jsonl:{index + 1} images/{index}.png",
        "webdataset": lambda index: f"{index // 120}.tar:{index % 120:05}",
    }
    assert found == {origins[form](index): reason for index, reason in expected.items()}
    assert len(rejected(folder)) == 36
    assert manifest.rejected == manifest.sources[0].rejected == dict(Counter(expected.values()))


def test_every_format_gives_the_same_shards(prepared: dict[str, Prepared]) -> None:
    first, *others = [manifest for manifest, _ in prepared.values()]
    assert all((other.train, other.heldout) == (first.train, first.heldout) for other in others)


def test_shards_are_full_and_sorted_by_hash(prepared: dict[str, Prepared]) -> None:
    manifest, folder = prepared["parquet"]
    assert len(manifest.train) > 4
    assert {shard.rows for shard in manifest.train[:-1]} == {32}
    for part in ("train", "heldout"):
        rows = rows_of(manifest, folder, part)
        assert [row["id"] for row in rows] == [pair_id(row["image"], row["text"]) for row in rows]
        assert {row["prompt"] for row in rows} == {"s2p_query"}
        assert all(left < right for left, right in pairwise(sort_key(row["id"], 3) >> 2 for row in rows))


def test_no_image_is_both_trained_on_and_held_out(tmp_path: Path) -> None:
    pairs = [
        (image, f"{caption}, {text}") for text in ("small", "grey", "on paper") for image, caption in digits()[:150]
    ]
    manifest = prepare(
        IMAGES, images(write_parquet(pairs, tmp_path / "pairs.parquet"), holdout=0.3), tmp_path / "run", 0
    )
    train = {image for image, _ in pairs_of(manifest, tmp_path / "run")}
    heldout = {image for image, _ in pairs_of(manifest, tmp_path / "run", "heldout")}
    assert train | heldout == {image for image, _ in digits()[:150]}
    assert not train & heldout
    assert all(is_held_out(image_id(image or b""), 0.3) for image in heldout)
    assert len(rows_of(manifest, tmp_path / "run", "heldout")) == 3 * len(heldout)


def test_counts_add_up(prepared: dict[str, Prepared]) -> None:
    manifest, folder = prepared["webdataset"]
    (source,) = manifest.sources
    assert (source.name, source.read, source.left_out) == ("tars", 360, 0)
    assert source.train == len(rows_of(manifest, folder)) == sum(shard.rows for shard in manifest.train)
    assert source.heldout == source.heldout_found == len(rows_of(manifest, folder, "heldout"))
    assert source.read == source.train + source.heldout + sum(source.rejected.values()) + manifest.duplicates
    assert manifest.duplicates == 0


def test_the_result_does_not_depend_on_blocks(
    sources: dict[str, dict[str, Any]], prepared: dict[str, Prepared], tmp_path: Path
) -> None:
    settings = prepared["parquet"][0].images
    context = DataContext.get_current()
    usual, context.target_max_block_size = context.target_max_block_size, 60_000
    try:
        again = prepare(IMAGES, settings, tmp_path, seed=3)
    finally:
        context.target_max_block_size = usual
    assert again == prepared["parquet"][0]
    assert rejected(tmp_path) == rejected(prepared["parquet"][1])


def test_equal_pairs_are_kept_once_and_counted(tmp_path: Path) -> None:
    first = write_parquet([*digits()[:200], *digits()[:50]], tmp_path / "first.parquet")
    second = write_folder([*digits()[100:250], (b"", "nothing")], tmp_path / "second")
    context = DataContext.get_current()
    usual, context.target_max_block_size = context.target_max_block_size, 20_000
    try:
        manifest = prepare(
            IMAGES, images({**first, "prompt": "a"}, {**second, "prompt": "b"}), tmp_path / "run", seed=0
        )
    finally:
        context.target_max_block_size = usual
    assert pairs_of(manifest, tmp_path / "run") == set(digits()[:250])
    assert len(rows_of(manifest, tmp_path / "run")) == 250
    assert manifest.duplicates == 150
    assert [(source.read, source.train) for source in manifest.sources] == [(250, 200), (151, 50)]
    assert Counter(row["prompt"] for row in rows_of(manifest, tmp_path / "run")) == {"a": 200, "b": 50}


def test_held_out_pairs_beyond_the_limit_are_left_out(
    sources: dict[str, dict[str, Any]], prepared: dict[str, Prepared], tmp_path: Path
) -> None:
    whole, folder = prepared["parquet"]
    source = {**sources["parquet"], "prompt": "s2p_query"}
    manifest = prepare(IMAGES, images(source, holdout=0.2, heldout_limit=10), tmp_path, seed=3)
    assert rows_of(manifest, tmp_path, "heldout") == rows_of(whole, folder, "heldout")[:10]
    assert len(list((tmp_path / "heldout").iterdir())) == len(manifest.heldout) < len(whole.heldout)
    assert manifest.train == whole.train
    assert (manifest.sources[0].heldout, manifest.sources[0].heldout_found) == (10, whole.sources[0].heldout)
    assert manifest.duplicates == 0


def test_a_limit_chooses_by_hash_whatever_the_format(sources: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    forms = ("folder", "webdataset")
    limited = [
        prepare(IMAGES, images({**sources[form], "limit": 100}, bad_share=1), tmp_path / form, seed=0) for form in forms
    ]
    for manifest, form in zip(limited, forms, strict=True):
        (source,) = manifest.sources
        assert (source.read, source.left_out) == (360, 260)
        assert source.train + sum(source.rejected.values()) == 100
        assert pairs_of(manifest, tmp_path / form) < good(damaged_set())
    assert limited[0].train == limited[1].train


def test_too_many_bad_pairs_stop_the_run_with_their_list(
    sources: dict[str, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    message = (
        r"^36 of 360 pairs are unusable and were rejected \(9 \w+, 9 \w+, 9 \w+, 9 \w+\), more than the share of "
        r"0.09 that bad_share allows; fix or remove those that .*rejected.jsonl lists, or raise bad_share"
    )
    with pytest.raises(ConfigError, match=message):
        prepare(IMAGES, images(sources["folder"], bad_share=0.09), tmp_path, seed=0)
    assert len(rejected(tmp_path)) == 36
    assert not (tmp_path / "manifest.json").exists()
    with caplog.at_level(logging.WARNING):
        prepare(IMAGES, images(sources["folder"], bad_share=0.1), tmp_path, seed=0)
    assert "36 of 360 pairs are unusable and were rejected" in caplog.text
    with pytest.raises(ConfigError, match=r"more than the share of 0\.09 that bad_share allows"):
        prepare(IMAGES, images(sources["folder"], bad_share=0.09), tmp_path, seed=0)


def test_an_archive_that_ends_early_gives_what_came_before(tmp_path: Path) -> None:
    write_tar(digits()[:100], tmp_path / "tars" / "a.tar")
    write_tar(digits()[100:200], tmp_path / "tars" / "b.tar")
    whole = (tmp_path / "tars" / "b.tar").read_bytes()
    (tmp_path / "tars" / "b.tar").write_bytes(whole[: len(whole) // 2])
    settings = images({"path": str(tmp_path / "tars"), "format": "webdataset"})
    manifest = prepare(IMAGES, settings, tmp_path / "run", seed=0)
    assert rejected(tmp_path / "run") == [{"source": "tars", "origin": "b.tar", "reason": "broken_archive"}]
    assert 120 < len(rows_of(manifest, tmp_path / "run")) < 180


def test_finished_pairs_are_left_as_they_are(prepared: dict[str, Prepared]) -> None:
    manifest, folder = prepared["folder"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    pool = {"min_size": 1, "max_size": 3}
    other = Images.model_validate({**manifest.images.model_dump(), "bad_share": 0.5, "pool": pool})
    assert prepare(IMAGES, other, folder, seed=3) == manifest == load_manifest(folder, PairManifest)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert len(before) == len(manifest.train) + len(manifest.heldout) + 4


def test_interrupted_pairs_are_finished_with_the_same_shards(
    sources: dict[str, dict[str, Any]], prepared: dict[str, Prepared]
) -> None:
    manifest, folder = prepared["webdataset"]
    (folder / "manifest.json").unlink()
    (folder / manifest.train[0].file).unlink()
    assert prepare(IMAGES, manifest.images, folder, seed=3) == manifest
    assert len(list((folder / "train").iterdir())) == len(manifest.train)


def test_other_pairs_in_the_folder_are_refused_with_the_difference(tmp_path: Path) -> None:
    source = write_folder(digits()[:30], tmp_path / "pairs")
    settings = images(source)
    prepare(IMAGES, settings, tmp_path / "run", seed=0)
    with pytest.raises(ConfigError, match=r"images.sources.0.limit was None and is now 5; choose another run folder"):
        prepare(IMAGES, images({**source, "limit": 5}), tmp_path / "run", seed=0)
    with pytest.raises(ConfigError, match=r"seed was 0 and is now 1; choose another run folder"):
        prepare(IMAGES, settings, tmp_path / "run", seed=1)
    os.utime(tmp_path / "pairs" / "images" / "7.png", ns=(0, 0))
    with pytest.raises(ConfigError, match=r"the files of source pairs have changed; choose another run folder"):
        prepare(IMAGES, settings, tmp_path / "run", seed=0)


def test_faults_of_a_source_are_told_as_they_are(tmp_path: Path) -> None:
    source = write_parquet(digits()[:30], tmp_path / "pairs.parquet")
    with pytest.raises(
        ConfigError, match=r"^source 'pairs': .* has no column 'photo', it has n, image, caption"
    ) as found:
        prepare(IMAGES, images({**source, "image": "photo"}), tmp_path / "run", seed=0)
    assert "\n" not in str(found.value)
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(ConfigError, match=r"pairs.parquet cannot be read as parquet"):
        prepare(IMAGES, images(source), tmp_path / "run", seed=0)


def test_a_source_without_pairs_is_refused(tmp_path: Path) -> None:
    source = write_folder([(b"", "nothing")], tmp_path / "pairs")
    with pytest.raises(
        ConfigError, match=r"no pair to train on \(pairs: 1 read, 1 empty\); change path, image or caption"
    ):
        prepare(IMAGES, images(source, bad_share=1), tmp_path / "run", seed=0)
    with pytest.raises(ConfigError, match=r"none of 20 pairs fell into that share; raise images.holdout"):
        prepare(IMAGES, images(write_folder(digits()[:20], tmp_path / "few"), holdout=1e-6), tmp_path / "run", seed=0)


def test_what_was_set_aside_is_never_taken_for_a_duplicate() -> None:
    row = {"key": 5, "source": 0, "id": "a", "text": None, "image": None, "counts": [1, 0], "origin": "x.tar:1"}
    kept = {**row, "key": 1, "text": "a digit", "image": b"png", "reason": None}
    rows = [
        {**row, "reason": "missing"},
        {**row, "reason": "no_caption"},
        kept,
        {**kept, "source": 1, "counts": [0, 3]},
    ]
    found = drop_duplicates(pa.Table.from_pylist(rows)).to_pylist()
    assert [(each["reason"], each["source"], each["counts"]) for each in found] == [
        (None, 0, [1, 3]), ("missing", 0, [1, 0]), ("no_caption", 0, [1, 0])
    ]  # fmt: skip
