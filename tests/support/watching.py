"""A command in a process of its own, with its lines as they came and the processes below it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil
from small_run import title

ROOT = Path(__file__).resolve().parents[2]
OURS = re.compile(r"\d\d:\d\d:\d\d  jasper_ray[.\w]*  \S.*")

NAMING = """
import logging, runpy, sys
logging.basicConfig(level=logging.WARNING, format="%(asctime)s  %(name)s  %(message)s", datefmt="%H:%M:%S")
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a command whose lines also name the logger that they come from."""


@dataclass
class Watched:
    """A process, its lines as they came, and the processes below it with what they called themselves."""

    process: subprocess.Popen[str]
    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    below: dict[psutil.Process, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.process.stdout
        assert self.process.stderr
        pipes = ((self.process.stdout, self.out), (self.process.stderr, self.err))
        self.readers = [threading.Thread(target=self.read, args=pair, daemon=True) for pair in pipes]
        for reader in self.readers:
            reader.start()

    def read(self, pipe: IO[str], lines: list[str]) -> None:
        for line in pipe:
            self.times.append(time.monotonic())
            lines.append(line.rstrip("\n"))

    def look_below(self) -> None:
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.below = {child: title(child) for child in children}

    def wait(self) -> int:
        code = self.process.wait(timeout=400)
        for reader in self.readers:
            reader.join(timeout=30)
        return code

    def alive(self) -> list[str]:
        """What still runs of the processes below it, a few seconds after its end."""
        _, alive = psutil.wait_procs(list(self.below), timeout=5)
        return [title(process) for process in alive if title(process)]


def watch(folder: Path) -> Watched:
    run = [str(ROOT / "jobs" / "distill.py"), str(folder / "recipe.yaml"), "--run", str(folder / "run")]
    pipe = subprocess.PIPE
    return Watched(
        subprocess.Popen(
            [sys.executable, "-c", NAMING, *run],
            cwd=folder,
            text=True,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
        )
    )


def foreign(lines: Iterable[str]) -> list[str]:
    """The lines that none of our loggers wrote."""
    return [line for line in lines if not OURS.fullmatch(line)]
