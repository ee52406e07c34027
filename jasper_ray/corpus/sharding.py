"""Rows of any data kind on Ray Data: scanned, sorted by hash, and written as shards of equal size.

A row is a text or a pair, that is a caption with its image. `DataKind` says what differs between the two; `texts` and
`images` have one each.
"""

from __future__ import annotations

import dataclasses
import json
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from ray.data import DataContext

from jasper_ray.corpus.settings import Corpus, Images
from jasper_ray.corpus.shards import Manifest, Shard, read_shard, write_shard
from jasper_ray.sources.files import SourceFiles
from jasper_ray.sources.hashing import sort_key

PARTS = ("train", "heldout", "rejected")
"""Parts of prepared data, in the order of a sort that writes all of them."""

ROW_SCHEMA = pa.schema(
    [
        ("key", pa.int64()),
        ("source", pa.int32()),
        ("id", pa.string()),
        ("text", pa.string()),
        ("part", pa.string()),
        ("image", pa.binary()),
        ("origin", pa.string()),
        ("reason", pa.string()),
        ("counts", pa.list_(pa.int64())),
    ]
)
"""A `Row` in the sort, with its sort key, the index of its source, and the number of equal rows of each source that it
stands for."""

SORT_BYTES = 64 << 20
"""Size of one partition of the sort, about: half a block of Ray Data, so that a partition stays one block."""

KEY_BITS = 63
PART_BITS = 2
"""Upper bits of the sort key that hold the part, in a pass that writes several."""


class Row(NamedTuple):
    """One row of a source, on its way to a shard."""

    id: str
    text: str | None
    part: str = "train"
    image: bytes | None = None
    origin: str | None = None
    """Place of a pair in its source."""
    reason: str | None = None
    """Reason to reject a pair, which then has neither text nor image."""


DataSettings = TypeVar("DataSettings", Corpus, Images)


@dataclass(frozen=True)
class Plan(Generic[DataSettings]):
    """Everything that decides which rows come out: enough to make them anywhere, batch by batch."""

    kind: DataKind[DataSettings, Any]
    settings: DataSettings
    seed: int
    files: tuple[SourceFiles, ...]
    bounds: tuple[int, ...] = ()
    """For each source, the number that the choice hash of a chosen row stays below."""

    def for_tasks(self, source: int) -> dict[str, Any]:
        """Return arguments of tasks on source number `source`, without lists of paths, which may be long."""
        files = dataclasses.replace(self.files[source], paths=())
        return {"plan": dataclasses.replace(self, files=()), "files": files, "source": source}


class Written:
    """Rows and shards that were written; arrays of counts have an entry for each source."""

    def __init__(self, num_sources: int) -> None:
        self.train: list[Shard] = []
        self.heldout: list[Shard] = []
        self.chosen = {part: np.zeros(num_sources, np.int64) for part in PARTS}
        """Chosen rows, duplicates included."""
        self.distinct = {part: np.zeros(num_sources, np.int64) for part in PARTS}
        """Distinct rows, held-out ones beyond `heldout_limit` included."""
        self.kept_heldout = np.zeros(num_sources, np.int64)
        """Rows in the held-out shards."""
        self.rejected: list[Counter[str]] = [Counter() for _ in range(num_sources)]
        """Rejected pairs, by reason."""


