"""Corpus settings and the pure functions that make corpus rows: no Ray here."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from jasper_ray.config import ConfigError
from jasper_ray.corpus.kinds import Row
from jasper_ray.corpus.prepare import choice_bounds, kept_shares, merge_smallest
from jasper_ray.corpus.settings import Augmentation, Corpus
from jasper_ray.corpus.shards import SHARD_SCHEMA, CorpusManifest, content_hash, load_manifest, read_shard, write_shard
from jasper_ray.corpus.texts import (
    augment,
    choice_hashes,
    chosen,
    heldout_rows,
    prepare_rows,
    shuffle_words,
    split_into_short_texts,
    split_sentences,
)
from jasper_ray.sources import rows as reader
from jasper_ray.sources.checks import check_sources
from jasper_ray.sources.files import find_files
from jasper_ray.sources.hashing import HASH_END, choice_hash, falls_in_share, is_held_out, keyed_hash, sort_key, text_id
from jasper_ray.sources.rows import clean, read_texts
from jasper_ray.sources.settings import Source

SUBJECTS = ["The harbour master", "A retired teacher", "My neighbour's daughter", "The night train", "Our old oven"]
VERBS = ["waited for", "complained about", "photographed", "outlived", "repaired", "forgot"]
OBJECTS = ["the ferry from Kiel", "a leaking roof", "three spotted eggs", "the last tram", "every clock in town"]
PARAGRAPH = (
    'The ferry was late. "Nobody knows why!" said the harbour master. Was it the fog? Perhaps… '
    "The lamps were lit at 5.30 p.m. and we went home (slowly.) Next day it came.\nNobody was on board."
)


def sentences() -> list[str]:
    """150 different sentences."""
    return [f"{subject} {verb} {thing}." for subject in SUBJECTS for verb in VERBS for thing in OBJECTS]


def documents(count: int) -> list[str]:
    """Different documents of 1 to 30 sentences each."""
    pool = sentences()
    rng = np.random.default_rng(7)
    return [" ".join([f"Report {i}.", *rng.choice(pool, size=int(rng.integers(0, 30)))]) for i in range(count)]


def corpus(**settings: object) -> Corpus:
    return Corpus.model_validate({"sources": [{"path": "reports.txt", "format": "text"}], **settings})


# Keys


def test_ids_and_hashes_never_change() -> None:
    # Cached targets of finished runs are found by these.
    assert text_id("The ferry was late.") == "b578e428b348c08c"
    assert keyed_hash("b578e428b348c08c", 3, "choose") == 13590212756420253329


def test_keyed_hash_is_even_and_independent_of_seed_and_purpose() -> None:
    ids = [text_id(text) for text in documents(4000)]
    for seed, purpose in [(0, "cut"), (1, "cut"), (0, "shuffle")]:
        assert sum(falls_in_share(row_id, 0.25, seed, purpose) for row_id in ids) == pytest.approx(1000, abs=90)
    both = sum(falls_in_share(i, 0.25, 0, "cut") and falls_in_share(i, 0.25, 1, "cut") for i in ids)
    assert both == pytest.approx(250, abs=50)


def test_sort_keys_fit_a_signed_column() -> None:
    assert all(0 <= sort_key(text_id(text), 5) < 2**63 for text in sentences())


# Reading


def stream(data: bytes) -> pa.NativeFile:
    return pa.PythonFile(io.BytesIO(data), mode="r")


def read(data: bytes, name: str, column: str = "text") -> list[str]:
    """What a corpus reads of a file of these bytes; its format is the suffix of its name."""
    form = {"txt": "text"}.get(name.split(".")[1], name.split(".")[1])
    source = Source.model_validate({"path": name, "format": form, "column": column})
    return texts_and_reasons(read_texts(stream(data), name, source))


def texts_and_reasons(tables: Iterable[pa.Table]) -> list[str]:
    rows = [row for table in tables for row in table.to_pylist()]
    return [row["text"] if row["dropped"] is None else f"<{row['dropped']}>" for row in rows]


def test_clean_strips_and_gives_a_reason_for_every_row_without_text() -> None:
    table = clean(["  The ferry.\t", None, "", " \n", 7, ["a"], "\ud83d"])
    assert texts_and_reasons([table]) == [
        "The ferry.", "<null>", "<empty>", "<empty>", "<not_text>", "<not_text>", "<not_text>"
    ]  # fmt: skip


@pytest.mark.parametrize("chunk_bytes", [1, 5, 64, 4096])
def test_lines_are_the_same_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    monkeypatch.setattr(reader, "CHUNK_BYTES", chunk_bytes)
    data = "first\r\nzwölf Boxkämpfer\n\nnot\u2028split\x0chere\nlast".encode()
    assert read(data, "x.txt") == ["first", "zwölf Boxkämpfer", "<empty>", "not\u2028split\x0chere", "last"]


def test_jsonl_takes_the_key_and_passes_over_blank_lines() -> None:
    rows = [{"body": "one"}, {"title": "no body"}, {"body": 3}, {"body": None}, {"body": " "}]
    data = "\n\n".join(json.dumps(row) for row in rows).encode("utf-8-sig")  # with a byte order mark, as some write
    assert read(data, "x.jsonl", "body") == ["one", "<null>", "<not_text>", "<null>", "<empty>"]


@pytest.mark.parametrize("chunk_bytes", [8, 4096])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut of', r"x.jsonl: line 3: not JSON: Unterminated"),
        (b'{"text": ' + b"9" * 5000 + b"}", r"x.jsonl: line 3: not JSON: Exceeds the limit"),
        (b"[" * 100_000, r"x.jsonl: line 3: not JSON"),
        (b'["text"]', r"x.jsonl: line 3: a JSON list, not an object"),
        ("zwölf".encode("latin-1"), r"x.jsonl: line 3: not UTF-8; fix the file"),
    ],
)
def test_a_broken_line_is_named(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, line: bytes, message: str) -> None:
    monkeypatch.setattr(reader, "CHUNK_BYTES", chunk_bytes)
    data = b'{"text": "one"}\n{"text": "two"}\n' + line + b'\n{"text": "four"}\n'
    with pytest.raises(ConfigError, match=message):
        read(data, "x.jsonl")


def test_csv_keeps_quoted_line_feeds_and_numbers_as_text() -> None:
    data = b'id,text,lang\n1,"two\nlines, one text",en\n2,1984,en\n3,,en\n'
    assert read(data, "x.csv") == ["two\nlines, one text", "1984", "<empty>"]


def test_a_stray_quote_in_csv_is_part_of_the_text() -> None:
    assert read(b'id,text\n1,"ab"c\n2,a "b"\n', "x.csv") == ["abc", 'a "b"']


def test_broken_csv_is_named() -> None:
    with pytest.raises(ConfigError, match=r"x.csv: not CSV with a column 'text' \(CSV parse error.* got 3"):
        read(b"id,text\n1,one\n2,two,three\n", "x.csv")


# Augmentation


def test_sentences_join_to_the_text_they_came_from() -> None:
    assert "".join(split_sentences(PARAGRAPH)) == PARAGRAPH
    assert [sentence.strip() for sentence in split_sentences(PARAGRAPH)] == [
        "The ferry was late.",
        '"Nobody knows why!"',
        "said the harbour master.",
        "Was it the fog?",
        "Perhaps…",
        "The lamps were lit at 5.30 p.m.",
        "and we went home (slowly.)",
        "Next day it came.",
        "Nobody was on board.",
    ]


def test_sentences_end_at_full_width_marks_without_white_space() -> None:
    assert split_sentences("船が遅れた。なぜか?誰も知らない。") == ["船が遅れた。", "なぜか?誰も知らない。"]


def test_cut_loses_nothing_and_keeps_to_the_lengths() -> None:
    settings = Augmentation(cut_share=1.0, min_sentences=2, max_sentences=4)
    text = " ".join(sentences())
    pieces = split_into_short_texts(text, text_id(text), settings, seed=1)
    assert " ".join(pieces) == text
    lengths = [len(split_sentences(piece)) for piece in pieces]
    assert set(lengths[:-1]) == {2, 3, 4}
    assert lengths[-1] <= 4


def test_shuffled_words_are_the_same_words() -> None:
    text = " ".join(sentences()[:3])
    shuffled = shuffle_words(text, text_id(text), seed=1)
    assert shuffled != text
    assert sorted(shuffled.split()) == sorted(text.split())


def test_augmentation_depends_on_text_and_seed_alone() -> None:
    settings = Augmentation(cut_share=0.5, shuffle_share=0.5)
    made = {seed: [augment(text, text_id(text), settings, seed) for text in documents(50)] for seed in (1, 2)}
    again = [augment(text, text_id(text), settings, 1) for text in reversed(documents(50))]
    assert made[1] == again[::-1]
    assert made[1] != made[2]


def test_augmentation_takes_the_shares_asked_for() -> None:
    texts = documents(2000)
    uncut = [augment(text, text_id(text), Augmentation(cut_share=0.3, max_sentences=1), 0) == [text] for text in texts]
    assert uncut.count(False) == pytest.approx(0.3 * 2000 * 29 / 30, abs=80)  # one in thirty has one sentence only
    assert augment(PARAGRAPH, text_id(PARAGRAPH), Augmentation(), 0) == [PARAGRAPH]


# Preparing rows


def test_nothing_is_both_trained_on_and_held_out() -> None:
    # Short texts recur in many documents, so cutting makes texts that are held out as documents of their own.
    settings = corpus(holdout=0.3, augmentation=Augmentation(cut_share=1.0, max_sentences=1))
    rows, counts = prepare_rows(clean([*sentences(), *documents(100)]), settings, seed=0)
    train = {row.text for row in rows if row.part == "train"}
    held_out = {row.text for row in rows if row.part == "heldout"}
    assert train
    assert held_out
    assert not train & held_out
    assert counts["clashing"] > 0
    assert (counts["train_found"], counts["heldout_found"]) == (
        sum(row.part == "train" for row in rows), sum(row.part == "heldout" for row in rows)
    )  # fmt: skip


def test_held_out_documents_are_whole_and_do_not_change_with_the_seed() -> None:
    cleaned = clean(documents(300))
    settings = corpus(holdout=0.2, augmentation=Augmentation(cut_share=1.0, shuffle_share=1.0))
    by_seed = [[row for row in prepare_rows(cleaned, settings, seed)[0] if row.part == "heldout"] for seed in (0, 1)]
    assert by_seed[0] == by_seed[1] == heldout_rows(cleaned, settings)
    assert {row.text for row in by_seed[0]} <= set(documents(300))
    assert len(by_seed[0]) == pytest.approx(60, abs=20)


def test_counts_say_what_became_of_every_row() -> None:
    counts = prepare_rows(clean(["one", None, " ", 3, "two"]), corpus(), seed=0)[1]
    assert {name: number for name, number in counts.items() if number} == {
        "read": 5, "null": 1, "empty": 1, "not_text": 1, "train_found": 2
    }  # fmt: skip


# Mixing


def smallest(rows: Iterable[Row], seed: int, limit: int) -> np.ndarray:
    return merge_smallest([choice_hashes(rows, seed)], limit)


def rows_of(texts: Iterable[str]) -> list[Row]:
    return [Row(text_id(text), text) for text in texts]


def test_weights_use_the_scarcest_source_whole() -> None:
    sources = [Source(path=name, format="text", weight=weight) for name, weight in [("web", 0.8), ("questions", 0.2)]]
    shares = kept_shares(sources, [100_000, 1000])
    assert shares == pytest.approx([0.04, 1.0])  # 4000 and 1000 texts: 80 % and 20 %
    assert kept_shares([Source(path="web", format="text")] * 2, [10, 20]) == [1.0, 1.0]


def test_a_limit_keeps_exactly_so_many_different_texts() -> None:
    rows = rows_of([*documents(500), *documents(100)])  # a hundred of them twice
    source = Source(path="reports", format="text", limit=200)
    (bound,) = choice_bounds([source], [len(rows)], [smallest(rows, 3, 200)])
    assert len({row.id for row in chosen(rows, bound, 3)}) == 200
    (unbound,) = choice_bounds([Source(path="reports", format="text", limit=601)], [600], [smallest(rows, 3, 601)])
    assert unbound == HASH_END


def test_weights_apply_to_what_limits_leave() -> None:
    rows = rows_of(documents(800))
    sources = [
        Source(path="a", format="text", weight=1, limit=400),
        Source(path="b", format="text", weight=1),
    ]
    bounds = choice_bounds(sources, [800, 100], [smallest(rows, 0, 400), np.empty(0, dtype=np.uint64)])
    assert bounds[1] == HASH_END
    assert len(chosen(rows, bounds[0], 0)) == pytest.approx(100, abs=30)


def test_choice_does_not_follow_the_held_out_share() -> None:
    kept = [text for text in documents(2000) if choice_hash(text_id(text), 0) < HASH_END // 4]
    assert sum(is_held_out(text_id(text), 0.2) for text in kept) / len(kept) == pytest.approx(0.2, abs=0.06)


def test_weights_are_given_to_all_sources_or_to_none() -> None:
    with pytest.raises(ValidationError, match="sources questions have no weight while others have one"):
        corpus(
            sources=[
                {"path": "web.txt", "format": "text", "weight": 0.8},
                {"path": "s3://texts/questions/", "format": "parquet"},
            ]
        )


# Files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ["a.jsonl", "deep/b.jsonl", "deep/c.jsonl.gz", "deep/d.txt", "_spark/e.jsonl", ".f.jsonl"]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        opened = gzip.open if name.endswith(".gz") else open
        with opened(path, "wb") as file:
            file.write(b'{"text": "The ferry was late."}\n')
    return tmp_path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", ["a.jsonl", "deep/b.jsonl", "deep/c.jsonl.gz"]),  # a folder: its files of this format, hidden ones not
        ("deep/d.txt", ["deep/d.txt"]),  # a file named outright may be called anything
        ("*.jsonl", ["a.jsonl"]),
        ("*/[bc].jsonl*", ["deep/b.jsonl", "deep/c.jsonl.gz"]),
        ("**/*.jsonl", ["a.jsonl", "deep/b.jsonl"]),
    ],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_files_are_found(folder: Path, path: str, expected: list[str], scheme: str) -> None:
    files = find_files(Source(path=f"{scheme}{folder}/{path}", format="jsonl"))
    assert [os.path.relpath(found, folder) for found in files.paths] == expected


def test_changed_files_change_the_content(folder: Path) -> None:
    source = Source(path=str(folder), format="jsonl")
    before = find_files(source).content
    assert find_files(source).content == before
    (folder / "a.jsonl").write_text('{"text": "The ferry was early."}\n')
    assert find_files(source).content != before


def test_compressed_files_are_read(folder: Path) -> None:
    check_sources(corpus(sources=[{"path": str(folder / "deep" / "c.jsonl.gz"), "format": "jsonl"}]).sources)


def check(path: Path | str, form: str, column: str = "text") -> None:
    check_sources(corpus(sources=[{"path": str(path), "format": form, "column": column, "name": "reports"}]).sources)


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source 'reports': found no file at .*nowhere; expected a file, a glob"):
        check(tmp_path / "nowhere", "text")
    with pytest.raises(ConfigError, match=r"folder with .parquet files \(its format is parquet\)"):
        check(tmp_path, "parquet")
    with pytest.raises(ConfigError, match="pyarrow cannot open gopher://texts"):
        check("gopher://texts", "text")


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["one"], "words": [1]}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("body,words\none,1\n")
    (tmp_path / "a.jsonl").write_text('{"body": "one", "words": 1}\n')
    for form in ("parquet", "csv", "jsonl"):
        check(tmp_path / f"a.{form}", form, column="body")
        with pytest.raises(ConfigError, match=f"a.{form} has no column 'text', it has body, words; change the"):
            check(tmp_path / f"a.{form}", form)
    with pytest.raises(ConfigError, match=r"column 'words' of .*a.parquet holds int64, expected text"):
        check(tmp_path / "a.parquet", "parquet", column="words")


def test_a_wrong_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "reports.dat"
    path.write_bytes("zwölf Boxkämpfer\n".encode("latin-1"))
    for form in ("parquet", "jsonl", "text"):
        with pytest.raises(ConfigError, match=r"reports.dat.*change.* format|reports.dat.*change the source's format"):
            check(path, form)


# Shards


def shard_table(texts: list[str], prompt: str | None = "s2p_query") -> pa.Table:
    return pa.table({"id": [text_id(t) for t in texts], "text": texts, "prompt": [prompt] * len(texts)}, SHARD_SCHEMA)


def test_a_shard_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = shard_table(documents(20), prompt=None)
    shard = write_shard(table, tmp_path, "train")
    assert shard.file == f"train/{shard.sha256[:16]}.parquet"
    assert shard.rows == 20
    assert read_shard(tmp_path / shard.file).equals(table)
    assert write_shard(table, tmp_path, "train") == shard
    assert [path.name for path in (tmp_path / "train").iterdir()] == [f"{shard.sha256[:16]}.parquet"]


def test_different_rows_have_different_content_hashes() -> None:
    tables = [
        shard_table(["ab", "c"]),
        shard_table(["a", "bc"]),
        shard_table(["c", "ab"]),
        shard_table(["ab", "c"], prompt=None),
        shard_table(["ab", "c"], prompt=""),
    ]
    assert len({content_hash(table) for table in tables}) == len(tables)


def test_a_folder_without_manifest_is_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found no manifest.json in .*; expected prepared data"):
        load_manifest(tmp_path, CorpusManifest)


def test_a_manifest_of_another_version_is_told_and_not_misread(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"fingerprint": "a", "colour": "red"}')
    with pytest.raises(ConfigError, match=r"manifest.json is damaged or of another version .* delete .* again"):
        load_manifest(tmp_path, CorpusManifest)
