"""Metrics of a running stage: metrics.jsonl, TensorBoard, and the driver's progress lines."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from torch.utils.tensorboard import SummaryWriter

from jasper_ray.atomic import write_text
from jasper_ray.cli import duration, log_repeatedly


class MetricsLog:
    """One line of JSON and TensorBoard's scalars for each step, written by rank 0."""

    def __init__(self, path: Path, first_step: int) -> None:
        keep_steps_before(path, first_step)
        self.file: TextIO = path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(path.parent / "tensorboard"), purge_step=first_step)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.file.close()
        self.board.close()

    def write(self, record: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        for name, value in record.items():
            if name != "step":
                self.board.add_scalar(name, value, record["step"])


def keep_steps_before(path: Path, step: int) -> None:
    """Remove the lines of `step` and later: a stage that continues from a checkpoint writes them again."""
    if not path.is_file():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if is_before(line, step)]
    write_text(path, "".join(f"{line}\n" for line in kept))


def is_before(line: str, step: int) -> bool:
    """Tell whether a metrics line is complete and of an earlier step; a killed worker may leave half a line."""
    try:
        return bool(json.loads(line)["step"] < step)
    except json.JSONDecodeError:
        return False


@dataclass
class StepClock:
    """Rows and times of a step."""

    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    rows: int = 0
    labelled: dict[str, int] = field(default_factory=dict)
    teacher_seconds: dict[str, float] = field(default_factory=dict)
    decode_seconds: float | None = None

    def count(
        self, rows: int, waited: float, teacher_seconds: Mapping[str, float], decode_seconds: float | None = None
    ) -> None:
        """Add one micro-batch: its rows, and the seconds of waiting for it, of teachers and of decoding."""
        if decode_seconds is not None:
            self.decode_seconds = (self.decode_seconds or 0.0) + decode_seconds
        self.rows += rows
        self.waited += waited
        for name, seconds in teacher_seconds.items():
            self.teacher_seconds[name] = self.teacher_seconds.get(name, 0.0) + seconds
            self.labelled[name] = self.labelled.get(name, 0) + (rows if seconds else 0)

    def read(self, workers: int) -> dict[str, float]:
        """Return the metrics of the step: speed over all workers, share of waiting, and the work of each teacher.

        `teacher_rows_per_s` is the speed of one copy, `labelled` the rows of all workers that it labelled, and
        `decoding_processors` the number of processors that decoding kept busy.
        """
        seconds = time.perf_counter() - self.started
        record = {"rows_per_s": workers * self.rows / seconds, "wait_share": self.waited / seconds, "seconds": seconds}
        for name, worked in self.teacher_seconds.items():
            record[f"labelled/{name}"] = self.labelled[name] * workers
            if worked:
                record[f"teacher_rows_per_s/{name}"] = self.labelled[name] / worked
        if self.decode_seconds is not None:
            record["decoding_processors"] = workers * self.decode_seconds / seconds
        return record


logger = logging.getLogger(__name__)


@contextmanager
def log_steps(metrics: Path, name: str, unit: str, total_steps: int) -> Iterator[None]:
    """Log the progress of a stage every few seconds inside the block, and once more at its end."""
    progress = Progress(metrics, name, unit, total_steps)
    try:
        with log_repeatedly(progress.line):
            yield
    finally:
        if last := progress.fresh_line():
            logger.info("%s", last)


class Progress:
    """Progress of a stage, read from its metrics."""

    def __init__(self, metrics: Path, name: str, unit: str, total_steps: int) -> None:
        self.metrics = metrics
        self.name = name
        self.unit = unit
        self.total_steps = total_steps
        self.last_logged = last_step(metrics)
        self.began = time.monotonic()
        self.first = True

    def line(self) -> str:
        """Describe the steps since the last line, or what the stage is working on if there are none."""
        return self.fresh_line() or f"{self.name}  {self.waiting_for()}, {duration(time.monotonic() - self.began)}"

    def fresh_line(self) -> str | None:
        """Describe the steps since the last line, if there are any."""
        records = newest_records(self.metrics)
        if records and records[-1]["step"] < self.last_logged:  # workers went back to a checkpoint
            self.last_logged = records[-1]["step"] - 1
        fresh = [record for record in records if record["step"] > self.last_logged]
        if not fresh:
            return None
        self.last_logged = fresh[-1]["step"]
        self.began = time.monotonic()
        self.first = False
        return progress_line(self.name, self.unit, fresh, self.total_steps)

    def waiting_for(self) -> str:
        """Name the work between two steps."""
        if self.last_logged + 1 == self.total_steps:
            return "writing the student"
        if self.first:
            return "waiting for the first batch"
        return f"working on step {self.last_logged + 2}/{self.total_steps}"


def last_step(metrics: Path) -> int:
    """Return the newest step logged; -1 before the first."""
    records = newest_records(metrics)
    return records[-1]["step"] if records else -1


def newest_records(metrics: Path) -> list[dict[str, Any]]:
    """Read the newest complete lines of metrics.jsonl, as many as its last 64 KiB hold."""
    if not metrics.is_file():
        return []
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 65536))
        lines = file.read().split(b"\n")[:-1]
    return [json.loads(line) for line in lines if line.startswith(b"{")]


def progress_line(name: str, unit: str, records: Sequence[dict[str, Any]], total_steps: int) -> str:
    """Write `fc1  step 120/350  loss 3.21  312 texts/s  4% waiting  1 min 20 s left`, averaged over `records`."""
    seconds = sum(record["seconds"] for record in records)
    rows = sum(record["rows_per_s"] * record["seconds"] for record in records)
    waited = sum(record["wait_share"] * record["seconds"] for record in records)
    done = records[-1]["step"] + 1
    loss = sum(record["total"] for record in records) / len(records)
    return (
        f"{name}  step {done}/{total_steps}  loss {loss:.4g}  {rows / seconds:.0f} {unit}/s  "
        f"{waited / seconds:.0%} waiting  {duration((total_steps - done) * seconds / len(records))} left"
    )
