"""Texts as a kind of data: read and cleaned, held out, cut into short texts, shuffled, and chosen by hash.

Their sources are read once to count, since weights need the number of texts of every source, and the manifest the
reasons of dropped rows; once more to write the training texts, and a third time for held-out texts, if there are any:
these are a small share, and a pass of their own keeps their shards full.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data.datasource import FileBasedDatasource

from jasper_ray.corpus.kinds import DataKind, Plan, Row, SourceTask, Written
from jasper_ray.corpus.settings import Augmentation, Corpus
from jasper_ray.corpus.shards import SHARD_SCHEMA, CorpusManifest, SourceCount
from jasper_ray.sources.checks import check_source
from jasper_ray.sources.files import SourceFiles, find_files
from jasper_ray.sources.hashing import HASH_END, choice_hash, falls_in_share, generator, is_held_out, text_id
from jasper_ray.sources.rows import clean_column, read_texts
from jasper_ray.sources.settings import Source

COUNTS = ("read", "null", "empty", "not_text", "clashing", "train_found", "heldout_found")
"""Counts of a source before limit and weight, as `SourceCount` explains them."""

ROW_BYTES = 72
"""Size of a row in the sort, without its text."""

SENTENCE_END = re.compile(
    r"(?<=[.!?…])\s+"
    r"|(?<=[.!?…][\"'”’)\]])\s+"
    r"|(?<=[\u3002\uff01\uff1f])"  # full-width full stop, exclamation mark, question mark
    r"|\s*\n\s*"
)


class TextStream(FileBasedDatasource):
    """Text, JSONL and CSV files, a few megabytes at a time.

    Ray's `read_text` and `read_json` load a file whole, split lines at rare separators too, and fail without a line
    number.
    """

    def __init__(self, source: Source, files: SourceFiles) -> None:
        super().__init__(list(files.paths), filesystem=files.filesystem)
        self._source = source

    def _read_stream(self, f: pa.NativeFile, path: str) -> Iterator[pa.Table]:
        yield from read_texts(f, path, self._source)


class TextKind(DataKind[Corpus, CorpusManifest]):
    """Texts, whose batches are cleaned texts (`sources.rows.CLEAN_SCHEMA`)."""

    setting = "corpus"
    unit = "text"
    places = "path or column"
    manifest = CorpusManifest
    columns = tuple(SHARD_SCHEMA.names)
    batch_rows = 1024
    counts_all = True
    counts_by_source = False
    passes = (("train",), ("heldout",))

    def find(self, source: Source) -> SourceFiles:
        return find_files(source)

    def check_source(self, source: Source, files: SourceFiles) -> None:
        check_source(source, files)

    def scan(self, source: Source, files: SourceFiles) -> ray.data.Dataset:
        """Return the cleaned texts; the files must have the same paths on every node of the cluster."""
        if source.format != "parquet":
            return ray.data.read_datasource(TextStream(source, files))
        table = ray.data.read_parquet(
            list(files.paths), filesystem=files.filesystem, partitioning=None, file_extensions=None
        )
        return table.select_columns([source.column]).map_batches(
            clean_column, fn_kwargs={"column": source.column}, batch_size=self.batch_rows, batch_format="pyarrow"
        )

    def count(self, batch: pa.Table, task: SourceTask[Corpus]) -> tuple[Counter[str], np.ndarray]:
        rows, counts = prepare_rows(batch, task.settings, task.seed)
        counts["bytes"] = sum(ROW_BYTES + len((row.text or "").encode()) for row in rows)
        return counts, choice_hashes(rows if task.limit else [], task.seed)

    def rows(self, batch: pa.Table, task: SourceTask[Corpus]) -> list[Row]:
        if task.parts == ("heldout",):
            made = heldout_rows(batch, task.settings)
        else:
            made = [row for row in prepare_rows(batch, task.settings, task.seed)[0] if row.part in task.parts]
        return chosen(made, task.bound, task.seed)

    def summary(self, plan: Plan[Corpus], counts: Sequence[Counter[str]], written: Written) -> dict[str, Any]:
        sources = tuple(
            SourceCount(
                name=source.title,
                content=plan.files[index].content,
                kept_share=plan.bounds[index] / HASH_END,
                train=int(written.distinct["train"][index]),
                heldout=int(written.kept_heldout[index]),
                **{name: counts[index][name] for name in COUNTS},
            )
            for index, source in enumerate(plan.settings.sources)
        )
        chosen, distinct = (int(numbers["train"].sum()) for numbers in (written.chosen, written.distinct))
        found = sum(count["train_found"] for count in counts)
        return {"sources": sources, "duplicates": chosen - distinct, "left_out": found - chosen}


TEXTS = TextKind()


def prepare_rows(cleaned: pa.Table, corpus: Corpus, seed: int) -> tuple[list[Row], Counter[str]]:
    """Return the rows of a table of cleaned texts (`sources.rows.CLEAN_SCHEMA`), and their `COUNTS`.

    A document is held out if the hash of its text falls into the corpus' `holdout` share; it is never augmented. All
    others are training documents and may be augmented; a text made by augmentation whose own hash falls into the share
    is dropped (`clashing`). So no text is both trained on and held out, for any sources, order and seed.
    """
    made: list[Row] = []
    for document in cleaned["text"].drop_null().to_pylist():
        row_id = text_id(document)
        if is_held_out(row_id, corpus.holdout):
            made.append(Row(row_id, document, "heldout"))
        else:
            made += [Row(text_id(text), text) for text in augment(document, row_id, corpus.augmentation, seed)]
    rows = [row for row in made if (row.part == "heldout") == is_held_out(row.id, corpus.holdout)]
    heldout_found = sum(row.part == "heldout" for row in rows)
    counts = Counter(reason for reason in cleaned["dropped"].to_pylist() if reason is not None)
    counts.update(
        read=len(cleaned),
        clashing=len(made) - len(rows),
        heldout_found=heldout_found,
        train_found=len(rows) - heldout_found,
    )
    return rows, counts


def heldout_rows(cleaned: pa.Table, corpus: Corpus) -> list[Row]:
    """Return the held-out rows among those of `prepare_rows`, without the work on the others."""
    documents = [(text_id(document), document) for document in cleaned["text"].drop_null().to_pylist()]
    return [Row(row_id, document, "heldout") for row_id, document in documents if is_held_out(row_id, corpus.holdout)]


def choice_hashes(rows: Iterable[Row], seed: int) -> np.ndarray:
    """Return the numbers that limits and weights choose rows by, as uint64."""
    return np.array([choice_hash(row.id, seed) for row in rows], dtype=np.uint64)


def chosen(rows: Iterable[Row], bound: int, seed: int) -> list[Row]:
    """Return the rows whose choice hash is below `bound` (see `prepare.choice_bounds`)."""
    return [row for row in rows if bound == HASH_END or choice_hash(row.id, seed) < bound]


def augment(document: str, row_id: str, augmentation: Augmentation, seed: int) -> list[str]:
    """Return the training texts of a document: itself, or its short texts; some of them with their words shuffled.

    The decision for each text depends on its id and the seed alone (Jasper and Stella, section 3.2).
    """
    cut = falls_in_share(row_id, augmentation.cut_share, seed, "cut")
    texts = split_into_short_texts(document, row_id, augmentation, seed) if cut else [document]
    if augmentation.shuffle_share == 0:
        return texts
    return [
        shuffle_words(text, text_id(text), seed)
        if falls_in_share(text_id(text), augmentation.shuffle_share, seed, "shuffle")
        else text
        for text in texts
    ]


def split_into_short_texts(text: str, row_id: str, augmentation: Augmentation, seed: int) -> list[str]:
    """Split a text into consecutive texts of `min_sentences` to `max_sentences` sentences; nothing is lost."""
    sizes = generator(row_id, seed, "cut sizes")
    sentences = split_sentences(text)
    pieces = []
    while sentences:
        size = sizes.randint(augmentation.min_sentences, augmentation.max_sentences)
        pieces.append("".join(sentences[:size]).strip())
        sentences = sentences[size:]
    return [piece for piece in pieces if piece]


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences, each with the white space that follows it; joined they give the text again.

    A sentence ends at `.`, `!`, `?` or `…` (and a closing quote or bracket) before white space, at their full-width
    forms, and at a line break. The splitter knows no abbreviations: "Dr. Smith" is two sentences. For cutting texts to
    varied lengths this is enough.
    """
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    starts = [0, *ends]
    pieces = [text[start:end] for start, end in zip(starts, [*ends, len(text)], strict=True)]
    return [piece for piece in pieces if piece]


def shuffle_words(text: str, row_id: str, seed: int) -> str:
    """Join the words of a text, which white space separates, in random order with single spaces."""
    words = text.split()
    generator(row_id, seed, "shuffle order").shuffle(words)
    return " ".join(words)
