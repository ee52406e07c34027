"""A corpus prepared by Ray Data on this machine, from small files of every format."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.data import DataContext

from jasper_ray.config import ConfigError
from jasper_ray.corpus.prepare import merge_smallest, prepare
from jasper_ray.corpus.settings import Corpus
from jasper_ray.corpus.shards import CorpusManifest, load_manifest, read_shard
from jasper_ray.corpus.texts import TEXTS
from jasper_ray.sources.hashing import is_held_out, sort_key, text_id

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]

CITIES = ["Kiel", "Lund", "Turin", "Porto", "Ghent", "Bergen", "Graz", "Cork"]
EVENTS = ["the ferry was late", "it rained all day", "the choir sang", "a tram stood still", "the market opened"]


def reports(count: int) -> list[str]:
    """Different documents of one to four sentences."""
    return [
        " ".join(
            f"On day {day} in {CITIES[(day + part) % 8]} {EVENTS[(day + 3 * part) % 5]}." for part in range(1 + day % 4)
        )
        for day in range(count)
    ]


def questions(count: int) -> list[str]:
    return [f"Was it in {CITIES[i % 8]} that {EVENTS[i % 5]} on day {i}?" for i in range(count)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 900 reports in a text file and in parquet files, and 300 questions as JSONL with some unusable rows."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "reports.txt").write_text("\n".join([*reports(900), *reports(100), "", "   "]) + "\n")
    (folder / "parquet").mkdir()
    for part in range(3):
        texts = reports(900)[part * 300 : (part + 1) * 300]
        pq.write_table(pa.table({"n": range(300), "body": texts}), folder / "parquet" / f"{part}.parquet")
    rows: list[Any] = [*questions(300), None, " ", 7]
    (folder / "questions.jsonl").write_text("".join(json.dumps({"question": row}) + "\n" for row in rows))
    return folder


def text_source(files: Path) -> dict[str, Any]:
    return {"path": str(files / "reports.txt"), "format": "text", "prompt": "s2p_query"}


def question_source(files: Path, **settings: object) -> dict[str, Any]:
    return {"path": str(files / "questions.jsonl"), "format": "jsonl", "column": "question", **settings}


def corpus(*sources: dict[str, Any], **settings: object) -> Corpus:
    return Corpus.model_validate({"sources": sources, "shard_rows": 128, **settings})


def rows_of(manifest: CorpusManifest, folder: Path, part: str = "train") -> list[dict[str, Any]]:
    return [row for shard in getattr(manifest, part) for row in read_shard(folder / shard.file).to_pylist()]


@pytest.fixture(scope="module")
def mixed(files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[CorpusManifest, Path]:
    """Both sources with everything switched on but limits and weights."""
    folder = tmp_path_factory.mktemp("mixed")
    augmentation = {"cut_share": 0.3, "max_sentences": 2, "shuffle_share": 0.1}
    settings = corpus(
        text_source(files), question_source(files), holdout=0.2, heldout_limit=200, augmentation=augmentation
    )
    return prepare(TEXTS, settings, folder, seed=3), folder


def test_shards_are_full_and_sorted_by_hash(mixed: tuple[CorpusManifest, Path]) -> None:
    manifest, folder = mixed
    assert len(manifest.train) > 5
    assert {shard.rows for shard in manifest.train[:-1]} == {128}
    assert 0 < manifest.train[-1].rows <= 128
    keys = [sort_key(row["id"], 3) for row in rows_of(manifest, folder)]
    assert all(left < right for left, right in pairwise(keys))


def test_rows_have_the_id_of_their_text_and_the_prompt_of_their_source(mixed: tuple[CorpusManifest, Path]) -> None:
    manifest, folder = mixed
    for part in ("train", "heldout"):
        rows = rows_of(manifest, folder, part)
        assert [row["id"] for row in rows] == [text_id(row["text"]) for row in rows]
        assert {row["prompt"] for row in rows} == {None, "s2p_query"}
        assert all((row["prompt"] is None) == ("?" in row["text"]) for row in rows if len(row["text"].split()) > 12)


def test_training_and_held_out_texts_are_apart(mixed: tuple[CorpusManifest, Path]) -> None:
    manifest, folder = mixed
    assert not any(is_held_out(row["id"], 0.2) for row in rows_of(manifest, folder))
    held_out = {text_id(text) for text in [*reports(900), *questions(300)] if is_held_out(text_id(text), 0.2)}
    first = sorted(held_out, key=lambda row_id: sort_key(row_id, 3))[:200]
    assert [row["id"] for row in rows_of(manifest, folder, "heldout")] == first
    assert [shard.rows for shard in manifest.heldout] == [128, 72]


def test_counts_add_up(mixed: tuple[CorpusManifest, Path]) -> None:
    manifest, folder = mixed
    texts, asked = manifest.sources
    assert (texts.name, texts.read, texts.empty, texts.null, texts.not_text) == ("reports", 1002, 2, 0, 0)
    assert (asked.name, asked.read, asked.empty, asked.null, asked.not_text) == ("questions", 303, 1, 1, 1)
    written = len(rows_of(manifest, folder))
    assert texts.train + asked.train == written == sum(shard.rows for shard in manifest.train)
    assert texts.train_found + asked.train_found == written + manifest.duplicates
    assert texts.heldout + asked.heldout == 200 < texts.heldout_found + asked.heldout_found
    assert manifest.duplicates >= 50  # a hundred reports are there twice
    assert manifest.left_out == 0


def test_a_finished_corpus_is_left_as_it_is(mixed: tuple[CorpusManifest, Path]) -> None:
    manifest, folder = mixed
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert prepare(TEXTS, manifest.corpus, folder, seed=3) == manifest == load_manifest(folder, CorpusManifest)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert len(before) == len(manifest.train) + len(manifest.heldout) + len(["train", "heldout", "manifest.json"])


def test_the_result_does_not_depend_on_blocks_or_format(files: Path, tmp_path: Path) -> None:
    from_text = prepare(TEXTS, corpus({**text_source(files), "prompt": None}), tmp_path / "text", seed=0)
    parquet = {"path": str(files / "parquet" / "*.parquet"), "format": "parquet", "column": "body"}
    context = DataContext.get_current()
    usual, context.target_max_block_size = context.target_max_block_size, 40_000
    try:
        from_parquet = prepare(TEXTS, corpus(parquet), tmp_path / "parquet", seed=0)
    finally:
        context.target_max_block_size = usual
    assert from_text.train == from_parquet.train
    assert (from_text.duplicates, from_parquet.duplicates) == (100, 0)
    assert from_text.sources[0].train == 900


def test_limits_and_weights_choose_the_mixture(files: Path, tmp_path: Path) -> None:
    settings = corpus({**text_source(files), "weight": 0.5}, question_source(files, weight=0.5, limit=200))
    manifest = prepare(TEXTS, settings, tmp_path, seed=0)
    texts, asked = manifest.sources
    assert asked.train == 200
    assert texts.kept_share == pytest.approx(0.2)  # of 1000 lines, among which are 900 different ones
    assert texts.train == pytest.approx(180, abs=40)
    assert manifest.left_out == 1000 + 300 - texts.train - asked.train - manifest.duplicates


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[CorpusManifest, Path]:
    """Three hundred questions in a text file, and nothing switched on."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "asked.txt").write_text("\n".join(questions(300)))
    settings = corpus({"path": str(folder / "asked.txt"), "format": "text"})
    return prepare(TEXTS, settings, folder / "run", seed=0), folder / "run"


