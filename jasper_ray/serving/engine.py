"""The model in threads of its own, fed with batches of tokens across requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from jasper_ray.config import ConfigError
from jasper_ray.encoders import StudentEncoder, TokenEncoder
from jasper_ray.encoders.budget import TokenBudget
from jasper_ray.serving.errors import Refusal, bad_request, check_size, too_large, unavailable
from jasper_ray.serving.inputs import Prepared
from jasper_ray.serving.queue import SHARE, Row, TokenQueue, Work

logger = logging.getLogger(__name__)

MODEL_NICENESS = 10
SWITCH_S = 0.0005
"""How long a thread may keep Python's lock from another; Python's own 5 ms are long beside an operation of a model."""
PADDING = 1 / 16
"""Of a full batch's tokens, what padding may take of a batch: more, and two batches are faster than one."""

Vectors = dict[int, np.ndarray]
"""Of one row: its unit vector by head."""
Outcome = Vectors | Exception


class Watching(Protocol):
    """Who wants to know of every batch."""

    def batch(self, rows: int, tokens: int, computed: int, seconds: float) -> None:
        """`tokens` were asked for, `computed` went through the model, padding included."""
        ...


class Engine:
    """Rows in, vectors out; one input that fails, fails alone.

    Everything but `run` belongs to the event loop; the lock guards what both touch. Several threads may embed side by
    side: on processors two batches in two threads are faster than one batch in two threads after the other.
    """

    def __init__(
        self,
        encoder: TokenEncoder,
        budget: TokenBudget,
        queue: TokenQueue,
        request_tokens: int,
        wait_s: float,
        watching: Watching,
        threads: int = 1,
    ) -> None:
        self.encoder = encoder
        self.budget = budget
        self.queue = queue
        self.request_tokens = request_tokens
        self.wait_s = wait_s
        self.watching = watching
        self.coming = 0
        """Requests that are being read; the batch that waits, waits for them."""
        self.dead: str | None = None
        """Why the model answers no more."""
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
        if self.dead or self._closed:
            raise unavailable(self.dead or "the server is stopping")
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
        check_size(sum(one.tokens for one in inputs), self.request_tokens)
        work = Work(tuple(heads), self._loop.create_future(), [None] * len(inputs), len(inputs))
        with self._arrived:
            if self.dead or self._closed:
                raise unavailable(self.dead or "the server is stopping")
            admission.hand_over()
            work.queued_s = time.perf_counter()
            self.queue.put([Row(work, place, one, self._kind(one)) for place, one in enumerate(inputs)])
            self._arrived.notify_all()
        try:
            await work.answer
        except BaseException:  # the client has gone, or a row has failed: the others need not be embedded
            self._forsaken = True
            raise
        return work

    def _kind(self, one: Prepared) -> tuple[bool, str | None]:
        return one.pixels_3SS is not None, None if self.encoder.pools_prompts else one.prompt_name

    def run(self) -> None:
        """Embed batch after batch until `close`."""
        yield_to_others()
        batch: list[Row] = []
        try:
            while batch := self._next():
                began = time.perf_counter()
                outcomes, computed = self._outcomes(batch)
                self._answer(batch, outcomes, computed, time.perf_counter() - began)
        except BaseException as error:  # our own fault: better replaced than silent
            self._die(error)
            with self._arrived:
                batch = [*batch, *self.queue.rows]
                self.queue.lines.clear()
            self._tell(deliver, batch, [unavailable(self.dead or "")] * len(batch), 0.0)

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
        full = self.budget.tokens
        share = min(full, -(-self.queue.ready // self._idle))
        batch = self.queue.take(share, self.budget.max_rows, PADDING * full)
        now = time.perf_counter()
        for row in batch:
            row.work.began_s = row.work.began_s or now
        return batch

    @property
    def _room(self) -> bool:
        return self.queue.ready < self.budget.tokens

    def _outcomes(self, batch: Sequence[Row]) -> tuple[list[Outcome], int]:
        """What became of each row. A batch that fails is halved until the row that is to blame stands alone."""
        if self.dead or not batch:
            return [unavailable(self.dead or "")] * len(batch), 0
        try:
            return self._vectors(batch)
        except Exception as error:
            if len(batch) == 1:
                return [self._blame(error, batch[0].input)], 0
        half = len(batch) // 2
        first, computed = self._outcomes(batch[:half])
        second, more = self._outcomes(batch[half:])
        return first + second, computed + more

    def _vectors(self, batch: Sequence[Row]) -> tuple[list[Outcome], int]:
        inputs = [row.input for row in batch]
        heads = sorted({head for row in batch for head in row.work.heads})
        if inputs[0].pixels_3SS is not None:
            assert isinstance(self.encoder, StudentEncoder)
            pixels = np.stack([one.pixels_3SS for one in inputs if one.pixels_3SS is not None])
            found = self.encoder.encode_pixels([one.ids for one in inputs], pixels, heads)
            computed = len(inputs) * max(one.tokens for one in inputs)
        else:
            name = None if self.encoder.pools_prompts else inputs[0].prompt_name
            found, computed = self.budget.encode(
                lambda ids: self.encoder.encode_tokens(ids, heads, name), [one.ids for one in inputs]
            )
        sound = np.all([np.isfinite(found[head]).all(axis=1) for head in heads], axis=0)
        return [
            {head: found[head][place] for head in row.work.heads} if sound[place] else not_finite()
            for place, row in enumerate(batch)
        ], computed

    def _blame(self, error: Exception, one: Prepared) -> Refusal:
        """Whether one input is to blame, or the model is dead: then it cannot embed the plainest input either."""
        logger.error("an input failed in the model: %s", type(error).__name__)
        try:
            self.encoder.encode_tokens([np.zeros(1, np.int32)], self.encoder.dims[:1])
            if one.pixels_3SS is not None and isinstance(self.encoder, StudentEncoder):
                black_B3SS = np.zeros_like(one.pixels_3SS)[None]
                self.encoder.encode_pixels([one.ids], black_B3SS, self.encoder.dims[:1])
        except Exception as again:
            self._die(again)
            return unavailable(self.dead or "")
        if isinstance(error, ConfigError):  # it does not fit into memory, even alone
            return too_large(str(error), "input", "out_of_memory")
        return bad_request(f"the model cannot embed this input ({type(error).__name__})", "input", "input_failed")

    def _die(self, error: BaseException) -> None:
        """Answer no more; whoever watches this replica's health replaces it."""
        self.dead = f"the model has failed ({type(error).__name__}); this replica is about to be replaced"
        logger.error("the model has failed: %s", type(error).__name__)

    def _answer(self, batch: Sequence[Row], outcomes: Sequence[Outcome], computed: int, seconds: float) -> None:
        tokens = sum(row.input.tokens for row in batch)
        with self._arrived:
            self._busy_s += seconds
            for row in batch:
                self.queue.leave(row.work, row.input.tokens)
            self._learn(tokens if computed else 0)
        assert self._loop
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


def not_finite() -> Refusal:
    return bad_request("the model's vector of this input is not finite", "input", "input_failed")
