"""Small tasks of labelling: read a shard, read cached vectors, decode images, put rows in order; and their columns.

Nothing here imports torch or a model library, so a process that runs these tasks starts quickly.
"""

# Shape legend: N rows of a shard or block, D size of a teacher's vectors, S side of an image in pixels.

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from jasper_ray.corpus.order import Visit, row_order
from jasper_ray.corpus.shards import read_shard
from jasper_ray.images import Preprocessing, decode
from jasper_ray.labelling.target_cache import TargetCache

Batch = dict[str, np.ndarray]

PIXELS = "pixels"
"""The column of images' pixels, uint8 `[N, 3, S, S]`."""
DECODING = "decoding"
"""Name of the decoding in `seconds_column`."""


def vector_column(teacher: str) -> str:
    """Name the column of a teacher's vectors."""
    return f"vector:{teacher}"


def seconds_column(worker: str) -> str:
    """Name the column of the seconds that a teacher, or the decoding, took for a row."""
    return f"seconds:{worker}"


class ReadShard:
    """A visit becomes its shard's rows, in the order they are stored."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, batch: Batch) -> Batch:
        if len(batch["file"]) != 1:
            raise AssertionError("a block must hold one visit")
        table = read_shard(self.folder / str(batch["file"][0]))
        columns = read_rows(table)
        visit = Visit(
            **{name: values[0].item() if hasattr(values[0], "item") else values[0] for name, values in batch.items()}
        )
        columns["shard"] = np.full(len(table), visit.sha256, dtype=object)
        columns["position"] = positions(visit)
        return columns


def read_rows(table: pa.Table) -> Batch:
    """Return a shard's rows as arrays; an empty string means no prompt."""
    texts = {name: table[name].fill_null("").to_numpy() for name in ("id", "text", "prompt")}
    return {**texts, "image": table["image"].to_numpy()} if "image" in table.column_names else texts


def positions(visit: Visit) -> np.ndarray:
    """Return the place of each stored row in the stage's sequence; -1 for rows that the visit does not use."""
    positions_N = np.full(visit.rows, -1, dtype=np.int64)
    positions_N[row_order(visit)] = np.arange(visit.position, visit.position + visit.take)
    return positions_N


class ReadTargets:
    """A task that adds a teacher's vectors from its cache."""

    def __init__(self, teacher: str, cache: TargetCache) -> None:
        self.teacher = teacher
        self.cache = cache

    def __call__(self, batch: Batch) -> Batch:
        vectors_ND = self.cache.read(str(batch["shard"][0]), batch["id"].tolist())
        return with_vectors(batch, self.teacher, vectors_ND, seconds=0.0)


def with_vectors(batch: Batch, teacher: str, vectors_ND: np.ndarray, seconds: float) -> Batch:
    """Add a teacher's two columns to a batch."""
    rows = len(vectors_ND)
    return {**batch, vector_column(teacher): vectors_ND, seconds_column(teacher): np.full(rows, seconds, np.float32)}


def summary(batch: Batch) -> Batch:
    """Return one row: the number of rows of a labelled shard, and the size of each teacher's vectors."""
    prefix = vector_column("")
    sizes = {name.removeprefix(prefix): column.shape[1] for name, column in batch.items() if name.startswith(prefix)}
    return {name: np.array([number]) for name, number in {"rows": len(batch["id"]), **sizes}.items()}


def arrange(batch: Batch) -> Batch:
    """Return the rows of a shard that its visit uses, in the visit's order."""
    used = np.flatnonzero(batch["position"] >= 0)
    order = used[np.argsort(batch["position"][used])]
    return {name: column[order] for name, column in batch.items() if name != "shard"}


class Decode:
    """An actor that turns the images of a block into pixels."""

    def __init__(self, preprocessing: Preprocessing, pixel_limit: int) -> None:
        self.preprocessing = preprocessing
        self.pixel_limit = pixel_limit

    def __call__(self, batch: Batch) -> Batch:
        began = time.perf_counter()
        size = self.preprocessing.size
        pixels_N3SS = np.empty((len(batch["image"]), 3, size, size), np.uint8)
        for row, image in enumerate(batch["image"]):
            pixels_N3SS[row] = self.preprocessing.pixels(decode(image, self.pixel_limit))
        seconds = (time.perf_counter() - began) / max(1, len(pixels_N3SS))
        kept = {name: column for name, column in batch.items() if name != "image"}
        return {**kept, PIXELS: pixels_N3SS, seconds_column(DECODING): np.full(len(pixels_N3SS), seconds, np.float32)}
