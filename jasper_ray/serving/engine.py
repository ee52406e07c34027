"""The model's threads, fed with batches of tokens across requests, and what lets requests in."""

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
from jasper_ray.serving.queue import SHARE, Row, TokenQueue, Work

MODEL_NICENESS = 10
"""How far the model's threads stand back behind the event loop."""
SWITCH_S = 0.0005
"""How long a thread may keep Python's lock from another; Python's own 5 ms are long beside an operation of a model."""
PADDING = 1 / 16
"""Of a full batch's tokens, what padding may take of a batch: more, and two batches are faster than one."""


class Watching(Protocol):
    """Who wants to know of every batch."""

    def batch(self, rows: int, tokens: int, computed: int, seconds: float) -> None:
        """`tokens` were asked for, `computed` went through the model, padding included."""
        ...


class Engine:
    """Rows in, vectors out.

    Everything but `run` belongs to the event loop; the lock guards what both touch. Several threads may embed side by
    side: on processors two batches in two threads are faster than one batch in two threads after the other.
    """

    def __init__(
        self,
        model: Model,
        queue: TokenQueue,
        wait_s: float,
        watching: Watching,
        threads: int = 1,
    ) -> None:
        self.model = model
        self.queue = queue
        self.wait_s = wait_s
        self.watching = watching
        self.coming = 0
        """Requests that are being read; the batch that waits, waits for them."""
        self._arrived = threading.Condition()
        self._closed = False
        self._idle = 0
        """Threads that have nothing to do."""
        self._forsaken = False
        self._busy_s = 0.0
        self._answered_s = 0.0
        """When a batch was last answered, if more waited then."""
        self._asked = (time.perf_counter(), 0.0)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads = [threading.Thread(target=self.run, name="model", daemon=True) for _ in range(threads)]

    def start(self) -> None:
        """Begin to embed; answers go to the event loop that runs now."""
        self._loop = asyncio.get_running_loop()
        sys.setswitchinterval(SWITCH_S)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Take no more, and end the threads once what waits is embedded."""
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()
        for thread in self._threads:
            thread.join(timeout=5)

    def busy_share(self) -> float:
        """The share of the time since this was last asked in which the model worked."""
        now, busy_s = time.perf_counter(), self._busy_s
        (before, busy_before), self._asked = self._asked, (now, busy_s)
        return (busy_s - busy_before) / max(now - before, 1e-3) / len(self._threads)

    def check(self) -> None:
        """Refuse at once what could not be answered, before any of it is read.

        Raises:
            Refusal: the model is dead, or too much waits.
        """
        if self.model.dead or self._closed:
            raise unavailable(self.model.dead or "the server is stopping")
        self.queue.check()

    def admit(self, tokens: int) -> Admission:
        """Let a request in that has about so many tokens.

        Raises:
            Refusal: too much waits, or the model is dead.
        """
        self.check()
        return Admission(self, tokens)

    async def embed(self, inputs: Sequence[Prepared], heads: Sequence[int], admission: Admission) -> Work:
        """The work when it is done: its `rows` are vectors by head, in the order of `inputs`.

        Raises:
            Refusal: an input fails, or the model is dead.
        """
        assert self._loop
        work = Work(tuple(heads), self._loop.create_future(), [None] * len(inputs), len(inputs))
        with self._arrived:
            if self.model.dead or self._closed:
                raise unavailable(self.model.dead or "the server is stopping")
            admission.hand_over()
            work.queued_s = time.perf_counter()
            self.queue.put([Row(work, place, one, self.model.kind(one)) for place, one in enumerate(inputs)])
            self._arrived.notify_all()
        try:
            await work.answer
        except BaseException:  # the client has gone, or a row has failed: the others need not be embedded
            self._forsaken = True
            raise
        return work

    def run(self) -> None:
        """Embed batch after batch until `close`."""
        yield_to_others()
        batch: list[Row] = []
        try:
            while batch := self._next():
                began = time.perf_counter()
                outcomes, computed = self.model.embed(batch)
                self._answer(batch, outcomes, computed, time.perf_counter() - began)
        except BaseException as error:  # our own fault: better replaced than silent
            self.model.die(error)
            with self._arrived:
                batch = [*batch, *self.queue.rows]
                self.queue.lines.clear()
            self._tell(deliver, batch, [unavailable(self.model.dead or "")] * len(batch), 0.0)

    def _next(self) -> list[Row]:
        """The next batch, nothing at the end."""
        with self._arrived:
            self._idle += 1
            batch: list[Row] = []
            while not batch and (self.queue.lines or not self._closed):
                if not self.queue.lines:
                    self._arrived.wait()
                self._wait_for_more()
                batch = self._batch()  # empty where another thread was faster, or everyone who waited has gone
            self._idle -= 1
            return batch

    def _wait_for_more(self) -> None:
        """Give requests that are being read a moment to join a batch which is not full."""
        deadline = time.perf_counter() + self.wait_s
        while self.queue.lines and self.coming and self._room and (left := deadline - time.perf_counter()) > 0:
            self._arrived.wait(left)

    def _batch(self) -> list[Row]:
        """What this thread embeds next: its share, where others have nothing to do."""
        if self._forsaken:
            self._forsaken = False
            self.queue.drop_abandoned()
        full = self.model.budget.tokens
        share = min(full, -(-self.queue.ready // self._idle))
        batch = self.queue.take(share, self.model.budget.max_rows, PADDING * full)
        now = time.perf_counter()
        for row in batch:
            row.work.began_s = row.work.began_s or now
        return batch

    @property
    def _room(self) -> bool:
        return self.queue.ready < self.model.budget.tokens

    def _answer(self, batch: Sequence[Row], outcomes: Sequence[Outcome], computed: int, seconds: float) -> None:
        tokens = sum(row.input.tokens for row in batch)
        with self._arrived:
            self._busy_s += seconds
            for row in batch:
                self.queue.leave(row.work, row.input.tokens)
            self._learn(tokens if computed else 0)
        self._tell(deliver, batch, outcomes, seconds)
        self._tell(self.watching.batch, len(batch), tokens, computed, seconds)

    def _learn(self, tokens: int) -> None:
        """The speed, from one batch's end to the next, if more waited all the while: all threads together, and with
        what else takes the processors. A batch of all there was would tell how little was asked for."""
        now = time.perf_counter()
        if self._answered_s and tokens:
            self.queue.drained(tokens, now - self._answered_s)
        self._answered_s = now if self.queue.lines else 0.0

    def _tell(self, told: Callable[..., None], *values: object) -> None:
        assert self._loop
        try:
            self._loop.call_soon_threadsafe(told, *values)
        except RuntimeError:  # the loop has ended, and with it everyone who waited
            self._closed = True


class Admission:
    """Room in the queue for one request, from before it is read until its rows are in the queue."""

    def __init__(self, engine: Engine, tokens: int) -> None:
        self.engine = engine
        self.tokens = min(tokens, int(engine.queue.budget * SHARE))
        self.open = True

    def __enter__(self) -> Admission:
        with self.engine._arrived:
            self.engine.queue.reserve(self.tokens)
            self.engine.coming += 1
        return self

    def hand_over(self) -> None:
        """From now on the rows themselves count; called with the engine's lock held."""
        self.engine.coming -= 1
        self.engine.queue.reserve(-self.tokens)
        self.open = False

    def __exit__(self, *_: object) -> None:
        if self.open:  # it never came to the queue
            with self.engine._arrived:
                self.hand_over()
                self.engine._arrived.notify()


def yield_to_others() -> None:
    """Let this thread be the last to get a processor: a flood of requests is refused in time only if the event loop,
    which refuses, need not wait for the model."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), MODEL_NICENESS)


def deliver(batch: Sequence[Row], outcomes: Sequence[Outcome], seconds: float) -> None:
    """Put what became of rows into their requests; a request is answered with its last row, or its first failure."""
    for work in {id(row.work): row.work for row in batch}.values():
        work.model_s += seconds
    for row, outcome in zip(batch, outcomes, strict=True):
        work = row.work
        if work.answer.done():
            continue
        if isinstance(outcome, Exception):
            work.answer.set_exception(placed(outcome, row.place))
            continue
        work.rows[row.place] = outcome
        work.left -= 1
        if not work.left:
            work.answer.set_result(work.rows)  # type: ignore[arg-type]


def placed(error: Exception, place: int) -> Exception:
    """The same refusal, with the place of the input that it is about."""
    if isinstance(error, Refusal) and error.status != 503:
        return Refusal(error.status, error.code, f"input {place}: {error.message}", error.param)
    return error
