"""The queue before the model: a budget for what may wait, and the choice of the next batch. No threads, no model.

Requests take turns at leading a batch, so a request of two thousand texts delays one of a single text by one batch. For
the same reason a large request counts for at most a share of the budget: it does not lock the others out.
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
"""Rows searched for others of the same length; more if a batch holds more."""
MAX_SHARE = 0.5
"""Share of the budget that one request can fill."""
RATE_DECAY = 0.95
"""Weight of the past, per batch, in the estimate of the model's speed."""


@dataclass(eq=False)
class PendingRequest:
    """A request whose rows wait for the model or are in it."""

    heads: tuple[int, ...]
    answer: asyncio.Future[list[dict[int, np.ndarray]]]
    vectors: list[dict[int, np.ndarray] | None]
    """Unit vectors by head, one entry per row."""
    rows_left: int
    """Rows that are not embedded."""
    tokens: int = 0
    """Tokens of those rows."""
    tokens_in_turn: int = 0
    """Tokens embedded in the request's current turn."""
    max_counted: float = 0.0
    """Upper bound of the tokens that count against the budget."""
    queued_s: float = 0.0
    """Time at which the rows were queued."""
    began_s: float = 0.0
    """Time at which the first row went into the model."""
    model_s: float = 0.0
    """Seconds of all batches with rows of the request."""

    @property
    def abandoned(self) -> bool:
        """True if nobody waits for the answer any more."""
        return self.answer.done()


@dataclass(eq=False)
class QueueRow:
    """One input of a request."""

    request: PendingRequest
    index: int
    """Position of the input in its request."""
    input: Prepared
    kind: Hashable
    """Rows of the same kind may share a batch."""


@dataclass
class TokenQueue:
    """Requests in the order of their turns, and a budget of tokens for what may wait."""

    seconds: float
    """Seconds of work that may wait, at the current rate."""
    fixed_tokens: int | None = None
    """Tokens that may wait, instead of `seconds`."""
    rate: float = 1.0
    """Tokens per second that the model embeds while it works."""
    waiting: int = 0
    """Tokens that are admitted and not yet embedded."""
    counted: float = 0.0
    """Tokens that count against the budget."""
    ready: int = 0
    """Tokens of the rows that could go into a batch now."""
    requests: dict[PendingRequest, list[QueueRow]] = field(default_factory=dict)
    """Rows of each request that are in no batch yet; the first request has its turn."""

    def __post_init__(self) -> None:
        self._embedded = (self.rate, 1.0)

    @property
    def budget(self) -> float:
        """Tokens that may wait."""
        return self.seconds * self.rate if self.fixed_tokens is None else self.fixed_tokens

    @property
    def wait_s(self) -> float:
        """Seconds until everything that waits now is embedded."""
        return self.waiting / self.rate

    @property
    def rows(self) -> Iterator[QueueRow]:
        """The waiting rows, in the order of turns."""
        return chain.from_iterable(self.requests.values())

    def check(self) -> None:
        """Refuse more work if the budget is exceeded, alike for one input and for a thousand, so that no size starves.

        Raises:
            Refusal: with the seconds until the excess is embedded.
        """
        excess = self.counted - self.budget
        if excess > 0:
            raise overloaded(max(excess / self.rate, 0.05))

    def reserve(self, tokens: int) -> None:
        """Count a request that is still being read, by an estimate; a negative number takes the estimate back."""
        self.waiting += tokens
        self.counted += tokens

    def put(self, rows: Sequence[QueueRow]) -> None:
        """Queue the rows of one request."""
        request = rows[0].request
        request.tokens, request.max_counted = sum(row.input.tokens for row in rows), self.budget * MAX_SHARE
        self.requests[request] = list(rows)
        self.ready += request.tokens
        self.waiting += request.tokens
        self.counted += min(request.tokens, request.max_counted)

    def uncount(self, request: PendingRequest, tokens: int) -> None:
        """Remove tokens of a request from the counts, once they are embedded or abandoned."""
        before = min(request.tokens, request.max_counted)
        request.tokens -= tokens
        self.waiting -= tokens
        self.counted -= before - min(request.tokens, request.max_counted)

    def learn_rate(self, tokens: int, seconds: float) -> None:
        """Update the rate from tokens embedded in a time in which more was always waiting."""
        tokens_before, seconds_before = self._embedded
        self._embedded = RATE_DECAY * tokens_before + tokens, RATE_DECAY * seconds_before + seconds
        self.rate = self._embedded[0] / self._embedded[1]

    def drop_abandoned(self) -> None:
        """Remove the rows that nobody waits for."""
        for request in [request for request in self.requests if request.abandoned]:
            gone = sum(row.input.tokens for row in self.requests.pop(request))
            self.ready -= gone
            self.uncount(request, gone)

    def take(self, tokens: int, max_rows: int, padding: float = math.inf) -> list[QueueRow]:
        """Remove and return the next batch: the first row of the request that has its turn, and the rows near it that
        are closest in length, from any request. A request whose turn has used a batch's tokens goes to the end.

        The longest row times the number of rows is at most `tokens`, unless the first row alone has more. At most
        `padding` tokens of that are padding.
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
        self._remove(batch)
        leader = first.request
        leader.tokens_in_turn += sum(row.input.tokens for row in batch if row.request is leader)
        if leader.tokens_in_turn >= tokens and leader in self.requests:
            leader.tokens_in_turn = 0
            self.requests[leader] = self.requests.pop(leader)
        return batch

    def _remove(self, batch: Sequence[QueueRow]) -> None:
        self.ready -= sum(row.input.tokens for row in batch)
        chosen = set(map(id, batch))
        for request in {id(row.request): row.request for row in batch}.values():
            self.requests[request] = [row for row in self.requests[request] if id(row) not in chosen]
            if not self.requests[request]:
                del self.requests[request]
