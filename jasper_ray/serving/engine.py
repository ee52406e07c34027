"""The model's threads, fed with batches across requests, and the admission of requests to the queue."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from jasper_ray.serving.errors import Refusal, unavailable
from jasper_ray.serving.inputs import Prepared
from jasper_ray.serving.model import Model, Outcome
from jasper_ray.serving.queue import MAX_SHARE, PendingRequest, QueueRow, TokenQueue

MODEL_NICENESS = 10
"""`nice` value of the model's threads; the event loop goes first."""
SWITCH_S = 0.0005
"""Longest time a thread keeps Python's lock from another; Python's default of 5 ms is long beside one operation."""
MAX_PADDING = 1 / 16
"""Share of a full batch's tokens that may be padding; with more, two batches are faster than one."""


class BatchObserver(Protocol):
    """The receiver of every batch's figures."""

    def batch(self, rows: int, tokens: int, computed: int, seconds: float) -> None:
        """Record a batch: `tokens` of its rows, `computed` tokens with padding."""
        ...


class Engine:
    """Rows in, vectors out.

    All methods but `run` belong to the event loop; the lock guards the state that both share. Several threads may embed
    side by side: on CPUs two batches in two threads are faster than one batch in two threads after the other.
    """

    def __init__(
        self,
        model: Model,
        queue: TokenQueue,
        wait_s: float,
        observer: BatchObserver,
        threads: int = 1,
    ) -> None:
        self.model = model
        self.queue = queue
        self.wait_s = wait_s
        self.observer = observer
        self.being_read = 0
        """Requests whose rows are not queued yet; a batch that is not full waits for them."""
        self._changed = threading.Condition()  # re-entrant
        self._closed = False
        self._idle = 0
        """Threads without a batch."""
        self._has_abandoned = False
        self._busy_s = 0.0
        self._answered_s = 0.0
        """Time of the last answer, if more was waiting then; else 0."""
        self._last_share = (time.perf_counter(), 0.0)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads = [threading.Thread(target=self.run, name="model", daemon=True) for _ in range(threads)]

    def start(self) -> None:
        """Start the threads; they answer to the running event loop."""
        self._loop = asyncio.get_running_loop()
        sys.setswitchinterval(SWITCH_S)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Refuse new requests, embed those that wait, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=5)

    def busy_share(self) -> float:
        """Return the share of the time since the last call in which the model worked."""
        now, busy_s = time.perf_counter(), self._busy_s
        (before, busy_before), self._last_share = self._last_share, (now, busy_s)
        return (busy_s - busy_before) / max(now - before, 1e-3) / len(self._threads)

    def check(self) -> None:
        """Refuse a request that cannot be answered, before it is read.

        Raises:
            Refusal: the model is dead, the engine is closed, or the queue is full.
        """
        if self.model.dead or self._closed:
            raise unavailable(self.model.dead or "the server is stopping")
        self.queue.check()

    def admit(self, tokens: int) -> Admission:
        """Admit a request of about so many tokens.

        Raises:
            Refusal: see `check`.
        """
        self.check()
        return Admission(self, tokens)

    def reserve(self, tokens: int) -> None:
        """Count a request that is being read."""
        with self._changed:
            self.queue.reserve(tokens)
            self.being_read += 1

    def release(self, tokens: int) -> None:
        """Take a reservation back: the rows are queued now, or the request has ended without rows."""
        with self._changed:
            self.being_read -= 1
            self.queue.reserve(-tokens)
            self._changed.notify()

    async def embed(self, inputs: Sequence[Prepared], heads: Sequence[int], admission: Admission) -> PendingRequest:
        """Embed the inputs; the request returned has their vectors by head, in the order of `inputs`.

        Raises:
            Refusal: an input fails, or the model is dead.
        """
        assert self._loop
        request = PendingRequest(tuple(heads), self._loop.create_future(), [None] * len(inputs), len(inputs))
        with self._changed:
            if self.model.dead or self._closed:
                raise unavailable(self.model.dead or "the server is stopping")
            admission.close()
            request.queued_s = time.perf_counter()
            self.queue.put([QueueRow(request, index, one, self.model.kind(one)) for index, one in enumerate(inputs)])
            self._changed.notify_all()
        try:
            await request.answer
        except BaseException:  # the client has gone, or a row has failed: the other rows need no vectors
            self._has_abandoned = True
            raise
        return request

    def run(self) -> None:
        """Embed batch after batch until `close`."""
        lower_priority()
        batch: list[QueueRow] = []
        try:
            while batch := self._next():
                began = time.perf_counter()
                outcomes, computed = self.model.embed(batch)
                self._answer(batch, outcomes, computed, time.perf_counter() - began)
        except BaseException as error:  # a bug: a replica that is replaced is better than one that hangs
            self.model.die(error)
            with self._changed:
                batch = [*batch, *self.queue.rows]
                self.queue.requests.clear()
            self._call_on_loop(deliver, batch, [unavailable(self.model.dead or "")] * len(batch), 0.0)

    def _next(self) -> list[QueueRow]:
        """Wait for the next batch; an empty one means the end."""
        with self._changed:
            self._idle += 1
            batch: list[QueueRow] = []
            while not batch and (self.queue.requests or not self._closed):
                if not self.queue.requests:
                    self._changed.wait()
                self._wait_for_more()
                batch = self._take()  # empty if another thread was faster, or if every request was abandoned
            self._idle -= 1
            return batch

    def _wait_for_more(self) -> None:
        """Give requests that are being read a moment to join a batch that is not full."""
        deadline = time.perf_counter() + self.wait_s
        while (
            self.queue.requests
            and self.being_read
            and self.queue.ready < self.model.budget.tokens
            and (left := deadline - time.perf_counter()) > 0
        ):
            self._changed.wait(left)

    def _take(self) -> list[QueueRow]:
        """Take this thread's next batch: only its share of the rows if other threads are idle."""
        if self._has_abandoned:
            self._has_abandoned = False
            self.queue.drop_abandoned()
        full = self.model.budget.tokens
        share = min(full, -(-self.queue.ready // self._idle))
        batch = self.queue.take(share, self.model.budget.max_rows, MAX_PADDING * full)
        now = time.perf_counter()
        for row in batch:
            row.request.began_s = row.request.began_s or now
        return batch

    def _answer(self, batch: Sequence[QueueRow], outcomes: Sequence[Outcome], computed: int, seconds: float) -> None:
        tokens = sum(row.input.tokens for row in batch)
        with self._changed:
            self._busy_s += seconds
            for row in batch:
                self.queue.uncount(row.request, row.input.tokens)
            self._learn_rate(tokens if computed else 0)
        self._call_on_loop(deliver, batch, outcomes, seconds)
        self._call_on_loop(self.observer.batch, len(batch), tokens, computed, seconds)

    def _learn_rate(self, tokens: int) -> None:
        """Measure the speed from the end of one batch to the end of the next, if more was waiting all the while: all
        threads together, with all other work on the CPUs. A batch of everything there was would measure the load."""
        now = time.perf_counter()
        if self._answered_s and tokens:
            self.queue.learn_rate(tokens, now - self._answered_s)
        self._answered_s = now if self.queue.requests else 0.0

    def _call_on_loop(self, function: Callable[..., None], *values: object) -> None:
        assert self._loop
        try:
            self._loop.call_soon_threadsafe(function, *values)
        except RuntimeError:  # the loop has ended, and nobody waits any more
            self._closed = True


class Admission:
    """Room in the queue for one request, from before it is read until its rows are queued."""

    def __init__(self, engine: Engine, tokens: int) -> None:
        self.engine = engine
        self.tokens = min(tokens, int(engine.queue.budget * MAX_SHARE))
        self.open = True

    def __enter__(self) -> Admission:
        self.engine.reserve(self.tokens)
        return self

    def close(self) -> None:
        """Release the room, once; from then on the rows themselves count."""
        if self.open:
            self.open = False
            self.engine.release(self.tokens)

    def __exit__(self, *_: object) -> None:
        self.close()


def lower_priority() -> None:
    """Make this thread the last to get a CPU, so that the event loop refuses a flood in time."""
    if sys.platform == "linux":  # where threads have priorities of their own
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), MODEL_NICENESS)


def deliver(batch: Sequence[QueueRow], outcomes: Sequence[Outcome], seconds: float) -> None:
    """Hand outcomes to their requests; a request is answered by its last row, or by its first failure."""
    for request in {id(row.request): row.request for row in batch}.values():
        request.model_s += seconds
    for row, outcome in zip(batch, outcomes, strict=True):
        request = row.request
        if request.answer.done():
            continue
        if isinstance(outcome, Exception):
            request.answer.set_exception(with_index(outcome, row.index))
            continue
        request.vectors[row.index] = outcome
        request.rows_left -= 1
        if not request.rows_left:
            request.answer.set_result(request.vectors)  # type: ignore[arg-type]


def with_index(error: Exception, index: int) -> Exception:
    """Add the index of the input to a refusal's message."""
    if isinstance(error, Refusal) and error.status != 503:
        return Refusal(error.status, error.code, f"input {index}: {error.message}", error.param)
    return error
