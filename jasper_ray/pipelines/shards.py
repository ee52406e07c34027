"""Shards on their way through the pipeline: read, given vectors from a cache, put in order.

These run in many small tasks, so nothing here imports torch or a model library: a task's process starts quickly.
"""

# Shape legend: N rows of a shard, D size of a teacher's vectors.

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from jasper_ray.data.columns import seconds_column, vector_column
from jasper_ray.data.order import Visit, row_order
from jasper_ray.data.shards import read_shard
from jasper_ray.pipelines.targets import TargetCache

Batch = dict[str, np.ndarray]


class ReadShard:
    """A visit becomes its shard's rows, in the order they are stored."""

    def __init__(self, folder: Path, read: Callable[[Path], pa.Table] = read_shard) -> None:
        self.folder = folder
        self.read = read

    def __call__(self, batch: Batch) -> Batch:
        if len(batch["file"]) != 1:
            raise AssertionError("a block must hold one visit")
        table = self.read(self.folder / str(batch["file"][0]))
        columns = read_rows(table)
        visit = Visit(
            **{name: values[0].item() if hasattr(values[0], "item") else values[0] for name, values in batch.items()}
        )
        columns["shard"] = np.full(len(table), visit.sha256, dtype=object)
        columns["position"] = positions(visit)
        return columns


def read_rows(table: pa.Table) -> Batch:
    """A shard's rows as arrays; an empty string stands for no prompt."""
    texts = {name: table[name].fill_null("").to_numpy() for name in ("id", "text", "prompt")}
    return {**texts, "image": table["image"].to_numpy()} if "image" in table.column_names else texts


def positions(visit: Visit) -> np.ndarray:
    """For each stored row, its place in the stage's sequence; -1 for rows that the visit does not use."""
    positions_N = np.full(visit.rows, -1, dtype=np.int64)
    positions_N[row_order(visit)] = np.arange(visit.position, visit.position + visit.take)
    return positions_N


class ReadTargets:
    """Adds a teacher's vectors from its cache."""

    def __init__(self, teacher: str, cache: TargetCache) -> None:
        self.teacher = teacher
        self.cache = cache

    def __call__(self, batch: Batch) -> Batch:
        vectors_ND = self.cache.read(str(batch["shard"][0]), batch["id"].tolist())
        return with_vectors(batch, self.teacher, vectors_ND, seconds=0.0)


def with_vectors(batch: Batch, teacher: str, vectors_ND: np.ndarray, seconds: float) -> Batch:
    """`batch` with a teacher's two columns more."""
    rows = len(vectors_ND)
    return {**batch, vector_column(teacher): vectors_ND, seconds_column(teacher): np.full(rows, seconds, np.float32)}


def summary(batch: Batch) -> Batch:
    """One row: how many rows a labelled shard has, and the size of each teacher's vectors."""
    prefix = vector_column("")
    sizes = {name.removeprefix(prefix): column.shape[1] for name, column in batch.items() if name.startswith(prefix)}
    return {name: np.array([number]) for name, number in {"rows": len(batch["id"]), **sizes}.items()}


def arrange(batch: Batch) -> Batch:
    """A shard's rows that its visit uses, in the visit's order."""
    used = np.flatnonzero(batch["position"] >= 0)
    order = used[np.argsort(batch["position"][used])]
    return {name: column[order] for name, column in batch.items() if name != "shard"}
