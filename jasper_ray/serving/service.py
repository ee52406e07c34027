"""One embedding service behind every surface: from inputs to vectors, with admission, keys and counting."""

# Shape legend: N inputs, D size of the vectors.

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jasper_ray.encoders import StudentEncoder, TokenEncoder
from jasper_ray.serving.engine import Admission, Engine
from jasper_ray.serving.errors import Refusal, bad_request, check_size, over_limit, too_large
from jasper_ray.serving.inputs import ImageInput, Input, TextInput, TokenInput
from jasper_ray.serving.keys import Book, Key, Keys, charge
from jasper_ray.serving.metrics import Metrics
from jasper_ray.serving.prepare import Preparer
from jasper_ray.serving.settings import ServeSettings
from jasper_ray.serving.vectors import cut, head_for

USUAL_CHARS, MOST_CHARS = 4, 32
"""Characters of a token: mostly, and hardly ever more."""
CUT_SHARE = 1 / 8
"""What a token that is read and then cut off costs, of one that is embedded."""
IMAGE_TOKENS = 64
"""What an image is counted as until it is decoded."""


@dataclass(frozen=True)
class Embedded:
    """The vectors of a request, and what they cost."""

    x_ND: np.ndarray
    """Unit vectors, float32."""
    tokens: int
    """Of all inputs, prompts and special tokens included."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By phase: prepare, queue, model."""


@dataclass
class Service:
    """What the surfaces speak to."""

    settings: ServeSettings
    encoder: TokenEncoder
    preparer: Preparer
    engine: Engine
    keys: Keys
    book: Book
    metrics: Metrics
    identity: str
    """The hash of the model's files, or its commit."""
    precision: str
    ranges: Mapping[int, np.ndarray]
    """What int8 is stretched over, float32 `[2, D]`, by size."""
    default_prompt: str | None = None
    replica: str = "0"

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self.settings.served_name

    @property
    def dims(self) -> tuple[int, ...]:
        """The sizes that have a head of their own."""
        return self.encoder.dims

    def check_model(self, model: str | None) -> None:
        """Refuse a model that is not the one that is served."""
        if model is not None and model != self.name:
            raise Refusal(
                404, "model_not_found", f"there is no model of this name; this server has {self.name}", "model"
            )

    def prompt(self, name: str | None) -> str | None:
        """The prompt of a text whose request names `name`; an empty name means none."""
        return self.default_prompt if name is None else name or None

    async def embed(self, inputs: Sequence[Input], dim: int | None, caller: Key, param: str = "dimensions") -> Embedded:
        """Unit vectors of the inputs, in their order.

        Raises:
            Refusal: see `errors`; `param` is what the surface calls the size.
        """
        head, dim = head_for(self.dims, dim, param)
        self.check_inputs(inputs)
        began = time.perf_counter()
        with self.admit(inputs) as admission:
            prepared = await self.preparer.prepare(inputs)
            tokens = sum(one.tokens for one in prepared)
            check_size(tokens, self.settings.limits.request_tokens)
            wait_s = await charge(self.book, caller, tokens)
            if wait_s:
                assert caller.tokens_per_minute
                raise over_limit(caller.name, caller.tokens_per_minute, wait_s)
            work = await self.engine.embed(prepared, [head], admission)
        x_ND = cut(np.stack([row[head] for row in work.rows if row is not None]), dim)
        phases = {
            "prepare": work.queued_s - began,
            "queue": work.began_s - work.queued_s,
            "model": work.model_s,
        }
        self._count(caller, len(inputs), tokens, phases)
        return Embedded(x_ND, tokens, phases)

    def admit(self, inputs: Sequence[Input]) -> Admission:
        """Room for the work that inputs seem to be.

        Raises:
            Refusal: too much waits, or the model is dead.
        """
        longest = self.preparer.max_length
        return self.engine.admit(round(sum(guess(one, USUAL_CHARS, longest, CUT_SHARE) for one in inputs)))

    def check_inputs(self, inputs: Sequence[Input]) -> None:
        """Refuse none, too many, empty ones, and more than can ever fit."""
        self.check_count(len(inputs))
        self.check_images(sum(isinstance(one, ImageInput) for one in inputs))
        for place, one in enumerate(inputs):
            if (isinstance(one, TextInput) and not one.text) or (isinstance(one, TokenInput) and not one.ids):
                raise bad_request(f"input {place} is empty; leave it out", "input", "empty_input")
        longest, limits = self.preparer.max_length, self.settings.limits
        check_size(round(sum(guess(one, MOST_CHARS, longest) for one in inputs)), limits.request_tokens)

    def check_count(self, inputs: int) -> None:
        """Refuse no inputs, and too many."""
        if not inputs:
            raise bad_request("there is nothing to embed; give at least one input", "input", "empty_input")
        limit = self.settings.limits.inputs
        if inputs > limit:
            message = f"{inputs} inputs were sent and {limit} are allowed; send them in parts"
            raise too_large(message, "input", "too_many_inputs")

    def check_images(self, images: int) -> None:
        """Refuse images where the model sees none, and too many."""
        if images and not (isinstance(self.encoder, StudentEncoder) and self.encoder.sees):
            raise bad_request("this model takes texts alone; send no images", "input")
        limit = self.settings.limits.images
        if images > limit:
            message = f"{images} images were sent and {limit} are allowed; send them in parts"
            raise too_large(message, "input", "too_many_images")

    def _count(self, caller: Key, inputs: int, tokens: int, phases: Mapping[str, float]) -> None:
        self.metrics.tokens.labels(caller.name).inc(tokens)
        self.metrics.inputs.labels(caller.name).inc(inputs)
        for phase, seconds in phases.items():
            self.metrics.phase(phase, seconds)

    def measured(self) -> str:
        """The metrics of this replica, its queue as it is now."""
        queue = self.engine.queue
        self.metrics.queue_tokens.set(queue.waiting)
        self.metrics.queue_seconds.set(queue.wait_s)
        self.metrics.rate.set(queue.rate)
        return self.metrics.text()


def guess(one: Input, chars: int, longest: int, cut_share: float = 0.0) -> float:
    """Tokens of an input, before anybody has counted them; of those that will be cut off, `longest` remaining, a share
    counts."""
    if isinstance(one, TokenInput):
        return len(one.ids)
    if isinstance(one, ImageInput):
        return IMAGE_TOKENS + guess(one.after, chars, longest, cut_share)
    tokens = len(one.text) // chars + 1
    if one.cut is None or tokens <= longest:
        return tokens
    return longest + cut_share * (tokens - longest)
