"""The line a person reads while a stage runs, made on the driver from what rank 0 writes."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

logger = logging.getLogger(__name__)

EVERY_S = 5.0
"""Seconds between two lines."""


class Progress:
    """While it is entered, logs how far a stage is, every few seconds, and once more at the end."""

    def __init__(self, metrics: Path, name: str, total_steps: int) -> None:
        self.metrics = metrics
        self.name = name
        self.total_steps = total_steps
        self.shown = -1
        self.finished = threading.Event()
        self.thread = threading.Thread(target=self.follow, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        self.thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.finished.set()
        self.thread.join()
        self.show()

    def follow(self) -> None:
        while not self.finished.wait(EVERY_S):
            self.show()

    def show(self) -> None:
        """Log the newest step, unless it was shown already."""
        record = last_record(self.metrics)
        if record and record["step"] != self.shown:
            self.shown = record["step"]
            logger.info("%s", progress_line(self.name, record, self.total_steps))


def last_record(metrics: Path) -> dict[str, Any] | None:
    """The newest whole line of metrics.jsonl."""
    if not metrics.is_file():
        return None
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 16384))
        lines = file.read().split(b"\n")[:-1]
    return json.loads(lines[-1]) if lines and lines[-1].startswith(b"{") else None


def progress_line(name: str, record: dict[str, Any], total_steps: int) -> str:
    """`fc1  step 120/350  loss 3.21  312 texts/s  4% waiting  1 min 20 s left`."""
    done = record["step"] + 1
    left = (total_steps - done) * record["seconds"]
    return (
        f"{name}  step {done}/{total_steps}  loss {record['total']:.4g}  {record['rows_per_s']:.0f} texts/s  "
        f"{record['wait_share']:.0%} waiting  {duration(left)} left"
    )


def duration(seconds: float) -> str:
    """`1 h 5 min`, `2 min 10 s`, `8 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