class DataKind(ABC, Generic[DataSettings, Manifest]):
    """A kind of rows: how its sources are read, and which rows come out of them."""

    setting: str
    """Key of its settings, in a recipe and in its manifest."""
    how_to_run: frozenset[str] = frozenset()
    """Settings that do not change which rows come out."""
    unit: str
    """Name of a row, in messages."""
    places: str
    """Names of the settings that say where rows are, in messages."""
    manifest: type[Manifest]
    columns: tuple[str, ...]
    """Columns of its shards."""
    batch_rows: int
    """Rows that a task handles together; bounds a worker's memory."""
    counts_all: bool
    """True if all sources are counted before rows are chosen, not only those with a limit."""
    passes: tuple[tuple[str, ...], ...]
    """Parts that each writing pass over the sources writes."""

    @abstractmethod
    def find(self, source: Any) -> SourceFiles:
        """Find the files of a source."""

    @abstractmethod
    def scan(self, source: Any, files: SourceFiles) -> ray.data.Dataset:
        """Return a lazy dataset with a row for every row of the source's files."""

    @abstractmethod
    def count(
        self, batch: pa.Table, plan: Plan[DataSettings], files: SourceFiles, source: int
    ) -> tuple[Counter[str], np.ndarray]:
        """Return counts of a scanned batch, and the choice hashes of its rows, uint64, if the source has a limit.

        `read` counts rows; `bytes` is their size in the sort, by default that of the files.
        """

    @abstractmethod
    def rows(
        self,
        batch: pa.Table,
        plan: Plan[DataSettings],
        files: SourceFiles,
        source: int,
        parts: tuple[str, ...],
    ) -> list[Row]:
        """Return the chosen rows of a scanned batch that belong to one of the parts."""

    @abstractmethod
    def summary(self, plan: Plan[DataSettings], counts: Sequence[Counter[str]], written: Written) -> dict[str, Any]:
        """Return the manifest's counts; `counts` sums up what `count` gave of each source."""

    def check_source(self, source: Any, files: SourceFiles) -> None:
        """Refuse a source whose first rows cannot be read."""

    def check_rejected(self, settings: DataSettings, manifest: Manifest, folder: Path) -> None:
        """Refuse prepared data of which more was rejected than the settings allow."""


def write_shards(plan: Plan[Any], size: int, folder: Path, rejected: IO[str]) -> Written:
    """Write all chosen rows below `folder`, and a line into `rejected` for each rejected pair.

    `size` is about the bytes of all rows. Equal rows have equal keys, so they meet in one partition of the sort, where
    all but one are dropped. (Only rows so large that a few copies outgrow a block of Ray Data could stay more than
    once.) Held-out rows beyond `heldout_limit` are written and removed again, as their number is not known before.
    """
    written = Written(len(plan.files))
    for parts in plan.kind.passes:
        if parts != ("heldout",) or plan.settings.holdout:
            collect(sorted_records(plan, size, folder, parts), written, plan, folder, rejected)
    return written


