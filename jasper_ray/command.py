"""What every command shares: lines that tell how far it is, and errors of one sentence."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from jasper_ray.config import ConfigError


def run(main: Callable[[], None]) -> None:
    """Run a command; what the user has to mend ends it with one line on stderr and exit code 2, Ctrl-C with 130."""
    show_progress()
    try:
        main()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


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
    """What is told where the Ray that RAY_ADDRESS names does not let us in; Ray's errors are of many classes."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ConfigError(
        f"cannot join the Ray at {address} ({reason}); start it, or mend or unset RAY_ADDRESS; "
        "where it wants a token, set RAY_AUTH_MODE=token"
    )


def duration(seconds: float) -> str:
    """`1 h 5 min`, `2 min 10 s`, `8 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
