"""What waits for the model: how much may, and which of it goes next. Knows no threads and no model.

Requests take turns at leading a batch, so that one of two thousand texts delays one of a single text by a batch, and
not by two thousand texts. For the same reason a large request counts for a share of the budget at most: it does not
shut the others out while it is worked on.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np

from jasper_ray.serving.errors import overloaded
from jasper_ray.serving.inputs import Prepared

WINDOW = 512
"""Rows among which a batch looks for others of its length; more where more fit into it."""
SHARE = 0.5
"""Of the budget that one request can fill."""
FADING = 0.95
"""What counts of the batches before, at every batch, when the rate of draining is told."""


@dataclass(eq=False)
class Work:
    """A request's rows on their way through the model."""

    heads: tuple[int, ...]
    answer: asyncio.Future[list[dict[int, np.ndarray]]]
    rows: list[dict[int, np.ndarray] | None]
    left: int
    """Rows that are not embedded."""
    tokens: int = 0
    """Tokens of these."""
    had: int = 0
    """Tokens that it has had in its turn."""
    most: float = 0.0
    """Tokens that count against the budget, at most."""
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
    """Requests in the order of their turns, and a budget of tokens for what may wait."""

    seconds: float
    """Of work that may wait, at the rate of draining."""
    fixed_tokens: int | None = None
    """Tokens that may wait instead."""
    rate: float = 1.0
    """Tokens a second that the model embeds while it works."""
    waiting: int = 0
    """Tokens that are admitted and not yet embedded."""
    counted: float = 0.0
    """What of them counts against the budget."""
    ready: int = 0
    """Tokens of the rows that could go into a batch now."""
    lines: dict[Work, list[Row]] = field(default_factory=dict)
    """The rows of each request that have not gone into a batch; whose turn it is stands first."""

    def __post_init__(self) -> None:
        self._drained = (self.rate, 1.0)

    @property
    def budget(self) -> float:
        """Tokens that may wait."""
        return self.seconds * self.rate if self.fixed_tokens is None else self.fixed_tokens

    @property
    def wait_s(self) -> float:
        """Seconds until all that waits now is embedded."""
        return self.waiting / self.rate

    @property
    def rows(self) -> Iterator[Row]:
        """What waits, in the order of turns."""
        return chain.from_iterable(self.lines.values())

    def check(self) -> None:
        """Refuse more where too much waits: the same for one input and for a thousand, so that none is starved.

        Raises:
            Refusal: with the seconds in which the excess will be embedded.
        """
        excess = self.counted - self.budget
        if excess > 0:
            raise overloaded(max(excess / self.rate, 0.05))

    def reserve(self, tokens: int) -> None:
        """Count a request that is being read, by a guess; less than nothing takes the guess back."""
        self.waiting += tokens
        self.counted += tokens

    def put(self, rows: Sequence[Row]) -> None:
        """Queue the rows of one request."""
        work = rows[0].work
        work.tokens, work.most = sum(row.input.tokens for row in rows), self.budget * SHARE
        self.lines[work] = list(rows)
        self.ready += work.tokens
        self.waiting += work.tokens
        self.counted += min(work.tokens, work.most)

    def leave(self, work: Work, tokens: int) -> None:
        """Count tokens of a request no longer: they are embedded, or nobody waits for them."""
        before = min(work.tokens, work.most)
        work.tokens -= tokens
        self.waiting -= tokens
        self.counted -= before - min(work.tokens, work.most)

    def drained(self, tokens: int, seconds: float) -> None:
        """Learn from tokens that were embedded in a time in which there was always more to do."""
        before_tokens, before_s = self._drained
        self._drained = FADING * before_tokens + tokens, FADING * before_s + seconds
        self.rate = self._drained[0] / self._drained[1]

    def drop_abandoned(self) -> None:
        """Forget rows that nobody waits for."""
        for work in [work for work in self.lines if work.abandoned]:
            gone = sum(row.input.tokens for row in self.lines.pop(work))
            self.ready -= gone
            self.leave(work, gone)

    def take(self, tokens: int, max_rows: int, padding: float = math.inf) -> list[Row]:
        """The next batch: the first row of the request whose turn it is, and the rows near it that are most alike in
        length, whichever requests they belong to. Once that request has had a batch's tokens, the others have theirs.

        Rows times the longest of them is at most `tokens`, unless the first row alone has more; `padding` tokens of
        these are padding, at most.
        """
        first = next(self.rows, None)
        if first is None:
            return []
        near = list(islice(self.rows, max(WINDOW, min(max_rows, tokens // first.input.tokens))))
        alike = [row for row in near[1:] if row.kind == first.kind]
        alike.sort(key=lambda row: abs(row.input.tokens - first.input.tokens))
        batch, longest, useful = [first], first.input.tokens, first.input.tokens
        for row in alike:
            longest, useful = max(longest, row.input.tokens), useful + row.input.tokens
            computed = longest * (len(batch) + 1)
            if len(batch) == max_rows or computed > tokens or computed - useful > padding:
                break
            batch.append(row)
        self._take_out(batch)
        first.work.had += sum(row.input.tokens for row in batch if row.work is first.work)
        if first.work.had >= tokens and first.work in self.lines:
            first.work.had = 0
            self.lines[first.work] = self.lines.pop(first.work)
        return batch

    def _take_out(self, batch: Sequence[Row]) -> None:
        self.ready -= sum(row.input.tokens for row in batch)
        chosen = set(map(id, batch))
        for work in {id(row.work): row.work for row in batch}.values():
            self.lines[work] = [row for row in self.lines[work] if id(row) not in chosen]
            if not self.lines[work]:
                del self.lines[work]
