"""The service behind every surface: from inputs to vectors, with admission, keys and metrics."""

# Shape legend: N inputs, D size of the vectors.

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jasper_ray.encoders import Encoder
from jasper_ray.serving.engine import Admission, Engine
from jasper_ray.serving.errors import Refusal, bad_request, check_size, over_limit, too_large
from jasper_ray.serving.inputs import ImageInput, Input, TextInput, TokenInput
from jasper_ray.serving.keys import Key, Keys, Ledger, charge
from jasper_ray.serving.metrics import Metrics
from jasper_ray.serving.prepare import Preparer
from jasper_ray.serving.settings import ServeSettings
from jasper_ray.serving.vectors import head_for, truncate_dims

USUAL_CHARS, MAX_CHARS = 4, 32
"""Characters per token: a usual number, and one hardly ever exceeded."""
TRUNCATED_COST = 1 / 8
"""Cost of a token that is truncated, relative to one that is embedded."""
IMAGE_TOKENS = 64
"""Estimated tokens of an image that is not decoded yet."""


@dataclass(frozen=True)
class Embedded:
    """The vectors of a request, and their cost."""

    x_ND: np.ndarray
    """Unit vectors, float32."""
    tokens: int
    """Tokens of all inputs, with prompts and special tokens."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by phase: prepare, queue, model."""


@dataclass
class Service:
    """The interface of the surfaces to the model."""

    settings: ServeSettings
    encoder: Encoder
    preparer: Preparer
    engine: Engine
    keys: Keys
    ledger: Ledger
    metrics: Metrics
    identity: str
    """The hash of the model's files, or its commit."""
    precision: str
    ranges: Mapping[int, np.ndarray]
    """The ranges of int8 vectors, float32 `[2, D]`, by size."""
    default_prompt: str | None = None
    replica: str = "0"

    @property
    def name(self) -> str:
        """The name of the model for clients."""
        return self.settings.served_name

    @property
    def dims(self) -> tuple[int, ...]:
        """The sizes of the model's heads."""
        return self.encoder.dims

    def check_model(self, model: str | None) -> None:
        """Refuse the name of another model."""
        if model is not None and model != self.name:
            raise Refusal(404, "model_not_found", f"unknown model; this server has {self.name}", "model")

    def prompt(self, name: str | None) -> str | None:
        """Return the prompt for a request's `prompt_name`: an empty name means none, None the default."""
        return self.default_prompt if name is None else name or None

    async def embed(self, inputs: Sequence[Input], dim: int | None, caller: Key, param: str = "dimensions") -> Embedded:
        """Embed the inputs into unit vectors, in their order.

        Raises:
            Refusal: see `errors`; `param` is the surface's name for the size.
        """
        head, dim = head_for(self.dims, dim, param)
        self.check_inputs(inputs)
        began = time.perf_counter()
        with self.admit(inputs) as admission:
            prepared = await self.preparer.prepare(inputs)
            tokens = sum(one.tokens for one in prepared)
            check_size(tokens, self.settings.limits.request_tokens)
            wait_s = await charge(self.ledger, caller, tokens)
            if wait_s:
                assert caller.tokens_per_minute
                raise over_limit(caller.name, caller.tokens_per_minute, wait_s)
            done = await self.engine.embed(prepared, [head], admission)
        x_ND = truncate_dims(np.stack([vectors[head] for vectors in done.vectors if vectors is not None]), dim)
        phases = {
            "prepare": done.queued_s - began,
            "queue": done.began_s - done.queued_s,
            "model": done.model_s,
        }
        self._count(caller, len(inputs), tokens, phases)
        return Embedded(x_ND, tokens, phases)

    def admit(self, inputs: Sequence[Input]) -> Admission:
        """Admit a request by an estimate of its tokens.

        Raises:
            Refusal: the queue is full, or the model is dead.
        """
        longest = self.preparer.max_length
        return self.engine.admit(round(sum(estimate(one, USUAL_CHARS, longest, TRUNCATED_COST) for one in inputs)))

    def check_inputs(self, inputs: Sequence[Input]) -> None:
        """Refuse a request without inputs, with too many, with an empty one, or with more text than can fit."""
        self.check_count(len(inputs))
        self.check_images(sum(isinstance(one, ImageInput) for one in inputs))
        for index, one in enumerate(inputs):
            if (isinstance(one, TextInput) and not one.text) or (isinstance(one, TokenInput) and not one.ids):
                raise bad_request(f"input {index} is empty; remove it", "input", "empty_input")
        longest, limits = self.preparer.max_length, self.settings.limits
        check_size(round(sum(estimate(one, MAX_CHARS, longest) for one in inputs)), limits.request_tokens)

    def check_count(self, inputs: int) -> None:
        """Refuse no inputs, and too many."""
        if not inputs:
            raise bad_request("there are no inputs; send at least one", "input", "empty_input")
        limit = self.settings.limits.inputs
        if inputs > limit:
            raise too_large(f"{inputs} inputs sent and {limit} allowed; split them", "input", "too_many_inputs")

    def check_images(self, images: int) -> None:
        """Refuse images for a model without vision, and too many."""
        if images and not self.encoder.accepts_images:
            raise bad_request("this model takes texts only; send no images", "input")
        limit = self.settings.limits.images
        if images > limit:
            raise too_large(f"{images} images sent and {limit} allowed; split them", "input", "too_many_images")

    def _count(self, caller: Key, inputs: int, tokens: int, phases: Mapping[str, float]) -> None:
        self.metrics.tokens.labels(caller.name).inc(tokens)
        self.metrics.inputs.labels(caller.name).inc(inputs)
        for phase, seconds in phases.items():
            self.metrics.phase(phase, seconds)

    def metrics_page(self) -> str:
        """Render this replica's metrics, with the current queue."""
        queue = self.engine.queue
        self.metrics.queue_tokens.set(queue.waiting)
        self.metrics.queue_seconds.set(queue.wait_s)
        self.metrics.rate.set(queue.rate)
        return self.metrics.text()


def estimate(one: Input, chars: int, longest: int, truncated_cost: float = 0.0) -> float:
    """Estimate an input's tokens by its characters; tokens that will be truncated, beyond `longest`, cost less."""
    if isinstance(one, TokenInput):
        return len(one.ids)
    if isinstance(one, ImageInput):
        return IMAGE_TOKENS + estimate(one.after, chars, longest, truncated_cost)
    tokens = len(one.text) // chars + 1
    if one.cut is None or tokens <= longest:
        return tokens
    return longest + truncated_cost * (tokens - longest)
