"""Pairs on Ray Data: read, checked, sorted by hash, and written as shards, in one pass.

The sort key's upper bits are the part that a row belongs to, so one sort puts training pairs first, then the held-out
ones, then those that were set aside, which travel without their images.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from ray.data import DataContext

from jasper_ray.corpus.counting import merge_smallest
from jasper_ray.corpus.pair_shards import PAIR_SHARD_SCHEMA, read_pair_shard, write_pair_shard
from jasper_ray.corpus.settings import Images
from jasper_ray.corpus.sharding import SORT_BYTES
from jasper_ray.corpus.shards import Shard
from jasper_ray.images.decode import fault
from jasper_ray.sources.files import SourceFiles
from jasper_ray.sources.hashing import HASH_END, image_id, is_held_out, limit_bound, pair_id, sort_key, text_id
from jasper_ray.sources.pair_settings import PairSource
from jasper_ray.sources.pairs import READ_ROWS, choices, fill_pairs, scan_pairs

PARTS = ("train", "heldout", "rejected")
"""In the order of the sort."""

ROW_SCHEMA = pa.schema(
    [
        ("key", pa.int64()),
        ("source", pa.int32()),
        ("id", pa.string()),
        ("text", pa.string()),
        ("image", pa.binary()),
        ("counts", pa.list_(pa.int64())),
        ("origin", pa.string()),
        ("reason", pa.string()),
    ]
)
"""A pair on its way to a shard: sort key, index of its source, and how many equal pairs of each source it stands for.
A pair that was set aside has a reason and neither text nor image."""

BLOCK_ROWS = 256
"""Pairs that one task decodes: some seconds of work."""

_PART_SHIFT = 61
_PART_END = 1 << _PART_SHIFT


@dataclass(frozen=True)
class PairPass:
    """Everything that decides what becomes of a pair: enough to make rows, batch by batch, anywhere."""

    images: Images
    files: tuple[SourceFiles, ...]
    seed: int
    bounds: tuple[int, ...]
    """For each source, what the choice hash of a chosen pair stays below."""


class Written:
    """What a pass has written, and what it has met; lists of counts have an entry for each source."""

    def __init__(self, num_sources: int) -> None:
        self.shards: dict[str, list[Shard]] = {"train": [], "heldout": []}
        self.chosen = [0] * num_sources
        """Pairs that limits have let through."""
        self.train = [0] * num_sources
        """Training pairs in shards."""
        self.heldout_found = [0] * num_sources
        """Distinct held-out pairs before `heldout_limit`."""
        self.heldout = [0] * num_sources
        """Held-out pairs in shards."""
        self.rejected: list[Counter[str]] = [Counter() for _ in range(num_sources)]
        """Pairs set aside, by reason."""


def count_choices(
    images: Images, files: Sequence[SourceFiles], seed: int
) -> tuple[tuple[int, ...], tuple[int | None, ...]]:
    """For each source, the bound that its limit sets, and how many pairs it has: None without a limit.

    Reads the sources that have one, and decodes nothing.
    """
    found = [_count_source(source, part, seed) for source, part in zip(images.sources, files, strict=True)]
    return tuple(bound for bound, _ in found), tuple(count for _, count in found)


def _count_source(source: PairSource, files: SourceFiles, seed: int) -> tuple[int, int | None]:
    if source.limit is None:
        return HASH_END, None
    reports = _scanned(source, files).map_batches(
        choose_batch,
        fn_kwargs={"files": _bare(files), "seed": seed, "limit": source.limit},
        batch_size=READ_ROWS,
        batch_format="pyarrow",
    )
    read: Counter[str] = Counter()
    hashes = _counted(reports.iter_batches(batch_size=None, batch_format="pyarrow"), read)
    return limit_bound(source.limit, merge_smallest(hashes, source.limit)), read["rows"]


def choose_batch(scanned: pa.Table, files: SourceFiles, seed: int, limit: int) -> pa.Table:
    """One row: how many pairs a batch has, and its `limit` smallest choice hashes."""
    smallest = np.unique(choices(fill_pairs(scanned, files), seed))[:limit]
    return pa.table({"rows": [len(scanned)], "smallest": pa.array([smallest], pa.list_(pa.uint64()))})


def _counted(reports: Iterator[pa.Table], read: Counter[str]) -> Iterator[np.ndarray]:
    for table in reports:
        read["rows"] += sum(table["rows"].to_pylist())
        yield table["smallest"].combine_chunks().flatten().to_numpy()


def write_pairs(work: PairPass, folder: Path, rejected: IO[str]) -> Written:
    """Write the shards below `folder`, and a line into `rejected` for each pair that is set aside.

    Equal pairs have equal keys, so they meet in one partition of the sort, where all but one are dropped. (Only images
    so large that a few of them outgrow a block of Ray Data could stay more than once.) Held-out pairs beyond
    `heldout_limit` are written first and removed again, as it is not known before how many there are.
    """
    first, *others = [_source_rows(work, index) for index in range(len(work.files))]
    rows = first.union(*others) if others else first
    distinct = rows.sort("key", boundaries=_boundaries(work)).map_batches(
        drop_duplicates, batch_size=None, batch_format="pyarrow"
    )
    distinct.context.execution_options.preserve_order = True  # else shards would cut the order at random places
    shard_rows = work.images.shard_rows
    records = distinct.repartition(target_num_rows_per_block=shard_rows, strict=True).map_batches(
        write_batch,
        fn_kwargs={"images": work.images, "folder": folder},
        batch_size=shard_rows,
        batch_format="pyarrow",
    )
    return _collect(_decoded(records), work.images, folder, rejected)


def _source_rows(work: PairPass, index: int) -> ray.data.Dataset:
    files = work.files[index]
    return _scanned(work.images.sources[index], files).map_batches(
        make_rows,
        fn_kwargs={
            "work": dataclasses.replace(work, files=()),
            "files": _bare(files),
            "source": index,
        },
        batch_size=READ_ROWS,
        batch_format="pyarrow",
    )


def _scanned(source: PairSource, files: SourceFiles) -> ray.data.Dataset:
    """A lazy dataset of `SCAN_SCHEMA`, one row for every pair in the files; a file is read by one task.

    It is cut into small blocks, so that the pairs of one large file are decoded by many tasks.
    """
    paths = ray.data.from_items([{"path": path} for path in files.paths], override_num_blocks=len(files.paths))
    return paths.map_batches(
        scan_batch, fn_kwargs={"source": source, "files": _bare(files)}, batch_size=1, batch_format="pyarrow"
    ).repartition(target_num_rows_per_block=BLOCK_ROWS)


def scan_batch(paths: pa.Table, source: PairSource, files: SourceFiles) -> Iterator[pa.Table]:
    """The pairs of some files, a few at a time."""
    for path in paths["path"].to_pylist():
        yield from scan_pairs(source, files, path)


def _bare(files: SourceFiles) -> SourceFiles:
    """Without the list of paths, which may be long and would travel with every task."""
    return dataclasses.replace(files, paths=())


def make_rows(scanned: pa.Table, work: PairPass, files: SourceFiles, source: int) -> pa.Table:
    """The chosen rows (`ROW_SCHEMA`) of a batch of pairs of source number `source`, each pair once."""
    pairs = fill_pairs(scanned, files)
    if work.bounds[source] < HASH_END:
        pairs = pairs.filter(pa.array(choices(pairs, work.seed) < work.bounds[source]))
    rows = [_make_row(pair, work, source) for pair in pairs.to_pylist()]
    return drop_duplicates(pa.Table.from_pylist(rows, schema=ROW_SCHEMA))


def _make_row(pair: dict[str, Any], work: PairPass, source: int) -> dict[str, Any]:
    reason = pair["reason"] or fault(pair["image"], work.images.pixel_limit)
    if reason is not None:
        part, row_id, text, image = "rejected", text_id(f"{source}:{pair['origin']}"), None, None
    else:
        text, image = pair["caption"], pair["image"]
        part = "heldout" if is_held_out(image_id(image), work.images.holdout) else "train"
        row_id = pair_id(image, text)
    counts = [int(index == source) for index in range(len(work.images.sources))]
    return {
        "key": PARTS.index(part) << _PART_SHIFT | sort_key(row_id, work.seed) >> 2,
        "source": source,
        "id": row_id,
        "text": text,
        "image": image,
        "counts": counts,
        "origin": pair["origin"],
        "reason": reason,
    }


def drop_duplicates(rows: pa.Table) -> pa.Table:
    """`rows` sorted by key, with one row left of equal pairs: the one of the earliest source, which counts them all.

    What was set aside is listed one by one, so of that everything stays.
    """
    if len(rows) == 0:
        return ROW_SCHEMA.empty_table()
    by = [(name, "ascending") for name in ("key", "id", "source", "origin", "reason")]
    order = pc.sort_indices(rows.select([name for name, _ in by]), sort_keys=by).to_numpy()
    ids, set_aside = rows["id"].to_numpy()[order], pc.is_valid(rows["reason"]).to_numpy()[order]
    starts = np.flatnonzero(np.append(True, (ids[1:] != ids[:-1]) | set_aside[1:]))
    counts_NS = rows["counts"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)[order]
    kept = rows.take(pa.array(order[starts]))
    sums = pa.array(np.add.reduceat(counts_NS, starts).tolist(), pa.list_(pa.int64()))
    return kept.set_column(kept.schema.get_field_index("counts"), "counts", sums)


def write_batch(rows: pa.Table, images: Images, folder: Path) -> pa.Table:
    """Write a stretch of the sorted rows: a shard for each part in it; one row that says what was written."""
    ends = np.searchsorted(rows["key"].to_numpy(), [_PART_END * part for part in range(len(PARTS) + 1)])
    train, heldout, rejected = (rows.slice(start, end - start) for start, end in pairwise(ends))
    record = {
        "counts": np.sum(rows["counts"].to_pylist(), axis=0).tolist(),
        "train": _write_part(train, images, folder, "train"),
        "heldout": _write_part(heldout, images, folder, "heldout"),
        "rejected": rejected.select(["source", "origin", "reason"]).to_pylist(),
    }
    return pa.table({"record": [json.dumps(record)]})


def _write_part(rows: pa.Table, images: Images, folder: Path, part: str) -> dict[str, Any] | None:
    """Shard and sources of the rows of one part, of which there may be none."""
    if len(rows) == 0:
        return None
    sources = rows["source"].to_pylist()
    prompts = pa.array([images.sources[index].prompt for index in sources], pa.string())
    table = rows.append_column("prompt", prompts).select(PAIR_SHARD_SCHEMA.names)
    return {"shard": write_pair_shard(table, folder, part).model_dump(), "sources": sources}


def _decoded(records: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    for table in records.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from map(json.loads, table["record"].to_pylist())


def _collect(records: Iterator[dict[str, Any]], images: Images, folder: Path, rejected: IO[str]) -> Written:
    """The records of `write_batch`, which come in the order of the sort; held-out pairs are cut off at their limit."""
    written = Written(len(images.sources))
    left = images.heldout_limit
    for record in records:
        written.chosen = [a + b for a, b in zip(written.chosen, record["counts"], strict=True)]
        if train := record["train"]:
            written.shards["train"].append(Shard(**train["shard"]))
            _count(written.train, train["sources"])
        if heldout := record["heldout"]:
            _count(written.heldout_found, heldout["sources"])
            _count(written.heldout, heldout["sources"][:left])
            kept = first_rows(Shard(**heldout["shard"]), left, folder)
            written.shards["heldout"] += [kept] if kept else []
            left -= kept.rows if kept else 0
        for row in record["rejected"]:
            written.rejected[row["source"]][row["reason"]] += 1
            line = {"source": images.sources[row["source"]].title, "origin": row["origin"], "reason": row["reason"]}
            rejected.write(json.dumps(line, ensure_ascii=False) + "\n")
    return written


def _count(by_source: list[int], sources: Sequence[int]) -> None:
    for index in sources:
        by_source[index] += 1


def first_rows(shard: Shard, rows: int, folder: Path) -> Shard | None:
    """A held-out shard cut down to its first so many rows, which takes its place; None if no row is left of it."""
    if shard.rows <= rows:
        return shard
    path = folder / shard.file
    cut = write_pair_shard(read_pair_shard(path).slice(0, rows), folder, "heldout") if rows else None
    path.unlink()
    return cut


def _boundaries(work: PairPass) -> list[int]:
    """Where the sort's partitions begin; known beforehand, for hashes are spread evenly inside each part."""
    size = sum(files.size * bound // HASH_END for files, bound in zip(work.files, work.bounds, strict=True))
    heldout = work.images.holdout
    starts = []
    for part, share in enumerate((1 - heldout, heldout, 1 / 64)):  # what is set aside takes no room for images
        partitions = max(1, math.ceil(size * share / _partition_bytes()))
        starts += [(part << _PART_SHIFT) + _PART_END * index // partitions for index in range(partitions)]
    return starts[1:]


def _partition_bytes() -> int:
    """About the size of one partition of the sort; half a block, so that a partition stays one block."""
    block = DataContext.get_current().target_max_block_size
    return min(SORT_BYTES, block // 2) if block else SORT_BYTES
