"""Distilling: ours, live and cached, against the usual way and against the speed of our parts alone.

Every side has the same texts, teachers, starting student, batch size, precision and number of steps, and runs in fresh
processes, ours and the usual way in turn. A side runs at two lengths: the difference is its speed once it runs, and the
rest is its start-up.
"""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import distill_ours, distill_peer
from benchmarks.distill_workload import Workload, comparable, last_on_texts, sizes
from benchmarks.harness import Benchmark, Option, Record, Records, in_fresh_process, rounds_option
from jasper_ray.distill.preflight import in_precisions, measuring
from jasper_ray.recipe import Recipe, load_recipe

logger = logging.getLogger(__name__)

PASSES = (1, 3)
"""Passes of the short and the long run over stored targets."""

Timed = Callable[[Workload, int, int], dict[str, float]]
"""A run over so many texts and passes, which returns its timings."""


@dataclass
class Side:
    """A way of distilling, at two lengths."""

    what: str
    run: Timed
    short: tuple[int, int]
    """Texts and passes."""
    long: tuple[int, int]
    seconds: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    """Seconds from the start of the process to its end, for each length and round."""

    def measure(self, workload: Workload) -> None:
        """Run both lengths once."""
        for length in (self.short, self.long):
            began = time.perf_counter()
            inside = in_fresh_process(self.run, workload, *length)
            self.seconds.setdefault(length, []).append(time.perf_counter() - began)
            timings = ", ".join(f"{name} {value:.3g}" for name, value in inside.items())
            logger.info("%s, %d texts x %d: %.1f s (%s)", self.what, *length, self.seconds[length][-1], timings)

    def record(self) -> Record:
        """Compute texts/s once it runs, seconds before that, and texts/s of the long run from end to end."""
        short_s, long_s = (statistics.median(self.seconds[length]) for length in (self.short, self.long))
        short_rows, long_rows = (rows * passes for rows, passes in (self.short, self.long))
        speed = (long_rows - short_rows) / (long_s - short_s)
        return {
            "what": self.what,
            "texts_per_s": speed,
            "start_up_s": long_s - long_rows / speed,
            "end_to_end_per_s": long_rows / long_s,
        }


def benchmark_distill(recipe: Recipe, rows: int, rounds: int, threads: int) -> Records:
    """Measure each part and side, and add each ratio.

    Raises:
        ConfigError: the corpus has fewer than `rows` texts, or a package that the usual way needs is missing.
    """
    distill_peer.check_installed()
    recipe = in_precisions(recipe, {}, measuring(is_local=True))
    short, long, shard_rows = sizes(rows, recipe.corpus.shard_rows, last_on_texts(recipe).batch_size)
    stored = ((long, PASSES[0]), (long, PASSES[1]))
    sides = (
        Side("ours, live", distill_ours.train_live, (short, 1), (long, 1)),
        Side("usual way", distill_peer.encode_and_train, (short, 1), (long, 1)),
        Side("ours, a pass from the cache", distill_ours.train_cached, *stored),
        Side("usual way, a pass on stored vectors", distill_peer.train_again, *stored),
    )
    with tempfile.TemporaryDirectory() as folder:
        workload = Workload(comparable(recipe, shard_rows), Path(folder), threads)
        in_fresh_process(distill_ours.prepare, workload)
        parts = measure_parts(workload, long)
        for _ in range(rounds):
            for side in sides:
                side.measure(workload)
    records = [side.record() for side in sides]
    return [*parts, *records, *ratios(parts[-1], *records)]


def measure_parts(workload: Workload, rows: int) -> Records:
    """Measure each teacher and the trainer alone on the machine, and compute the speed they allow together."""
    parts: Records = []
    for number, teacher in enumerate(workload.recipe.teachers):
        logger.info("teacher %s alone", teacher.name)
        timings = in_fresh_process(distill_ours.label_alone, workload, number, rows)
        parts.append({"what": f"teacher {teacher.name} alone", **timings})
    logger.info("the trainer alone")
    parts.append({"what": "trainer alone", **in_fresh_process(distill_ours.train_alone, workload, rows, 1)})
    allowed = 1 / sum(1 / part["texts_per_s"] for part in parts)
    return [*parts, {"what": "the parts allow", "texts_per_s": allowed}]


def ratios(allowed: Record, live: Record, usual: Record, cached: Record, usual_again: Record) -> Records:
    """Compare the sides; above 1 the first one is better."""
    return [
        ratio("ours live / the parts", live, allowed, "texts_per_s"),
        ratio("ours live / usual way", live, usual, "texts_per_s", "end_to_end_per_s"),
        ratio("ours cached / usual way, a pass more", cached, usual_again, "texts_per_s"),
    ]


def ratio(what: str, one: Record, other: Record, *figures: str) -> Record:
    """Divide the figures of one record by another's."""
    return {"what": what, **{figure: one[figure] / other[figure] for figure in figures}}


BENCHMARK = Benchmark(
    "distill",
    "our stage against sentence-transformers' way",
    (
        Option("--recipe", "quickstart", "recipe with teachers, student and corpus", resolve=load_recipe),
        Option("--rows", 6144, "texts of the long runs"),
        rounds_option(2),
        Option("--threads", os.cpu_count() or 1, "torch's threads of a part that has the machine to itself"),
    ),
    benchmark_distill,
    "what texts_per_s start_up_s end_to_end_per_s",
)