def sorted_records(plan: Plan[Any], size: int, folder: Path, parts: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Write the rows of `parts`, sorted by hash, and return the records of `write_batch` in the order of the sort."""
    settings = plan.settings
    first, *others = [
        plan.kind.scan(source, files).map_batches(
            make_rows,
            fn_kwargs={**plan.for_tasks(index), "parts": parts},
            batch_size=plan.kind.batch_rows,
            batch_format="pyarrow",
        )
        for index, (source, files) in enumerate(zip(settings.sources, plan.files, strict=True))
    ]
    rows = first.union(*others) if others else first
    distinct = rows.sort("key", boundaries=boundaries(parts, size, settings.holdout)).map_batches(
        drop_duplicates, batch_size=None, batch_format="pyarrow"
    )
    distinct.context.execution_options.preserve_order = True  # else shards would cut the order at random places
    records = distinct.repartition(target_num_rows_per_block=settings.shard_rows, strict=True).map_batches(
        write_batch,
        fn_kwargs={"plan": dataclasses.replace(plan, files=()), "folder": folder},
        batch_size=settings.shard_rows,
        batch_format="pyarrow",
    )
    for table in records.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from map(json.loads, table["record"].to_pylist())


def make_rows(batch: pa.Table, plan: Plan[Any], files: SourceFiles, source: int, parts: tuple[str, ...]) -> pa.Table:
    """Return the distinct chosen rows (`ROW_SCHEMA`) of a scanned batch of source number `source`."""
    rows = plan.kind.rows(batch, plan, files, source, parts)
    if not rows:
        return ROW_SCHEMA.empty_table()
    counts = [int(index == source) for index in range(len(plan.settings.sources))]
    columns = {
        "key": [row_key(row, parts, plan.seed) for row in rows],
        "source": [source] * len(rows),
        "counts": [counts] * len(rows),
        **dict(zip(Row._fields, map(list, zip(*rows, strict=True)), strict=True)),
    }
    return drop_duplicates(pa.table(columns, schema=ROW_SCHEMA))


def row_key(row: Row, parts: tuple[str, ...], seed: int) -> int:
    """Return the number that rows are sorted by: part, then hash."""
    key = sort_key(row.id, seed)
    return key if len(parts) == 1 else parts.index(row.part) << (KEY_BITS - PART_BITS) | key >> PART_BITS


def boundaries(parts: tuple[str, ...], size: int, holdout: float) -> list[int]:
    """Return the keys at which partitions of the sort begin; hashes are spread evenly, so they are known beforehand."""
    block = DataContext.get_current().target_max_block_size
    partition_bytes = min(SORT_BYTES, block // 2) if block else SORT_BYTES
    shares = {"train": 1 - holdout, "heldout": holdout, "rejected": 1 / 64}  # rejected rows have no images
    span = 1 << (KEY_BITS if len(parts) == 1 else KEY_BITS - PART_BITS)
    starts = []
    for number, part in enumerate(parts):
        partitions = max(2, math.ceil(size * shares[part] / partition_bytes))
        starts += [number * span + span * index // partitions for index in range(partitions)]
    return starts[1:]


def drop_duplicates(rows: pa.Table) -> pa.Table:
    """Sort rows by key and keep one of those with equal ids: that of the earliest source, which counts them all.

    Rejected pairs are listed one by one, so all of them stay.
    """
    if len(rows) == 0:
        return ROW_SCHEMA.empty_table()
    by = [(name, "ascending") for name in ("key", "id", "source", "origin", "reason")]
    order = pc.sort_indices(rows.select([name for name, _ in by]), sort_keys=by).to_numpy()
    ids, rejected = rows["id"].to_numpy()[order], pc.is_valid(rows["reason"]).to_numpy()[order]
    starts = np.flatnonzero(np.append(True, (ids[1:] != ids[:-1]) | rejected[1:]))
    counts_NS = rows["counts"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)[order]
    sums_NS = np.add.reduceat(counts_NS, starts)
    ends = np.arange(0, sums_NS.size + 1, sums_NS.shape[1], dtype=np.int32)
    kept = rows.take(pa.array(order[starts]))
    sums = pa.ListArray.from_arrays(ends, sums_NS.reshape(-1))
    return kept.set_column(kept.schema.get_field_index("counts"), "counts", sums)


def write_batch(rows: pa.Table, plan: Plan[Any], folder: Path) -> pa.Table:
    """Write a stretch of the sorted rows, a shard for each part in it; return a row with the JSON of its record."""
    record: dict[str, Any] = {}
    for part in PARTS:
        found = rows.filter(pc.equal(rows["part"], part))
        if len(found) == 0:
            continue
        sources = found["source"].to_pylist()
        record[part] = {"sources": sources, "counts": np.sum(found["counts"].to_pylist(), axis=0).tolist()}
        if part == "rejected":
            record[part]["rows"] = found.select(["origin", "reason"]).to_pylist()
        else:
            prompts = pa.array([plan.settings.sources[index].prompt for index in sources], pa.string())
            table = found.append_column("prompt", prompts).select(plan.kind.columns)
            record[part]["shard"] = write_shard(table, folder, part).model_dump()
    return pa.table({"record": [json.dumps(record)]})


def collect(
    records: Iterator[dict[str, Any]],
    written: Written,
    plan: Plan[Any],
    folder: Path,
    rejected: IO[str],
) -> None:
    """Add the records of a pass to `written`, and cut held-out rows off at their limit."""
    sources = plan.settings.sources
    left = plan.settings.heldout_limit
    for record in records:
        for part, found in record.items():
            written.chosen[part] += found["counts"]
            written.distinct[part] += np.bincount(found["sources"], minlength=len(sources))
        if train := record.get("train"):
            written.train.append(Shard(**train["shard"]))
        if heldout := record.get("heldout"):
            written.kept_heldout += np.bincount(heldout["sources"][:left], minlength=len(sources))
            shard = truncate_shard(Shard(**heldout["shard"]), left, folder)
            written.heldout += [shard] if shard else []
            left -= shard.rows if shard else 0
        unusable = record.get("rejected", {"sources": [], "rows": []})
        for index, row in zip(unusable["sources"], unusable["rows"], strict=True):
            written.rejected[index][row["reason"]] += 1
            rejected.write(json.dumps({"source": sources[index].title, **row}, ensure_ascii=False) + "\n")


def truncate_shard(shard: Shard, rows: int, folder: Path) -> Shard | None:
    """Replace a held-out shard by one of its first `rows` rows; return None if none is left."""
    if shard.rows <= rows:
        return shard
    path = folder / shard.file
    truncated = write_shard(read_shard(path).slice(0, rows), folder, "heldout") if rows else None
    path.unlink()
    return truncated
