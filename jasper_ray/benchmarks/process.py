"""Processes of their own for what is measured, and how much memory they take."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from jasper_ray.command import show_progress


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
