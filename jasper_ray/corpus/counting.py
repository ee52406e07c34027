"""The first pass over a corpus: how many texts each source has, and what became of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from jasper_ray.corpus.reading import BATCH_ROWS, read_source
from jasper_ray.corpus.rows import prepare_rows, smallest_hashes
from jasper_ray.corpus.settings import Corpus
from jasper_ray.sources.files import SourceFiles

COUNTS = ("read", "null", "empty", "not_text", "clashing", "train_found", "heldout_found", "bytes")
"""What is counted of a source; `bytes` are those its training texts take on their way through the sort."""

_ROW_BYTES = 48
"""What a row of the sort holds beside its text."""

_MERGE_AT = 1 << 20
"""Hashes gathered before they are merged: 8 MB of them."""


@dataclass(frozen=True)
class SourceReport:
    """What the first pass learned of one source."""

    counts: dict[str, int]
    """By the names in `COUNTS`."""
    smallest: np.ndarray
    """Its smallest different choice hashes, sorted, uint64 [<= limit]; empty if the source has no limit."""

    @property
    def found(self) -> int:
        """Texts, held-out ones included."""
        return self.counts["train_found"] + self.counts["heldout_found"]


def count_sources(corpus: Corpus, files: Sequence[SourceFiles], seed: int) -> list[SourceReport]:
    """Read every source once, one after the other, and report on it in the order of `corpus.sources`."""
    return [_count_source(corpus, index, found, seed) for index, found in enumerate(files)]


def _count_source(corpus: Corpus, index: int, files: SourceFiles, seed: int) -> SourceReport:
    source = corpus.sources[index]
    limit = source.limit or 0
    batches = read_source(source, files).map_batches(
        report_batch,
        fn_kwargs={"corpus": corpus, "seed": seed, "limit": limit},
        batch_size=BATCH_ROWS,
        batch_format="pyarrow",
    )
    counts: Counter[str] = Counter()
    hashes = _counted(batches.iter_batches(batch_size=None, batch_format="pyarrow"), counts)
    smallest = merge_smallest(hashes, limit)
    return SourceReport({name: counts[name] for name in COUNTS}, smallest)


def report_batch(cleaned: pa.Table, corpus: Corpus, seed: int, limit: int) -> pa.Table:
    """One row: the counts of a batch of cleaned texts, and its `limit` smallest choice hashes."""
    rows, counts = prepare_rows(cleaned, corpus, seed)
    counts["bytes"] = sum(_ROW_BYTES + len(row.text.encode()) for row in rows if not row.held_out)
    smallest = smallest_hashes(rows, seed, limit) if limit else np.empty(0, dtype=np.uint64)
    columns = {name: pa.array([counts[name]], pa.int64()) for name in COUNTS}
    return pa.table({**columns, "smallest": pa.array([smallest], pa.list_(pa.uint64()))})


def _counted(reports: Iterable[pa.Table], counts: Counter[str]) -> Iterator[np.ndarray]:
    """The hashes of each batch of reports, while its numbers are added to `counts`."""
    for table in reports:
        counts.update({name: sum(table[name].to_pylist()) for name in COUNTS})
        yield table["smallest"].combine_chunks().flatten().to_numpy()


def merge_smallest(batches: Iterable[np.ndarray], limit: int) -> np.ndarray:
    """The `limit` smallest different values of all `batches`, sorted, in memory for about `limit` of them."""
    pending = [np.empty(0, dtype=np.uint64)]
    for batch in batches:
        pending.append(batch)
        if sum(map(len, pending)) > 2 * limit + _MERGE_AT:
            pending = [np.unique(np.concatenate(pending))[:limit]]
    return np.unique(np.concatenate(pending))[:limit]
