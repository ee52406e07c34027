"""From cleaned texts to corpus rows: hold out, augment, and choose by hash."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from jasper_ray.corpus.augmentation import augment
from jasper_ray.corpus.settings import Corpus
from jasper_ray.sources.hashing import HASH_END, choice_hash, is_held_out, text_id


class Row(NamedTuple):
    """One text of the corpus, before mixing."""

    id: str
    text: str
    held_out: bool


class Prepared(NamedTuple):
    """The rows of a batch, and what became of its documents."""

    rows: list[Row]
    counts: Counter[str]
    """read, the reasons of `sources.rows.clean`, clashing, train_found, heldout_found."""


def prepare_rows(cleaned: pa.Table, corpus: Corpus, seed: int) -> Prepared:
    """The corpus rows of a table of cleaned texts (`sources.rows.CLEAN_SCHEMA`).

    A document is held out if the hash of its text falls into the corpus' `holdout` share; it is never augmented. All
    others are training documents and may be augmented; a text made by augmentation whose own hash falls into the share
    is dropped (`clashing`). So no text is ever both trained on and held out, whatever the sources, order or seed.
    """
    made: list[Row] = []
    for document in cleaned["text"].drop_null().to_pylist():
        made.extend(_document_rows(document, corpus, seed))
    rows = [row for row in made if row.held_out == is_held_out(row.id, corpus.holdout)]
    heldout_found = sum(row.held_out for row in rows)
    counts = Counter(reason for reason in cleaned["dropped"].to_pylist() if reason is not None)
    counts.update(
        read=len(cleaned),
        clashing=len(made) - len(rows),
        heldout_found=heldout_found,
        train_found=len(rows) - heldout_found,
    )
    return Prepared(rows, counts)


def _document_rows(document: str, corpus: Corpus, seed: int) -> list[Row]:
    """The document itself if it is held out, else the training texts made of it, clashing ones among them."""
    document_id = text_id(document)
    if is_held_out(document_id, corpus.holdout):
        return [Row(document_id, document, True)]
    texts = augment(document, document_id, corpus.augmentation, seed)
    return [Row(text_id(text), text, False) for text in texts]


def heldout_rows(cleaned: pa.Table, corpus: Corpus) -> list[Row]:
    """The held-out rows among those of `prepare_rows`, without the work on the others."""
    documents = [(text_id(document), document) for document in cleaned["text"].drop_null().to_pylist()]
    return [Row(row_id, document, True) for row_id, document in documents if is_held_out(row_id, corpus.holdout)]


def smallest_hashes(rows: Iterable[Row], seed: int, limit: int) -> np.ndarray:
    """The `limit` smallest different choice hashes of `rows`, sorted, as uint64 [<= limit]."""
    return np.unique(np.array([choice_hash(row.id, seed) for row in rows], dtype=np.uint64))[:limit]


def chosen(rows: Iterable[Row], bound: int, seed: int) -> list[Row]:
    """The rows whose choice hash lies below `bound` (see `mixing.choice_bounds`)."""
    return [row for row in rows if bound == HASH_END or choice_hash(row.id, seed) < bound]
