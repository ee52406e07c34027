"""A long corpus of short rows: memory of driver and object store, and whether the speed stays what it was."""

from __future__ import annotations

import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from jasper_ray.benchmarks.embed import mixed_lines
from jasper_ray.benchmarks.process import STORE, PeakUse, forget_peak, in_fresh_process, resident
from jasper_ray.benchmarks.table import table
from jasper_ray.embedding import EmbedSettings
from jasper_ray.pipelines.embed import embed_corpus

WORDS = 8
"""Of a line, so that a million of them take minutes."""
COLUMNS = ("rows", "embedded", "seconds", "rows_per_s", "slowest_tenth", "last_to_first", "driver_mib", "store_mib")


def benchmark_embed_stream(model: str, rows: int) -> list[dict[str, Any]]:
    """One record: rows in and out, rows/s by tenths of the rows, and the peaks of memory."""
    return [in_fresh_process(run, model, rows)]


def run(model: str, rows: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "lines.txt"
        write_short_lines(corpus, rows)
        settings = EmbedSettings(model=model, inputs=(str(corpus),))
        forget_peak()
        began = time.time()
        with PeakUse(STORE) as store:
            manifest = embed_corpus(settings, f"{folder}/out")
        assert manifest.work
        written = sorted(path.stat().st_mtime for path in Path(folder).glob("out/vectors/*.parquet"))
    speeds = by_tenths([time_ - began for time_ in written], rows)
    return {
        "rows": manifest.rows,
        "embedded": manifest.embedded,
        "seconds": manifest.work.seconds,
        "rows_per_s": manifest.work.rows_per_s,
        "slowest_tenth": min(speeds) / manifest.work.rows_per_s,
        "last_to_first": speeds[-1] / speeds[0],
        "driver_mib": resident("VmHWM") / 1024,
        "store_mib": store.peak / 2**20,
    }


def write_short_lines(path: Path, rows: int) -> None:
    """So many different lines, each the first words of a real one behind its number."""
    lines = [" ".join(line.split()[:WORDS]) for line in mixed_lines(50_000)]
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{row}: {lines[row % len(lines)]}\n" for row in range(rows))


def by_tenths(written: list[float], rows: int) -> list[float]:
    """Rows/s of each tenth of the blocks after the first few, which fill the pipeline."""
    times = written[max(1, len(written) // 100) :]
    cuts = [round(place * (len(times) - 1) / 10) for place in range(11)]
    block_rows = rows / len(written)
    return [(b - a) * block_rows / (times[b] - times[a]) for a, b in pairwise(cuts)]


def render(records: list[dict[str, Any]]) -> str:
    """The record as a table."""
    return table(records, COLUMNS)