def test_an_interrupted_corpus_is_finished_with_the_same_shards(asked: tuple[CorpusManifest, Path]) -> None:
    manifest, folder = asked
    (folder / "manifest.json").unlink()
    (folder / manifest.train[0].file).unlink()
    assert prepare(TEXTS, manifest.corpus, folder, seed=0) == manifest
    assert len(list((folder / "train").iterdir())) == len(manifest.train)


def test_another_corpus_in_the_folder_is_refused_with_the_difference(asked: tuple[CorpusManifest, Path]) -> None:
    manifest, folder = asked
    path = manifest.corpus.sources[0].path
    limited = corpus({"path": path, "format": "text", "limit": 5})
    with pytest.raises(ConfigError, match=r"corpus.sources.0.limit was None and is now 5; choose another run folder"):
        prepare(TEXTS, limited, folder, seed=0)
    with pytest.raises(ConfigError, match="seed was 0 and is now 1; choose another run folder"):
        prepare(TEXTS, manifest.corpus, folder, seed=1)
    os.utime(path, ns=(0, 0))
    with pytest.raises(ConfigError, match="the files of source asked have changed; choose another run folder"):
        prepare(TEXTS, manifest.corpus, folder, seed=0)


def test_a_line_broken_far_down_is_named(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in questions(500)]
    (tmp_path / "asked.jsonl").write_text("\n".join([*lines, '{"text": "Was it']))
    with pytest.raises(ConfigError, match=r"asked.jsonl: line 501: not JSON") as found:
        prepare(TEXTS, corpus({"path": str(tmp_path / "asked.jsonl"), "format": "jsonl"}), tmp_path / "run", seed=0)
    assert "\n" not in str(found.value)


def test_a_corpus_without_texts_is_refused_with_its_counts(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" \n\n\t\n")
    with pytest.raises(ConfigError, match=r"no text to train on \(blank: 3 read, 3 empty\)"):
        prepare(TEXTS, corpus({"path": str(tmp_path / "blank.txt"), "format": "text"}), tmp_path / "run", seed=0)
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_a_folder_that_cannot_be_written_is_refused(files: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match=r"cannot write to .*file/run \(Not a directory\); choose another run folder"):
        prepare(TEXTS, corpus(question_source(files)), tmp_path / "file" / "run", seed=0)


def test_a_holdout_that_holds_nothing_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("\n".join(questions(5)))
    settings = corpus({"path": str(tmp_path / "few.txt"), "format": "text"}, holdout=1e-6)
    with pytest.raises(ConfigError, match=r"none of 5 texts fell into that share; raise corpus.holdout"):
        prepare(TEXTS, settings, tmp_path / "run", seed=0)


@pytest.mark.parametrize("limit", [0, 1, 700, 10_000])
def test_the_smallest_hashes_of_many_batches(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr("jasper_ray.corpus.prepare.MERGE_AT", 500)
    batches = np.random.default_rng(0).integers(0, 6000, size=(40, 100)).astype(np.uint64)
    assert merge_smallest(batches, limit).tolist() == sorted(set(batches.flatten().tolist()))[:limit]
