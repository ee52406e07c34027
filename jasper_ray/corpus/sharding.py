"""The later passes over a corpus: choose, sort, and write shards."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray.data

from jasper_ray.corpus.reading import BATCH_ROWS, read_source
from jasper_ray.corpus.rows import Row, chosen, heldout_rows, prepare_rows
from jasper_ray.corpus.settings import Corpus
from jasper_ray.corpus.shards import SHARD_SCHEMA, Shard, write_shard
from jasper_ray.sources.files import SourceFiles
from jasper_ray.sources.hashing import sort_key

ROW_SCHEMA = pa.schema(
    [("key", pa.int64()), ("source", pa.int32()), ("id", pa.string()), ("text", pa.string()), ("count", pa.int64())]
)
"""A text on its way to a shard: sort key, index of its source, and how many equal texts it stands for."""

SORT_BYTES = 64 << 20
"""Size of one partition of the sort, about: half a block of Ray Data, so that a partition stays one block."""

_KEY_END = 1 << 63


@dataclass(frozen=True)
class Mixture:
    """A corpus whose limits and weights have become bounds: enough to make its rows, batch by batch, anywhere."""

    corpus: Corpus
    files: tuple[SourceFiles, ...]
    seed: int
    bounds: tuple[int, ...]
    """For each source, what the choice hash of a kept text stays below."""


@dataclass(frozen=True)
class Written:
    """What a pass has written."""

    shards: tuple[Shard, ...]
    by_source: tuple[int, ...]
    """Texts written, for each source."""
    duplicates: int
    """Texts not written because an equal one was."""


def write_train(mixture: Mixture, row_bytes: int, folder: Path) -> Written:
    """Write the training texts, sorted by hash, to `folder/train`; `row_bytes` is about the size of all rows.

    Equal texts have equal keys, so they meet in one partition of the sort, where all but one are dropped. (Only a text
    whose copies, one from each batch read, outgrow a block of Ray Data could stay more than once.)
    """
    rows = _mixed_rows(mixture, held_out=False).sort("key", boundaries=_boundaries(row_bytes))
    distinct = rows.map_batches(drop_duplicates, batch_size=None, batch_format="pyarrow")
    distinct.context.execution_options.preserve_order = True  # else shards would cut the order at random places
    shard_rows = mixture.corpus.shard_rows
    records = distinct.repartition(target_num_rows_per_block=shard_rows, strict=True).map_batches(
        write_batch,
        fn_kwargs={"corpus": mixture.corpus, "folder": folder, "part": "train"},
        batch_size=shard_rows,
        batch_format="pyarrow",
    )
    return _collect(records.iter_batches(batch_size=None, batch_format="pyarrow"), len(mixture.files))


def write_heldout(mixture: Mixture, folder: Path) -> Written:
    """Write the held-out texts with the smallest sort keys, at most `heldout_limit`, to `folder/heldout`."""
    corpus = mixture.corpus
    if corpus.holdout == 0:
        return _collect([], len(mixture.files))
    rows = _mixed_rows(mixture, held_out=True).map_batches(
        first_rows, fn_kwargs={"limit": corpus.heldout_limit}, batch_size=None, batch_format="pyarrow"
    )
    kept = ROW_SCHEMA.empty_table()
    for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
        kept = first_rows(pa.concat_tables([kept, batch.cast(ROW_SCHEMA)]), corpus.heldout_limit)
    parts = [kept.slice(start, corpus.shard_rows) for start in range(0, len(kept), corpus.shard_rows)]
    return _collect([write_batch(part, corpus, folder, "heldout") for part in parts], len(mixture.files))


def _mixed_rows(mixture: Mixture, held_out: bool) -> ray.data.Dataset:
    """All chosen rows of all sources that are, or are not, held out; `ROW_SCHEMA`."""
    first, *others = [_source_rows(mixture, index, held_out) for index in range(len(mixture.files))]
    return first.union(*others) if others else first


def _source_rows(mixture: Mixture, index: int, held_out: bool) -> ray.data.Dataset:
    return read_source(mixture.corpus.sources[index], mixture.files[index]).map_batches(
        make_rows,
        fn_kwargs={
            "corpus": mixture.corpus,
            "seed": mixture.seed,
            "source": index,
            "bound": mixture.bounds[index],
            "held_out": held_out,
        },
        batch_size=BATCH_ROWS,
        batch_format="pyarrow",
    )


def make_rows(cleaned: pa.Table, corpus: Corpus, seed: int, source: int, bound: int, held_out: bool) -> pa.Table:
    """The chosen rows (`ROW_SCHEMA`) of a batch of cleaned texts of source number `source`, each text once."""
    made = heldout_rows(cleaned, corpus) if held_out else _training_rows(cleaned, corpus, seed)
    rows = chosen(made, bound, seed)
    columns = {
        "key": [sort_key(row.id, seed) for row in rows],
        "source": [source] * len(rows),
        "id": [row.id for row in rows],
        "text": [row.text for row in rows],
        "count": [1] * len(rows),
    }
    return drop_duplicates(pa.table(columns, schema=ROW_SCHEMA))


def _training_rows(cleaned: pa.Table, corpus: Corpus, seed: int) -> list[Row]:
    return [row for row in prepare_rows(cleaned, corpus, seed).rows if not row.held_out]


def drop_duplicates(rows: pa.Table) -> pa.Table:
    """`rows` sorted by key, with one row left of equal ids: the one of the earliest source, which counts them all."""
    if len(rows) == 0:
        return ROW_SCHEMA.empty_table()
    rows = rows.sort_by([("key", "ascending"), ("id", "ascending"), ("source", "ascending")])
    ids = rows["id"].to_numpy()
    starts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
    counts = np.add.reduceat(rows["count"].to_numpy(), starts)
    kept = rows.take(pa.array(starts))
    return kept.set_column(kept.schema.get_field_index("count"), "count", pa.array(counts))


def first_rows(rows: pa.Table, limit: int) -> pa.Table:
    """The `limit` different rows with the smallest keys."""
    return drop_duplicates(rows).slice(0, limit)


def write_batch(rows: pa.Table, corpus: Corpus, folder: Path, part: str) -> pa.Table:
    """Write one shard; a one-row table that says what was written."""
    sources = rows["source"].to_numpy()
    prompts = pa.array([corpus.sources[index].prompt for index in sources], pa.string())
    table = rows.append_column("prompt", prompts).select(SHARD_SCHEMA.names)
    shard = write_shard(table, folder, part)
    record = {
        "first_key": rows["key"][0].as_py(),
        "shard": shard.model_dump_json(),
        "by_source": np.bincount(sources, minlength=len(corpus.sources)).tolist(),
        "count": sum(rows["count"].to_pylist()),
    }
    return pa.Table.from_pylist([record])


def _collect(records: Iterable[pa.Table], num_sources: int) -> Written:
    """The records of `write_batch`, in the order of the sort."""
    rows = sorted((row for table in records for row in table.to_pylist()), key=lambda row: row["first_key"])
    shards = tuple(Shard.model_validate_json(row["shard"]) for row in rows)
    by_source = tuple(sum(row["by_source"][index] for row in rows) for index in range(num_sources))
    return Written(shards, by_source, sum(row["count"] for row in rows) - sum(by_source))


def _boundaries(row_bytes: int) -> list[int]:
    """Where the sort's partitions begin; known beforehand, for hashes are spread evenly."""
    partitions = max(2, math.ceil(row_bytes / SORT_BYTES))
    return [_KEY_END * index // partitions for index in range(1, partitions)]
