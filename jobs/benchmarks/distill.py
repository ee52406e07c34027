"""Distilling: ours live and cached against the usual way, and against what our parts could do alone.

The same texts, teachers, starting student, batch size, precision and number of steps on every side; each run in a fresh
process, us and the usual way in turn. A side runs at two lengths: their difference is its speed once it runs, and what
remains is its start-up.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import ours, usual
from benchmarks.process import in_fresh_process
from benchmarks.table import table
from benchmarks.work import Work, comparable, last_on_texts, names, sizes
from jasper_ray.distill.precision import in_precisions, measuring
from jasper_ray.recipe import Recipe

logger = logging.getLogger(__name__)

PASSES = (1, 3)
"""Passes of the short and the long run over targets that are there already."""
COLUMNS = ("what", "texts_per_s", "start_up_s", "end_to_end_per_s")

Measured = Callable[[Work, int, int], dict[str, float]]
"""A run over so many texts, so many times; what it timed inside."""


@dataclass
class Side:
    """One way of doing the work, at two lengths."""

    what: str
    run: Measured
    short: tuple[int, int]
    """Texts and passes."""
    long: tuple[int, int]
    seconds: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    """From starting the process to its end, for each length and round."""

    def measure(self, work: Work) -> None:
        """Run both lengths once."""
        for length in (self.short, self.long):
            began = time.perf_counter()
            inside = in_fresh_process(self.run, work, *length)
            self.seconds.setdefault(length, []).append(time.perf_counter() - began)
            told = ", ".join(f"{name} {value:.3g}" for name, value in inside.items())
            logger.info("%s, %d texts x %d: %.1f s (%s)", self.what, *length, self.seconds[length][-1], told)

    def record(self) -> dict[str, Any]:
        """Texts a second once it runs, seconds before that, and texts a second of the long run from end to end."""
        short_s, long_s = (statistics.median(self.seconds[length]) for length in (self.short, self.long))
        short_rows, long_rows = (rows * passes for rows, passes in (self.short, self.long))
        speed = (long_rows - short_rows) / (long_s - short_s)
        return {
            "what": self.what,
            "texts_per_s": speed,
            "start_up_s": long_s - long_rows / speed,
            "end_to_end_per_s": long_rows / long_s,
        }


def benchmark_distill(recipe: Recipe, rows: int, rounds: int, threads: int, folder: Path) -> list[dict[str, Any]]:
    """One record for each part and side, then one for each ratio.

    Raises:
        ConfigError: the corpus has fewer than `rows` texts, or a package that the usual way needs is missing.
    """
    usual.check_installed()
    recipe = in_precisions(recipe, {}, measuring(alone=True))
    short, long, shard_rows = sizes(rows, recipe.corpus.shard_rows, last_on_texts(recipe).batch_size)
    work = Work(comparable(recipe, shard_rows), folder, threads)
    in_fresh_process(ours.prepare, work)
    parts = measure_parts(work, long)
    live = Side("ours, live", ours.train_live, (short, 1), (long, 1))
    whole = Side("usual way", usual.encode_and_train, (short, 1), (long, 1))
    cached = Side("ours, a pass from the cache", ours.train_cached, (long, PASSES[0]), (long, PASSES[1]))
    again = Side("usual way, a pass on stored vectors", usual.train_again, (long, PASSES[0]), (long, PASSES[1]))
    for _ in range(rounds):
        for side in (live, whole, cached, again):
            side.measure(work)
    sides = [side.record() for side in (live, whole, cached, again)]
    return [*parts, *sides, *ratios(parts[-1], *sides)]


def measure_parts(work: Work, rows: int) -> list[dict[str, Any]]:
    """Each teacher and the trainer with the machine to themselves, and what they allow together on the same cores."""
    parts: list[dict[str, Any]] = []
    for number, name in enumerate(names(work.recipe)):
        logger.info("teacher %s alone", name)
        parts.append({"what": f"teacher {name} alone", **in_fresh_process(ours.label_alone, work, number, rows)})
    logger.info("the trainer alone")
    parts.append({"what": "trainer alone", **in_fresh_process(ours.train_alone, work, rows, 1)})
    allowed = 1 / sum(1 / part["texts_per_s"] for part in parts)
    return [*parts, {"what": "the parts allow", "texts_per_s": allowed}]


def ratios(
    allowed: dict[str, Any], live: dict[str, Any], whole: dict[str, Any], cached: dict[str, Any], again: dict[str, Any]
) -> list[dict[str, Any]]:
    """What the figures come down to; above 1 is better than the other."""
    return [
        ratio("ours live / the parts", live, allowed, "texts_per_s"),
        ratio("ours live / usual way", live, whole, "texts_per_s", "end_to_end_per_s"),
        ratio("ours cached / usual way, a pass more", cached, again, "texts_per_s"),
    ]


def ratio(what: str, one: dict[str, Any], other: dict[str, Any], *figures: str) -> dict[str, Any]:
    return {"what": what, **{figure: one[figure] / other[figure] for figure in figures}}


def render(records: list[dict[str, Any]]) -> str:
    """The records as a table."""
    return table(records, COLUMNS)
