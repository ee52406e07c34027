"""Shared by all commands: exit codes, one-line errors, signals, log lines, and progress lines during long waits."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from jasper_ray.config import ConfigError

logger = logging.getLogger(__name__)

STOPS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and the signal of Kubernetes, Slurm, Docker and `ray job stop`."""

CONTINUE = "; run the same command again to continue"

PROGRESS_S = 5.0
"""Seconds between two progress lines."""


def run(main: Callable[[], None], *, continues: bool = False) -> None:
    """Run a command. A ConfigError prints one line and exits with 2, Ctrl-C with 130, SIGTERM with 143.

    `continues`: the same command resumes its work, and the last line says so.
    """
    log_to_stderr()
    received: list[int] = []

    def stop_like_ctrl_c(number: int, frame: FrameType | None) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt  # the one exception that also interrupts Ray's waiting

    signal.signal(signal.SIGTERM, stop_like_ctrl_c)
    try:
        main()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        for number in STOPS:
            signal.signal(number, signal.SIG_IGN)
        name, code = ("SIGTERM", 143) if received else ("Ctrl-C", 130)
        print(f"stopped by {name}{CONTINUE if continues else ''}", file=sys.stderr)
        sys.exit(code)


def log_to_stderr() -> None:
    """Log our lines to stderr, and no progress bars of libraries between them."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("jasper_ray").setLevel(logging.INFO)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@contextmanager
def signal_handlers_restored(*, ignored_meanwhile: bool = False) -> Iterator[None]:
    """Restore the handlers of Ctrl-C and SIGTERM after calls that replace them, such as Ray's start and end.

    Does nothing outside of the main thread, which alone may replace them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: handler for number in STOPS if (handler := signal.getsignal(number)) is not None}
    try:
        for number in STOPS if ignored_meanwhile else ():
            signal.signal(number, signal.SIG_IGN)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def min_and_max(option: str, written: str) -> tuple[int, int]:
    """Read `2` or `1:4`.

    Raises:
        ConfigError: it is neither.
    """
    least, _, most = written.partition(":")
    if not (least.isdecimal() and (most or least).isdecimal()):
        raise ConfigError(f"{option} {written} is not a number of copies; expected one such as 4 or 1:8")
    return int(least), int(most or least)


def duration(seconds: float) -> str:
    """Format seconds as `1 h 5 min`, `2 min 10 s` or `8 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@contextmanager
def log_progress(what: str, how_far: Callable[[], str | None] = lambda: None) -> Iterator[None]:
    """Log `what: 12/27 shards, 10 s` every few seconds until the block ends.

    `how_far` returns the middle part, or None. It runs in a thread and must not raise.
    """
    began = time.monotonic()

    def line() -> str:
        far, so_far = how_far(), duration(time.monotonic() - began)
        return f"{what}: {far}, {so_far}" if far else f"{what}, {so_far}"

    with log_repeatedly(line):
        yield


@contextmanager
def log_repeatedly(line: Callable[[], str]) -> Iterator[None]:
    """Log the result of `line` every few seconds until the block ends; it runs in a thread and must not raise."""
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(PROGRESS_S):
            logger.info("%s", line())

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
