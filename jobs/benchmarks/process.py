"""Processes of their own for what is measured, and how much memory they take."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from jasper_ray.cli import show_progress

STORE = "/dev/shm"
"""Where Ray keeps its objects on Linux, unless it is smaller than they may become, as in some containers."""


def in_fresh_process(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Call it in a Python of its own, so that nothing is warm that a user's run would find cold."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=show_progress) as process:
        return process.submit(function, *arguments).result()


def forget_peak() -> None:
    """Let `resident("VmHWM")` count from now on: Linux hands a parent's peak to its children."""
    Path("/proc/self/clear_refs").write_text("5")


def resident(figure: str) -> int:
    """KiB of memory that Linux counts for this process: `VmRSS` now, `VmHWM` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(figure))


Found = TypeVar("Found", bound="Looking")


class Looking:
    """Looks twice a second, as long as its block lasts."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def look(self) -> None:
        """What is done each time."""
        raise NotImplementedError

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self.look()

    def __enter__(self: Found) -> Found:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._over.set()
        self._thread.join()


class PeakUse(Looking):
    """The most bytes that a file system holds beyond what it held before."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.before = self.used()
        self.peak = 0

    def used(self) -> int:
        found = os.statvfs(self.path)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def look(self) -> None:
        self.peak = max(self.peak, self.used() - self.before)
