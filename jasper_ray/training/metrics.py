"""What a stage tells while it runs: metrics.jsonl, TensorBoard, and a line a person can read."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from torch.utils.tensorboard import SummaryWriter

from jasper_ray.whole import write_text


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
    """Drop the lines of `step` and later: a stage that continues from a checkpoint writes them again."""
    if not path.is_file():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if is_before(line, step)]
    write_text(path, "".join(f"{line}\n" for line in kept))


def is_before(line: str, step: int) -> bool:
    """Whether a metrics line is whole and of an earlier step; a killed worker may leave half a line."""
    try:
        return bool(json.loads(line)["step"] < step)
    except json.JSONDecodeError:
        return False


@dataclass
class StepClock:
    """Where a step's time went."""

    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    rows: int = 0
    labelled: dict[str, int] = field(default_factory=dict)
    teacher_seconds: dict[str, float] = field(default_factory=dict)
    decode_seconds: float | None = None

    def count(
        self, rows: int, waited: float, teacher_seconds: Mapping[str, float], decode_seconds: float | None = None
    ) -> None:
        """Add one micro-batch: its rows, the seconds spent waiting for it, the seconds teachers worked on it, and those
        that decoding its images took."""
        if decode_seconds is not None:
            self.decode_seconds = (self.decode_seconds or 0.0) + decode_seconds
        self.rows += rows
        self.waited += waited
        for name, seconds in teacher_seconds.items():
            self.teacher_seconds[name] = self.teacher_seconds.get(name, 0.0) + seconds
            self.labelled[name] = self.labelled.get(name, 0) + (rows if seconds else 0)

    def read(self, workers: int) -> dict[str, float]:
        """Rows a second over all workers, share of the time spent waiting, for each teacher that labelled: rows a
        second of one copy, and rows labelled by this worker's share; for images, how many processors decoding kept
        busy."""
        seconds = time.perf_counter() - self.started
        record = {"rows_per_s": workers * self.rows / seconds, "wait_share": self.waited / seconds, "seconds": seconds}
        for name, worked in self.teacher_seconds.items():
            record[f"labelled/{name}"] = self.labelled[name] * workers
            if worked:
                record[f"teacher_rows_per_s/{name}"] = self.labelled[name] / worked
        if self.decode_seconds is not None:
            record["decoding_processors"] = workers * self.decode_seconds / seconds
        return record
