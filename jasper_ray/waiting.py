"""Lines for a person who waits: every few seconds, how far the program is and how long it has taken so far."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jasper_ray.command import duration

logger = logging.getLogger(__name__)

EVERY_S = 5.0
"""Seconds between two lines."""


@contextmanager
def telling(what: str, how_far: Callable[[], str | None] = lambda: None) -> Iterator[None]:
    """While it is entered, log `what: 12/27 shards, 10 s` every few seconds; nothing when it ends sooner.

    `how_far` makes the middle part. It runs in a thread, may return None, and must not raise.
    """
    began = time.monotonic()

    def line() -> str:
        far, so_far = how_far(), duration(time.monotonic() - began)
        return f"{what}: {far}, {so_far}" if far else f"{what}, {so_far}"

    with saying(line):
        yield


@contextmanager
def saying(line: Callable[[], str]) -> Iterator[None]:
    """While it is entered, log what `line` makes every few seconds; it runs in a thread and must not raise."""
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(EVERY_S):
            logger.info("%s", line())

    thread = threading.Thread(target=follow, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
