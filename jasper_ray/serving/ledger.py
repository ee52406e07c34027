"""What all replicas share: the tokens that keys have used, and everyone's metrics."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol

from jasper_ray.serving.keys import Key

MINUTE = 60.0
FORGET_S = 10.0
"""A replica that has not told its metrics for so long is gone."""


class Book(Protocol):
    """A ledger, in this process or another."""

    def take(self, key: str, tokens: int, per_minute: int) -> Awaitable[float]:
        """See `Ledger.take`."""
        ...

    def exchange(self, replica: str, metrics: str) -> Awaitable[dict[str, str]]:
        """See `Ledger.exchange`."""
        ...


@dataclass
class Bucket:
    """Tokens that a key may still use; they come back steadily."""

    left: float
    at_s: float


class Ledger:
    """Kept once for all replicas."""

    def __init__(self) -> None:
        self._buckets: dict[str, Bucket] = {}
        self._metrics: dict[str, tuple[float, str]] = {}

    async def take(self, key: str, tokens: int, per_minute: int) -> float:
        """Use tokens of a key; 0, or the seconds after which they may be used.

        A key that has tokens left may use more than these at once, and owes the rest: a request larger than a
        minute's tokens is answered, too.
        """
        now = time.monotonic()
        bucket = self._buckets.setdefault(key, Bucket(per_minute, now))
        bucket.left = min(per_minute, bucket.left + (now - bucket.at_s) * per_minute / MINUTE)
        bucket.at_s = now
        if bucket.left <= 0 and tokens > 0:
            return max((1 - bucket.left) * MINUTE / per_minute, 0.05)
        bucket.left -= tokens
        return 0.0

    async def exchange(self, replica: str, metrics: str) -> dict[str, str]:
        """Tell a replica's metrics, and hear what the others told last."""
        now = time.monotonic()
        self._metrics[replica] = (now, metrics)
        self._metrics = {name: told for name, told in self._metrics.items() if now - told[0] < FORGET_S}
        return {name: text for name, (_, text) in self._metrics.items()}


async def charge(book: Book, key: Key, tokens: int) -> float:
    """Use a key's tokens, where it has a limit; 0, or the seconds to wait."""
    if key.tokens_per_minute is None:
        return 0.0
    return await book.take(key.name, tokens, key.tokens_per_minute)
