"""Rows of any kind on Ray Data: made from scanned batches, sorted by hash, and written as shards of equal size."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.data import DataContext, Dataset

from jasper_ray.config import ConfigError
from jasper_ray.corpus.kinds import PARTS, Plan, Row, SourceTask, Written
from jasper_ray.corpus.shards import Shard, read_shard, write_shard
from jasper_ray.sources.hashing import sort_key

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
"""A `Row` in the sort, with its sort key, the index of its source, and the number of equal rows that it represents: of
each source, or a single number for all of them (`DataKind.counts_by_source`)."""

SORT_BYTES = 64 << 20
"""Size of one partition of the sort, about: half a block of Ray Data, so that a partition stays one block."""

KEY_BITS = 63
PART_BITS = 2
"""Upper bits of the sort key that hold the part, in a pass that writes several."""


def write_shards(plan: Plan[Any], size: int, folder: Path, rejected: IO[str]) -> Written:
    """Write all chosen rows below `folder`, and a line into `rejected` for each rejected pair.

    `size` is about the bytes of all rows. Equal rows have equal keys, so they meet in one partition of the sort, where
    all but one are dropped. (Only rows so large that a few copies outgrow a block of Ray Data could stay more than
    once.) A pass for held-out rows alone needs no sort: the first `heldout_limit` of them are merged here.
    """
    written = Written(len(plan.files))
    for parts in plan.kind.passes:
        if parts != ("heldout",):
            collect(sorted_records(plan, size, folder, parts), written, plan, folder, rejected)
        elif plan.settings.holdout:
            collect(heldout_records(plan, folder), written, plan, folder, rejected)
    return written


def sorted_records(plan: Plan[Any], size: int, folder: Path, parts: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Write the rows of `parts`, sorted by hash, and return the records of `write_batch` in the order of the sort."""
    settings = plan.settings
    distinct = (
        chosen_rows(plan, parts)
        .sort("key", boundaries=boundaries(parts, size, settings.holdout))
        .map_batches(drop_duplicates, batch_size=None, batch_format="pyarrow")
    )
    distinct.context.execution_options.preserve_order = True  # else shards would cut the order at random places
    records = distinct.repartition(target_num_rows_per_block=settings.shard_rows, strict=True).map_batches(
        write_batch,
        fn_kwargs=writing(plan, folder),
        batch_size=settings.shard_rows,
        batch_format="pyarrow",
    )
    for table in records.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from map(json.loads, table["record"].to_pylist())


def heldout_records(plan: Plan[Any], folder: Path) -> Iterator[dict[str, Any]]:
    """Write the first `heldout_limit` held-out rows, and return the records of `write_batch`."""
    first = ROW_SCHEMA.empty_table()
    for rows in chosen_rows(plan, ("heldout",)).iter_batches(batch_size=None, batch_format="pyarrow"):
        first = drop_duplicates(pa.concat_tables([first, rows])).slice(0, plan.settings.heldout_limit)
    for start in range(0, len(first), plan.settings.shard_rows):
        table = write_batch(first.slice(start, plan.settings.shard_rows), **writing(plan, folder))
        yield from map(json.loads, table["record"].to_pylist())


def chosen_rows(plan: Plan[Any], parts: tuple[str, ...]) -> Dataset:
    """Return the chosen rows of `parts` of all sources."""
    first, *others = [plan.map_source(index, make_rows, bound, parts) for index, bound in enumerate(plan.bounds)]
    return first.union(*others) if others else first


def writing(plan: Plan[Any], folder: Path) -> dict[str, Any]:
    """Return the arguments of `write_batch` beside its rows."""
    return {"prompts": [s.prompt for s in plan.settings.sources], "columns": plan.kind.columns, "folder": folder}


def make_rows(batch: pa.Table, task: SourceTask[Any]) -> pa.Table:
    """Return the distinct chosen rows (`ROW_SCHEMA`) of a scanned batch."""
    rows = task.kind.rows(batch, task)
    if not rows:
        return ROW_SCHEMA.empty_table()
    sources = range(len(task.settings.sources)) if task.kind.counts_by_source else [task.index]
    counts = [int(index == task.index) for index in sources]
    columns = {
        "key": [row_key(row, task.parts, task.seed) for row in rows],
        "source": [task.index] * len(rows),
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


def write_batch(rows: pa.Table, prompts: Sequence[str | None], columns: Sequence[str], folder: Path) -> pa.Table:
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
            prompt = pa.array([prompts[index] for index in sources], pa.string())
            table = found.append_column("prompt", prompt).select(columns)
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
            written.chosen[part][: len(found["counts"])] += found["counts"]
            written.distinct[part] += np.bincount(found["sources"], minlength=len(sources))
        if train := record.get("train"):
            written.train.append(Shard(**train["shard"]))
        if heldout := record.get("heldout"):
            written.kept_heldout += np.bincount(heldout["sources"][:left], minlength=len(sources))
            check_visible(folder, [Shard(**heldout["shard"])])
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


def check_visible(folder: Path, shards: Sequence[Shard]) -> None:
    """Refuse a folder that the workers, which have written these shards, do not share with this process."""
    missing = [shard.file for shard in shards if not (folder / shard.file).is_file()]
    if missing:
        raise ConfigError(
            f"{len(missing)} shards written by workers cannot be seen in {folder}; "
            "choose a run folder that all nodes of the cluster share"
        )
