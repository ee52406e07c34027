"""Embedding a long corpus of short rows: memory of driver and object store, and whether the speed is constant.

Speeds are compared by tenths of the chunks that were written while the whole pipeline worked, which excludes two ends.
The start: chunks written before every actor had begun one, since an actor that loads its model embeds nothing and takes
CPUs from the others. The end: chunks written after the last one had been read (about thirty), since they are embedded
on CPUs that the readers have left. `counted` is the share of the rows that remains; `rows_per_s` is of all rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from benchmarks.embed import mixed_lines
from benchmarks.harness import (
    MODEL,
    Benchmark,
    PeakStoreUse,
    Record,
    Records,
    in_fresh_process,
    peak_mib,
    reset_peak_memory,
    rows_option,
)
from jasper_ray.config import ConfigError
from jasper_ray.embedding import EmbedSettings
from jasper_ray.embedding.job import embed_corpus
from jasper_ray.embedding.output import VECTORS, Done

WORDS = 8
"""Words of a line; a million such lines take minutes."""


class TimedChunk(NamedTuple):
    """A finished chunk; its times are in seconds of one clock."""

    actor: str
    rows: int
    read: float
    """Time at which it was read."""
    began: float
    """Time at which the actor took it."""
    written: float


def benchmark_embed_stream(model: str, rows: int) -> Records:
    """Measure rows in and out, rows/s by tenths of the rows, and the peaks of memory.

    Raises:
        ConfigError: the rows are too few for tenths.
    """
    return [in_fresh_process(run, model, rows)]


def run(model: str, rows: int) -> Record:
    """Embed the corpus, with this process as the driver."""
    finished: list[Done] = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "lines.txt"
        short = [" ".join(line.split()[:WORDS]) for line in mixed_lines(50_000)]
        with corpus.open("w", encoding="utf-8") as file:
            file.writelines(f"{row}: {short[row % len(short)]}\n" for row in range(rows))
        settings = EmbedSettings(model=model, inputs=(str(corpus),))
        reset_peak_memory()
        with PeakStoreUse() as store:
            manifest = embed_corpus(settings, f"{folder}/out", finished.append)
        chunks = []
        for done in finished:
            written = (Path(folder) / "out" / VECTORS / done.record.name).stat().st_mtime
            began = written - done.seconds
            chunks.append(TimedChunk(done.actor, done.record.rows, done.read_at or 0.0, began, written))
    assert manifest.work
    steady = while_all_work(chunks)
    speeds = by_tenths(steady)
    return {
        "rows": manifest.rows,
        "embedded": manifest.embedded,
        "seconds": manifest.work.seconds,
        "rows_per_s": manifest.work.rows_per_s,
        "counted": sum(chunk.rows for chunk in steady[1:]) / manifest.rows,
        "slowest_tenth": min(speeds) / (sum(speeds) / len(speeds)),
        "last_to_first": speeds[-1] / speeds[0],
        "driver_mib": peak_mib(),
        "store_mib": store.peak_mib,
    }


def while_all_work(chunks: Sequence[TimedChunk]) -> list[TimedChunk]:
    """Keep the chunks written after every actor had begun one and before the last one was read, in this order."""
    begun: dict[str, float] = {}
    for chunk in chunks:
        begun[chunk.actor] = min(chunk.began, begun.get(chunk.actor, chunk.began))
    first, last = max(begun.values()), max(chunk.read for chunk in chunks)
    return sorted((chunk for chunk in chunks if first <= chunk.written <= last), key=lambda chunk: chunk.written)


def by_tenths(chunks: Sequence[TimedChunk]) -> list[float]:
    """Return the rows/s of each tenth of the chunks; the clock starts when the first one is written.

    Raises:
        ConfigError: fewer than ten follow the first.
    """
    if len(chunks) < 11:
        raise ConfigError(f"only {len(chunks)} blocks were written while all of the pipeline worked; raise --rows")
    edges = [round(place * (len(chunks) - 1) / 10) for place in range(11)]
    return [
        sum(chunk.rows for chunk in chunks[a + 1 : b + 1]) / (chunks[b].written - chunks[a].written)
        for a, b in pairwise(edges)
    ]


BENCHMARK = Benchmark(
    "embed-stream",
    "a long corpus: memory, and speed from start to end",
    (MODEL, rows_option(1_000_000)),
    benchmark_embed_stream,
    "rows embedded seconds rows_per_s counted slowest_tenth last_to_first driver_mib store_mib",
)
