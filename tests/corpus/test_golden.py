"""Prepared data do not change: shards, counts, fingerprints and rejected pairs are those of earlier versions.

`golden/expected.json` holds them. The Parquet sources are stored too, since a source's fingerprint covers file sizes.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pair_files import FilePair, write_folder, write_tar

from jasper_ray.corpus.images import IMAGES
from jasper_ray.corpus.prepare import prepare
from jasper_ray.corpus.settings import Corpus, Images
from jasper_ray.corpus.shards import content_hash, read_shard
from jasper_ray.corpus.texts import TEXTS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]

GOLDEN = Path(__file__).with_name("golden")
MOMENT_NS = 1_700_000_000 * 10**9
"""Modification time of every source file."""
PLACES = ["the quay", "a tunnel", "the old mill", "platform nine", "the bakery", "a greenhouse", "the archive"]
EVENTS = ["the lamp went out", "a parcel was found", "the clock struck", "it smelled of bread", "nobody spoke"]


def story(number: int) -> str:
    """One to five sentences."""
    return " ".join(
        f"At {PLACES[(number + part) % 7]} {EVENTS[(number + 2 * part) % 5]} on day {number}."
        for part in range(1 + number % 5)
    )


def write_texts(folder: Path) -> None:
    """Sources with duplicates inside and between them, and with rows that hold no text."""
    stories = [story(number) for number in range(260)]
    (folder / "stories.txt").write_text("\n".join([*stories[:200], *stories[:40], "", "  "]) + "\n", encoding="utf-8")
    asked: list[object] = [f"Was it at {PLACES[n % 7]} that {EVENTS[n % 5]}, in {1900 + n}?" for n in range(150)]
    rows = [json.dumps({"question": value, "n": n}) for n, value in enumerate([*asked, None, "\t", 7, stories[3]])]
    (folder / "questions.jsonl").write_text("\n\n".join(rows) + "\n", encoding="utf-8")
    notes = [f'{n},"Note {n}:\n{stories[n]}"' for n in range(150, 230)]
    (folder / "notes.csv").write_text("\n".join(["n,body", *notes, '8,""', ""]), encoding="utf-8")
    shutil.copy(GOLDEN / "texts.parquet", folder / "texts.parquet")


def bitmap(number: int, side: int = 4) -> bytes:
    """A BMP file of `side` x `side` pixels; BMP has no compression, so its bytes are the same everywhere."""
    pixels = bytes((number * 7 + place * 13) % 256 for place in range(side * side * 3))
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, len(pixels), 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(pixels), 0, 0, 54) + header + pixels


def picture(number: int) -> FilePair:
    return bitmap(number), f"picture {number} of {PLACES[number % 7]}"


def odd_pictures() -> list[FilePair]:
    """One pair for each reason to reject one, and one whose image has two captions."""
    return [
        (None, "no file"),
        (b"", "an empty file"),
        (b"<html>not found</html>", "a page"),
        (bitmap(300)[:60], "a cut file"),
        (bitmap(301, side=32), "a large image"),
        (bitmap(302), None),
        (bitmap(5), "another caption of picture 5"),
    ]


def write_pictures(folder: Path) -> None:
    """The same kinds of pairs in every format, some of them in two sources."""
    write_folder([*map(picture, range(60)), *odd_pictures(), *map(picture, range(10))], folder / "album")
    write_tar([*map(picture, range(50, 90)), *odd_pictures()], folder / "tars" / "a.tar")
    write_tar([picture(number) for number in range(90, 120)], folder / "tars" / "b.tar")
    whole = (folder / "tars" / "b.tar").read_bytes()
    (folder / "tars" / "c.tar").write_bytes(whole[: len(whole) // 3])
    shutil.copy(GOLDEN / "pairs.parquet", folder / "pairs.parquet")


SOURCES: list[dict[str, Any]] = [
    {"path": "stories.txt", "format": "text", "prompt": "s2p_query"},
    {"path": "questions.jsonl", "format": "jsonl", "column": "question"},
    {"path": "notes.csv", "format": "csv", "column": "body", "name": "annotations"},
    {"path": "texts.parquet", "format": "parquet", "prompt": "s2s_query"},
]
WEIGHTS = [{"weight": 0.5, "limit": 150}, {"weight": 0.2}, {"weight": 0.1}, {"weight": 0.2, "limit": 60}]
CORPORA: dict[str, dict[str, Any]] = {
    "augmented": {
        "sources": SOURCES,
        "holdout": 0.2,
        "heldout_limit": 70,
        "shard_rows": 32,
        "augmentation": {"cut_share": 0.4, "max_sentences": 2, "shuffle_share": 0.2},
    },
    "mixed": {
        "sources": [{**source, **weight} for source, weight in zip(SOURCES, WEIGHTS, strict=True)],
        "holdout": 0.1,
        "shard_rows": 32,
        "augmentation": {"cut_share": 0.5, "min_sentences": 1, "max_sentences": 1},
    },
}

ALBUMS: list[dict[str, Any]] = [
    {"path": "album", "format": "folder", "prompt": "s2p_query"},
    {"path": "tars", "format": "webdataset"},
    {"path": "pairs.parquet", "format": "parquet", "name": "stored"},
]
PICTURES: dict[str, dict[str, Any]] = {
    "plain": {"sources": ALBUMS, "shard_rows": 16, "pixel_limit": 100, "bad_share": 0.5},
    "heldout": {
        "sources": ALBUMS, "shard_rows": 16, "pixel_limit": 100, "bad_share": 0.5, "holdout": 0.3, "heldout_limit": 30
    },
    "limited": {
        "sources": [{**ALBUMS[0], "limit": 40}, ALBUMS[1], {**ALBUMS[2], "limit": 12}],
        "shard_rows": 16,
        "pixel_limit": 100,
        "bad_share": 0.5,
        "holdout": 0.2,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of all sources, which settings name by relative paths; it is the current folder meanwhile."""
    folder, before = tmp_path_factory.mktemp("sources"), Path.cwd()
    write_texts(folder)
    write_pictures(folder)
    for path in folder.rglob("*"):
        os.utime(path, ns=(MOMENT_NS, MOMENT_NS))
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
    return found


def written(folder: Path) -> dict[str, Any]:
    """Everything that a folder of prepared data holds; shards by their contents, which are read."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    rejected = folder / "rejected.jsonl"
    for shard in [*manifest["train"], *manifest["heldout"]]:
        table = read_shard(folder / shard["file"])
        assert content_hash(table) == shard["sha256"]
        assert len(table) == shard["rows"]
    text = rejected.read_text(encoding="utf-8") if rejected.is_file() else None
    return {"manifest": manifest, "files": files, "rejected": text}


@pytest.mark.parametrize("name", CORPORA)
def test_texts_are_prepared_as_by_earlier_versions(
    name: str, sources: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    prepare(TEXTS, Corpus.model_validate(CORPORA[name]), tmp_path, seed=11)
    assert written(tmp_path) == expected["texts"][name]


@pytest.mark.parametrize("name", PICTURES)
def test_pairs_are_prepared_as_by_earlier_versions(
    name: str, sources: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    prepare(IMAGES, Images.model_validate(PICTURES[name]), tmp_path, seed=11)
    assert written(tmp_path) == expected["images"][name]
