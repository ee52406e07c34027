"""Sources of image–caption pairs, read in plain Python: no Ray here."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pair_files import FilePair, add_member, write_folder, write_parquet, write_tar
from picture_files import bomb, digits, photo, written
from pydantic import TypeAdapter, ValidationError

from jasper_ray.config import ConfigError
from jasper_ray.corpus.settings import Images
from jasper_ray.corpus.shards import PAIR_SHARD_SCHEMA, PairManifest, load_manifest, read_shard, write_shard
from jasper_ray.images import BadImage
from jasper_ray.sources.hashing import image_id, pair_id
from jasper_ray.sources.pairs import (
    PAIR_SCHEMA,
    READ_ROWS,
    check_pair_sources,
    fill_pairs,
    find_pair_files,
    read_pairs,
    scan_pairs,
)
from jasper_ray.sources.settings import PairSource

WRITERS: dict[str, Callable[[Sequence[FilePair], Path], dict[str, Any]]] = {
    "parquet": write_parquet,
    "folder": write_folder,
    "webdataset": write_tar,
}
NAMES = {"parquet": "pairs.parquet", "folder": "pairs", "webdataset": "pairs.tar"}

UNUSABLE: list[FilePair] = [
    (None, "no image"),
    (digits()[0][0], None),
    (digits()[1][0], ""),
    (digits()[2][0], " \n"),
]


def source(**values: Any) -> PairSource:
    found: PairSource = TypeAdapter(PairSource).validate_python(values)
    return found


def images(*sources: dict[str, Any], **settings: object) -> Images:
    return Images.model_validate({"sources": sources, **settings})


def rows(values: dict[str, Any]) -> list[dict[str, Any]]:
    """All rows of a source, images filled in."""
    given = source(**values)
    files = find_pair_files(given)
    tables = [fill_pairs(table, files) for path in files.paths for table in scan_pairs(given, files, path)]
    assert all(table.schema.equals(PAIR_SCHEMA) and len(table) <= READ_ROWS for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def usable(values: dict[str, Any]) -> list[FilePair]:
    return [(row["image"], row["caption"]) for row in rows(values) if row["reason"] is None]


def reasons(values: dict[str, Any]) -> dict[str, str]:
    """The reason of each rejected pair, by its origin."""
    return {row["origin"]: row["reason"] for row in rows(values) if row["reason"] is not None}


# Reading


@pytest.mark.parametrize("form", WRITERS)
def test_every_format_gives_the_pairs_that_were_written(form: str, tmp_path: Path) -> None:
    pairs = list(digits()[:50])
    values = WRITERS[form](pairs, tmp_path / NAMES[form])
    assert usable(values) == pairs
    assert [(pair.image, pair.caption) for pair in read_pairs(source(**values))] == pairs
    assert len({pair.origin for pair in read_pairs(source(**values))}) == 50


@pytest.mark.parametrize("form", WRITERS)
def test_a_pair_without_image_or_caption_has_a_reason(form: str, tmp_path: Path) -> None:
    values = WRITERS[form]([*digits()[:20], *UNUSABLE, *digits()[20:40]], tmp_path / NAMES[form])
    assert usable(values) == list(digits()[:40])
    assert Counter(reasons(values).values()) == {"missing": 1, "no_caption": 3}
    assert not any(row["image"] or row["caption"] for row in rows(values) if row["reason"])
    with pytest.raises(ConfigError, match=r"source 'pairs', .*: the pair cannot be used \(missing\); fix"):
        list(read_pairs(source(**values)))


@pytest.mark.parametrize("form", WRITERS)
def test_origins_lead_to_the_pair_wherever_the_source_lies(form: str, tmp_path: Path) -> None:
    values = WRITERS[form](UNUSABLE[:1] * 2, tmp_path / NAMES[form])
    expected = {
        "parquet": ["pairs.parquet:0", "pairs.parquet:1"],
        "folder": ["metadata.jsonl:1 images/0.png", "metadata.jsonl:2 images/1.png"],
        "webdataset": ["pairs.tar:00000", "pairs.tar:00001"],
    }
    assert list(reasons(values)) == expected[form]


@pytest.mark.parametrize("form", WRITERS)
def test_uris_and_globs_are_read(form: str, tmp_path: Path) -> None:
    values = WRITERS[form](digits()[:3], tmp_path / "part" / NAMES[form])
    assert usable({**values, "path": f"file://{values['path']}"}) == list(digits()[:3])
    if form != "folder":
        found = rows({**values, "path": f"file://{tmp_path}/*/*"})
        assert [(row["image"], row["caption"]) for row in found] == list(digits()[:3])
        assert found[0]["origin"].startswith(f"part/{NAMES[form]}:0")


def test_images_of_parquet_may_be_plain_bytes(tmp_path: Path) -> None:
    for number, kind in enumerate((pa.binary(), pa.large_binary())):
        table = pa.table({"photo": pa.array([digits()[0][0], None], kind), "text": ["a digit", "nothing"]})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    values = {"path": str(tmp_path), "format": "parquet", "image": "photo", "caption": "text"}
    assert usable(values) == [(digits()[0][0], "a digit")] * 2
    assert reasons(values) == {"0.parquet:1": "missing", "1.parquet:1": "missing"}


def test_captions_of_a_folder_may_be_csv(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(digits()[0][0])
    (tmp_path / "captions.csv").write_text('file,says\na.png,"a digit, small"\nb.png,gone\n,nameless\na.png,\n')
    values = {
        "path": str(tmp_path), "format": "folder", "captions": "captions.csv", "image": "file", "caption": "says"
    }  # fmt: skip
    assert usable(values) == [(digits()[0][0], "a digit, small")]
    assert reasons(values) == {
        "captions.csv:3 b.png": "missing", "captions.csv:4": "missing", "captions.csv:5 a.png": "no_caption"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "images/../../secret.png"])
def test_a_folder_does_not_reach_outside(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(digits()[0][0])
    values = write_folder(digits()[:1], tmp_path / "pairs")
    with (tmp_path / "pairs" / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": name, "caption": "secret"}) + "\n")
    with pytest.raises(ConfigError, match=r"metadata.jsonl, line 2, names the image .*; expected a path inside"):
        rows(values)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2"])
def test_archives_may_be_compressed(mode: str, tmp_path: Path) -> None:
    assert usable(write_tar(digits()[:30], tmp_path / "pairs.tar", mode)) == list(digits()[:30])


def test_captions_may_stand_in_json(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "pairs.tar", "w") as archive:
        for stem, said in {"a": {"says": "a digit"}, "b": {}, "c": {"says": 7}, "d": ["says"]}.items():
            add_member(archive, f"./deep/{stem}.PNG", digits()[0][0])
            add_member(archive, f"./deep/{stem}.json", json.dumps(said).encode())
        add_member(archive, "./deep/e.png", digits()[0][0])
        add_member(archive, "./deep/e.json", b'{"says": "cut')
        add_member(archive, "./deep/._f.png", b"what a Mac leaves behind")
    values = {"path": str(tmp_path / "pairs.tar"), "format": "webdataset", "caption": "json:says"}
    assert usable(values) == [(digits()[0][0], "a digit")]
    assert reasons(values) == {f"pairs.tar:deep/{stem}": "no_caption" for stem in "bcde"}


def test_of_several_images_one_has_to_be_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "pairs.tar", "w") as archive:
        add_member(archive, "a.left.png", digits()[0][0])
        add_member(archive, "a.right.png", digits()[1][0])
        add_member(archive, "a.txt", b"a stereo pair")
    values = {"path": str(tmp_path / "pairs.tar"), "format": "webdataset"}
    with pytest.raises(ConfigError, match=r"two images called 'a', .left.png and .right.png; set the source's image"):
        rows(values)
    assert usable({**values, "image": "right.png"}) == [(digits()[1][0], "a stereo pair")]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.77])
def test_an_archive_that_ends_early_keeps_what_came_before(packed: bool, share: float, tmp_path: Path) -> None:
    write_tar(digits()[:200], tmp_path / "pairs.tar")
    whole = (tmp_path / "pairs.tar").read_bytes()
    whole = gzip.compress(whole) if packed else whole
    for more in (100, 512, 900, 1300, 2000):
        (tmp_path / "cut.tar").write_bytes(whole[: int(len(whole) * share) // 512 * 512 + more])
        values = {"path": str(tmp_path / "cut.tar"), "format": "webdataset"}
        found = usable(values)
        assert found == list(digits()[: len(found)])
        assert reasons(values) == {"cut.tar": "broken_archive"}
        assert packed or len(found) == pytest.approx(200 * share, abs=5)


def test_an_archive_with_a_damaged_header_is_not_taken_for_a_shorter_one(tmp_path: Path) -> None:
    values = write_tar(digits()[:40], tmp_path / "pairs.tar")
    whole = bytearray((tmp_path / "pairs.tar").read_bytes())
    whole[whole.index(b"00020.png") + 148] ^= 1  # its checksum
    (tmp_path / "pairs.tar").write_bytes(whole)
    assert usable(values) == list(digits()[:20])
    assert reasons(values) == {"pairs.tar": "broken_archive"}


def test_a_long_archive_is_read_without_remembering_its_members(tmp_path: Path) -> None:
    values = write_tar(digits() * 2, tmp_path / "pairs.tar")
    assert usable(values) == list(digits() * 2)


def test_what_is_no_archive_is_set_aside(tmp_path: Path) -> None:
    write_tar(digits()[:3], tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(b"404 Not Found")
    (tmp_path / "c.tar").write_bytes(b"")
    values = {"path": str(tmp_path), "format": "webdataset"}
    assert usable(values) == list(digits()[:3])
    assert reasons(values) == {"b.tar": "broken_archive", "c.tar": "broken_archive"}


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    values = write_parquet(digits()[:100], tmp_path / "pairs.parquet")
    whole = (tmp_path / "pairs.parquet").read_bytes()
    for damaged in (whole[:1000], whole[:4] + b"\xff" * 3000 + whole[3004:]):
        (tmp_path / "pairs.parquet").write_bytes(damaged)
        with pytest.raises(
            ConfigError, match=r"source 'pairs': .*pairs.parquet cannot be read as parquet \(.*\); write"
        ):
            rows(values)


def test_a_bad_image_in_an_evaluation_set_is_named(tmp_path: Path) -> None:
    values = write_folder([*digits()[:2], (digits()[2][0][:60], "cut")], tmp_path / "pairs")
    with pytest.raises(BadImage, match=r"source 'pairs', metadata.jsonl:3 images/2.png: the image is damaged"):
        list(read_pairs(source(**values)))


def test_a_limit_takes_the_same_pairs_each_time(tmp_path: Path) -> None:
    values = [WRITERS[form](digits()[:200], tmp_path / NAMES[form]) for form in WRITERS]
    found = [{(p.image, p.caption) for p in read_pairs(source(**each, limit=30))} for each in values]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 30
    assert found[0] != set(digits()[:30])


# Settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"format": "folder", "captions": "../metadata.jsonl"},
            "captions is '../metadata.jsonl'; expected the path of",
        ),
        ({"format": "folder", "captions": "metadata.parquet"}, "expected the path of a .jsonl or .csv file inside"),
        (
            {"format": "webdataset", "caption": "json"},
            "caption is 'json'; expected an extension such as txt, or json:KEY",
        ),
        ({"format": "webdataset", "caption": "txt:text"}, "expected an extension such as txt, or json:KEY"),
        ({"format": "zip"}, "expected tags: 'parquet', 'folder', 'webdataset'"),
        ({"format": "parquet", "captions": "text"}, "Extra inputs are not permitted"),
        ({"format": "parquet", "limit": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        source(path="pairs", **values)


def test_the_pixel_limit_keeps_below_pillows() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 89478485"):
        images({"path": "pairs", "format": "folder"}, pixel_limit=100_000_000)


# Checking beforehand


def check(values: dict[str, Any]) -> None:
    made = images({**values, "name": "photos"})
    check_pair_sources(made.sources, made.pixel_limit)


@pytest.mark.parametrize("form", WRITERS)
def test_sources_that_can_be_read_pass(form: str, tmp_path: Path) -> None:
    check(WRITERS[form]([*UNUSABLE, *digits()[:2]], tmp_path / NAMES[form]))


@pytest.mark.parametrize("form", WRITERS)
def test_a_source_without_a_pair_of_use_is_refused(form: str, tmp_path: Path) -> None:
    bad: list[FilePair] = [(bomb(8000), "large"), (b"text", "no image"), *UNUSABLE]
    with pytest.raises(
        ConfigError, match=r"none of its first 6 pairs can be used .*3 no_caption.*; change the source's"
    ):
        check(WRITERS[form](bad, tmp_path / NAMES[form]))


def test_missing_columns_are_named(tmp_path: Path) -> None:
    parquet = write_parquet(digits()[:2], tmp_path / "pairs.parquet")
    folder = write_folder(digits()[:2], tmp_path / "pairs")
    with pytest.raises(
        ConfigError, match=r"has no column 'photo', it has n, image, caption; change the source's image"
    ):
        check({**parquet, "image": "photo"})
    with pytest.raises(ConfigError, match=r"no column 'says', it has file_name, caption; change the source's caption"):
        check({**folder, "caption": "says"})
    with pytest.raises(ConfigError, match=r"column 'n' of .* holds int64, expected the bytes of images"):
        check({**parquet, "image": "n"})
    with pytest.raises(
        ConfigError, match=r"column 'n' of .* holds int64, expected text \(string\); change the .* caption"
    ):
        check({**parquet, "caption": "n"})


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(written(photo(), "PNG"))
    with pytest.raises(
        ConfigError, match=r"source 'photos': found no metadata.jsonl in .*; expected a table of captions"
    ):
        check({"path": str(tmp_path), "format": "folder"})
    with pytest.raises(ConfigError, match=r"found no file at .*photo.png; expected a folder \(its format is folder\)"):
        check({"path": str(tmp_path / "photo.png"), "format": "folder"})
    with pytest.raises(ConfigError, match=r"a folder with .tar or .tar.gz or .tgz files"):
        check({"path": str(tmp_path), "format": "webdataset"})


def test_a_changed_image_changes_the_content_of_its_folder(tmp_path: Path) -> None:
    given = source(**write_folder(digits()[:2], tmp_path / "pairs"))
    before = find_pair_files(given)
    (tmp_path / "pairs/images/1.png").write_bytes(written(photo(), "PNG"))
    assert find_pair_files(given).content != before.content
    assert [Path(path).name for path in before.paths] == ["metadata.jsonl"]
    assert before.size > sum(len(image) for image, _ in digits()[:2])


# Ids and shards


def test_ids_never_change() -> None:
    # Cached targets of finished runs are found by these.
    assert image_id(b"an image") == "ee103f7dd3756007"
    assert pair_id(b"an image", "a caption") == "d97f5c698c4bf467"
    assert pair_id(b"an image", "a caption") != pair_id(b"an imagea", " caption")


def test_a_shard_is_read_as_it_was_written(tmp_path: Path) -> None:
    pairs = digits()[:20]
    table = pa.table(
        {
            "id": [pair_id(*pair) for pair in pairs],
            "text": [caption for _, caption in pairs],
            "prompt": ["s2p_query"] * 20,
            "image": [image for image, _ in pairs],
        },
        PAIR_SHARD_SCHEMA,
    )
    shard = write_shard(table, tmp_path, "train")
    assert shard.file == f"train/{shard.sha256[:16]}.parquet"
    assert read_shard(tmp_path / shard.file).equals(table)
    assert write_shard(table, tmp_path, "train") == shard
    assert write_shard(table.slice(1), tmp_path, "train").sha256 != shard.sha256


def test_a_folder_without_manifest_holds_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found no manifest.json in .*; expected prepared data"):
        load_manifest(tmp_path, PairManifest)
