"""The frame of every benchmark: options, rounds in turn, a table of figures, fresh processes, peaks of memory."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from jasper_ray.cli import log_to_stderr

Record = dict[str, Any]
Records = list[Record]

STORE = "/dev/shm"
"""Ray's object store on Linux, unless this file system is too small for it, as in some containers."""


@dataclass(frozen=True)
class Option:
    """An option of a benchmark: `--peer-batch` becomes the argument `peer_batch` of its function."""

    flag: str
    default: Any
    help: str
    type: Callable[[str], Any] | None = None
    """Reads the written value; unset: the type of the default."""
    choices: Sequence[str] | None = None
    metavar: str | None = None
    resolve: Callable[[Any], Any] | None = None
    """Applied when the benchmark starts, so that the user sees its ConfigError."""

    @property
    def argument(self) -> str:
        """The name of the function's argument."""
        return self.flag.removeprefix("--").replace("-", "_")

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add the option to a command line; its help ends with the default."""
        read = self.type or (str if self.default is None else type(self.default))
        shown = "" if self.default is None else " (default %(default)s)"
        parser.add_argument(
            self.flag,
            type=read,
            default=self.default,
            help=self.help + shown,
            choices=self.choices,
            metavar=self.metavar,
        )


@dataclass(frozen=True)
class Benchmark:
    """A row of the table of benchmarks."""

    name: str
    help: str
    options: tuple[Option, ...]
    function: Callable[..., Records]
    """Takes the options as keyword arguments and returns the figures."""
    columns: str
    """Names of the figures that the table shows, separated by spaces; the JSON file has all."""

    def run(self, values: Mapping[str, Any]) -> Records:
        """Measure with the options' values."""
        given = {option.argument: (option, values[option.argument]) for option in self.options}
        return self.function(
            **{name: option.resolve(value) if option.resolve else value for name, (option, value) in given.items()}
        )


MODEL = Option("--model", "pypi:all-MiniLM-L6-v2", "student folder or any sentence-transformers model")
THREADS = Option("--threads", os.cpu_count() or 1, "torch's threads of each side")
DEVICE = Option("--device", "cuda", "device that computes", choices=("cuda", "cpu"))
TOKENS = Option("--tokens", None, "tokens of a text of full length; unset: the student's max_length", type=int)
PEAK = Option("--peak", None, "peak of the device in 10^12 operations/s; unset: measured", type=float, metavar="TFLOPS")


def rows_option(default: int) -> Option:
    """Make the option `--rows`."""
    return Option("--rows", default, "texts to measure with")


def rounds_option(default: int = 1) -> Option:
    """Make the option `--rounds`."""
    return Option("--rounds", default, "times that each side runs")


def table(records: Iterable[Record], columns: str) -> str:
    """Write one line a record with aligned columns, and a dash for a figure that a record lacks."""
    names = columns.split()
    rows = [names, *([cell(record.get(name)) for name in names] for record in records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows)


def cell(value: str | float | None) -> str:
    """Write one figure."""
    if value is None or isinstance(value, str):
        return value or "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def in_turn(ways: Mapping[str, Callable[[], Record]], rounds: int) -> dict[str, Records]:
    """Measure each way once a round, all ways in turn, and print each record: a way takes minutes."""
    measured: dict[str, Records] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, measure in ways.items():
            measured[way].append({"way": way, **measure()})
            print(measured[way][-1], flush=True)
    return measured


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new Python process, which is as cold as a user's."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=log_to_stderr) as process:
        return process.submit(function, *arguments).result()


def reset_peak_memory() -> None:
    """Restart `peak_mib()`: on Linux a child process inherits its parent's peak."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """Return the peak of this process's resident memory, which psutil does not report on Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def resident_mib(process: psutil.Process) -> float:
    """Return the resident memory of a process now."""
    return float(process.memory_info().rss) / 2**20


class Sampler:
    """Calls `sample` twice a second until its block ends."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def sample(self) -> None:
        """Take one sample."""
        raise NotImplementedError

    def _run(self) -> None:
        while not self._ended.wait(0.5):
            self.sample()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()


class PeakStoreUse(Sampler):
    """The peak of Ray's object store, in MiB beyond what its file system held before."""

    def __init__(self) -> None:
        super().__init__()
        self.before = shutil.disk_usage(STORE).used
        self.peak_mib = 0.0

    def sample(self) -> None:
        """Keep the peak."""
        self.peak_mib = max(self.peak_mib, (shutil.disk_usage(STORE).used - self.before) / 2**20)
