"""Shared by all commands: exit codes, one-line errors, signals, log lines, and progress lines for long waits."""

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

STOPS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what Kubernetes, Slurm, Docker and `ray job stop` send."""


CONTINUE = "; run the same command again to continue"


def run(main: Callable[[], None], *, continues: bool = False) -> None:
    """Run a command, and end it with one line on stderr where it fails or is stopped. `continues`: the same command
    again goes on where it was.

    Exit codes: 2 for an error that the user has to fix, 130 for Ctrl-C, 143 for SIGTERM.
    """
    show_progress()
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


@contextmanager
def signals_kept(*, ignored_meanwhile: bool = False) -> Iterator[None]:
    """Restore the handlers of Ctrl-C and SIGTERM after calls that replace them, as Ray's start and end do. Outside of
    the main thread, which alone may replace them, there is nothing to restore."""
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


def show_progress() -> None:
    """Our lines on stderr, and no bars of the libraries between them."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("jasper_ray").setLevel(logging.INFO)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def least_and_most(option: str, written: str) -> tuple[int, int]:
    """`2` or `1:4` as how many at least and at most.

    Raises:
        ConfigError: it is neither.
    """
    least, _, most = written.partition(":")
    if not (least.isdecimal() and (most or least).isdecimal()):
        raise ConfigError(f"{option} {written} is not a number of copies; expected one such as 4 or 1:8")
    return int(least), int(most or least)


def cannot_join(address: str, error: Exception) -> ConfigError:
    """Say that the Ray which RAY_ADDRESS names does not let us in; Ray's errors are of many classes."""
    return ConfigError(
        f"cannot join the Ray at {address} ({first_line(error)}); start it, or mend or unset RAY_ADDRESS; "
        "where it wants a token, set RAY_AUTH_MODE=token"
    )


def cannot_start(error: Exception) -> ConfigError:
    """Say that a local Ray did not start, and where its logs are."""
    return ConfigError(
        f"a local Ray did not start ({first_line(error)}); its logs are in /tmp/ray/session_latest/logs; "
        "where the machine is busy, run the same command again later"
    )


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def duration(seconds: float) -> str:
    """`1 h 5 min`, `2 min 10 s`, `8 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


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
