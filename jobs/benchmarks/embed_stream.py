"""A long corpus of short rows: memory of driver and object store, and whether the speed stays what it was.

The speed is compared by tenths of the blocks that were written while all of the pipeline worked. Two ends are left out.
At the start, what was written before every actor had begun a block: one that still loads its model does not embed, and
the others have the processors to themselves or share them with the loading. At the end, what was written after the last
block had been read: the blocks that waited then (about thirty here) are embedded on processors that the readers have
left. `counted` is the share of the rows that remains; `rows_per_s` is of all of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.embed import mixed_lines
from benchmarks.process import STORE, PeakUse, forget_peak, in_fresh_process, resident
from benchmarks.table import table
from jasper_ray.config import ConfigError
from jasper_ray.embedding import EmbedSettings
from jasper_ray.embedding.job import embed_corpus
from jasper_ray.embedding.output import VECTORS, Done

WORDS = 8
"""Of a line, so that a million of them take minutes."""
COLUMNS = (
    "rows",
    "embedded",
    "seconds",
    "rows_per_s",
    "counted",
    "slowest_tenth",
    "last_to_first",
    "driver_mib",
    "store_mib",
)


class Finished(NamedTuple):
    """A block; its times are in seconds of one clock."""

    actor: str
    rows: int
    read: float
    """When it had been read."""
    began: float
    """When the actor took it."""
    written: float


def benchmark_embed_stream(model: str, rows: int) -> list[dict[str, Any]]:
    """One record: rows in and out, rows/s by tenths of the rows, and the peaks of memory.

    Raises:
        ConfigError: too few rows for tenths.
    """
    return [in_fresh_process(run, model, rows)]


def run(model: str, rows: int) -> dict[str, float]:
    finished: list[Done] = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "lines.txt"
        write_short_lines(corpus, rows)
        settings = EmbedSettings(model=model, inputs=(str(corpus),))
        forget_peak()
        with PeakUse(STORE) as store:
            manifest = embed_corpus(settings, f"{folder}/out", finished.append)
        blocks = [with_times(done, Path(folder) / "out" / VECTORS) for done in finished]
    assert manifest.work
    steady = while_all_work(blocks)
    speeds = by_tenths(steady)
    return {
        "rows": manifest.rows,
        "embedded": manifest.embedded,
        "seconds": manifest.work.seconds,
        "rows_per_s": manifest.work.rows_per_s,
        "counted": sum(block.rows for block in steady[1:]) / manifest.rows,
        "slowest_tenth": min(speeds) / (sum(speeds) / len(speeds)),
        "last_to_first": speeds[-1] / speeds[0],
        "driver_mib": resident("VmHWM") / 1024,
        "store_mib": store.peak / 2**20,
    }


def with_times(done: Done, folder: Path) -> Finished:
    """The block behind a record, whose file of vectors lies in `folder`."""
    assert done.read_at
    written = (folder / done.record.name).stat().st_mtime
    return Finished(done.actor, done.record.rows, done.read_at, written - done.seconds, written)


def write_short_lines(path: Path, rows: int) -> None:
    """So many different lines, each the first words of a real one behind its number."""
    lines = [" ".join(line.split()[:WORDS]) for line in mixed_lines(50_000)]
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{row}: {lines[row % len(lines)]}\n" for row in range(rows))


def while_all_work(blocks: Sequence[Finished]) -> list[Finished]:
    """The blocks that were written after every actor had begun one, until the last one was read, in this order."""
    begun: dict[str, float] = {}
    for block in blocks:
        begun[block.actor] = min(block.began, begun.get(block.actor, block.began))
    first, last = max(begun.values()), max(block.read for block in blocks)
    return sorted((block for block in blocks if first <= block.written <= last), key=lambda block: block.written)


def by_tenths(blocks: Sequence[Finished]) -> list[float]:
    """Rows/s of each tenth of the blocks, the clock starting when the first one is written.

    Raises:
        ConfigError: there are fewer than ten behind the first.
    """
    if len(blocks) < 11:
        raise ConfigError(f"only {len(blocks)} blocks were written while all of the pipeline worked; raise --rows")
    cuts = [round(place * (len(blocks) - 1) / 10) for place in range(11)]
    return [
        sum(block.rows for block in blocks[a + 1 : b + 1]) / (blocks[b].written - blocks[a].written)
        for a, b in pairwise(cuts)
    ]


def render(records: list[dict[str, Any]]) -> str:
    """The record as a table."""
    return table(records, COLUMNS)
