"""The line a person reads while a stage runs, made on the driver from what rank 0 writes."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jasper_ray.command import duration
from jasper_ray.waiting import saying

logger = logging.getLogger(__name__)


@contextmanager
def telling_steps(metrics: Path, name: str, unit: str, total_steps: int) -> Iterator[None]:
    """While it is entered, log how far a stage is, every few seconds, and once more at the end."""
    progress = Progress(metrics, name, unit, total_steps)
    try:
        with saying(progress.line):
            yield
    finally:
        if last := progress.fresh_line():
            logger.info("%s", last)


class Progress:
    """How far a stage is, as its metrics tell."""

    def __init__(self, metrics: Path, name: str, unit: str, total_steps: int) -> None:
        self.metrics = metrics
        self.name = name
        self.unit = unit
        self.total_steps = total_steps
        self.shown = last_step(metrics)
        self.began = time.monotonic()
        self.first = True

    def line(self) -> str:
        """The steps since the last line, or what the stage is at while there are none."""
        return self.fresh_line() or f"{self.name}  {self.waiting_for()}, {duration(time.monotonic() - self.began)}"

    def fresh_line(self) -> str | None:
        """The steps since the last line, if there are any."""
        records = newest_records(self.metrics)
        if records and records[-1]["step"] < self.shown:  # workers went back to a checkpoint
            self.shown = records[-1]["step"] - 1
        fresh = [record for record in records if record["step"] > self.shown]
        if not fresh:
            return None
        self.shown = fresh[-1]["step"]
        self.began = time.monotonic()
        self.first = False
        return progress_line(self.name, self.unit, fresh, self.total_steps)

    def waiting_for(self) -> str:
        """Name the work that goes on between two steps."""
        if self.shown + 1 == self.total_steps:
            return "writing the student"
        return "waiting for the first batch" if self.first else f"working on step {self.shown + 2}/{self.total_steps}"


def last_step(metrics: Path) -> int:
    """The newest step logged; -1 before the first."""
    records = newest_records(metrics)
    return records[-1]["step"] if records else -1


def newest_records(metrics: Path) -> list[dict[str, Any]]:
    """The newest whole lines of metrics.jsonl, as many as its last 64 KiB hold."""
    if not metrics.is_file():
        return []
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 65536))
        lines = file.read().split(b"\n")[:-1]
    return [json.loads(line) for line in lines if line.startswith(b"{")]


def progress_line(name: str, unit: str, records: Sequence[dict[str, Any]], total_steps: int) -> str:
    """`fc1  step 120/350  loss 3.21  312 texts/s  4% waiting  1 min 20 s left`, averaged over `records`."""
    seconds = sum(record["seconds"] for record in records)
    rows = sum(record["rows_per_s"] * record["seconds"] for record in records)
    waited = sum(record["wait_share"] * record["seconds"] for record in records)
    done = records[-1]["step"] + 1
    loss = sum(record["total"] for record in records) / len(records)
    return (
        f"{name}  step {done}/{total_steps}  loss {loss:.4g}  {rows / seconds:.0f} {unit}/s  "
        f"{waited / seconds:.0%} waiting  {duration((total_steps - done) * seconds / len(records))} left"
    )
