"""What waits for the model: how much may, and which of it goes next. Knows no threads and no model."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

from jasper_ray.serving.errors import overloaded
from jasper_ray.serving.inputs import Prepared

WINDOW = 512
"""Rows among which a batch looks for others of its length."""
FADING = 0.9
"""What the rate of draining keeps of what it was, at every batch."""


@dataclass(eq=False)
class Work:
    """A request's rows on their way through the model."""

    heads: tuple[int, ...]
    answer: asyncio.Future[list[dict[int, np.ndarray]]]
    rows: list[dict[int, np.ndarray] | None]
    left: int
    queued_s: float = 0.0
    """When it was queued."""
    began_s: float = 0.0
    """When the first row of it went into the model."""
    model_s: float = 0.0
    """Seconds of the batches that its rows were in."""

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.answer.done()


@dataclass(eq=False)
class Row:
    """One input of a request."""

    work: Work
    place: int
    """Which input of its request."""
    input: Prepared
    kind: Hashable
    """Rows of one kind may share a batch."""


@dataclass
class TokenQueue:
    """Rows in the order of their coming, and a budget of tokens for what may wait."""

    seconds: float
    """Of work that may wait, at the rate of draining."""
    fixed_tokens: int | None = None
    """Tokens that may wait instead."""
    rate: float = 1.0
    """Tokens a second that the model embeds while it works."""
    waiting: int = 0
    """Tokens that are admitted and not yet embedded."""
    rows: list[Row] = field(default_factory=list)

    @property
    def budget(self) -> float:
        """Tokens that may wait."""
        return self.seconds * self.rate if self.fixed_tokens is None else self.fixed_tokens

    @property
    def wait_s(self) -> float:
        """Seconds until all that waits now is embedded."""
        return self.waiting / self.rate

    def check(self) -> None:
        """Refuse more where too much waits: the same for one input and for a thousand, so that none is starved.

        Raises:
            Refusal: with the seconds in which the excess will be embedded.
        """
        excess = self.waiting - self.budget
        if excess > 0:
            raise overloaded(max(excess / self.rate, 0.05))

    def drained(self, tokens: int, seconds: float) -> None:
        """Learn from a batch how fast the model is when it has plenty to do."""
        self.rate = FADING * self.rate + (1 - FADING) * tokens / max(seconds, 1e-6)

    def drop_abandoned(self) -> int:
        """Forget rows nobody waits for; their tokens."""
        gone = sum(row.input.tokens for row in self.rows if row.work.abandoned)
        if gone:
            self.rows = [row for row in self.rows if not row.work.abandoned]
        return gone

    def take(self, tokens: int, max_rows: int) -> list[Row]:
        """The next batch: the row that came first, and the rows most like it in length which came soon after.

        Rows times the longest of them is at most `tokens`, unless the first row alone has more.
        """
        if not self.rows:
            return []
        first, near = self.rows[0], self.rows[:WINDOW]
        alike = [row for row in near[1:] if row.kind == first.kind]
        alike.sort(key=lambda row: abs(row.input.tokens - first.input.tokens))
        batch, longest = [first], first.input.tokens
        for row in alike:
            longest = max(longest, row.input.tokens)
            if len(batch) == max_rows or longest * (len(batch) + 1) > tokens:
                break
            batch.append(row)
        chosen = set(map(id, batch))
        self.rows[:WINDOW] = [row for row in near if id(row) not in chosen]
        return batch
