"""The served model: batches of rows in, a vector or an error for each row out."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence

import numpy as np

from jasper_ray.config import ConfigError
from jasper_ray.encoders import Encoder, image_encoder
from jasper_ray.encoders.token_budget import TokenBudget, is_out_of_memory
from jasper_ray.serving.errors import Refusal, bad_request, safe_traceback, too_large, unavailable
from jasper_ray.serving.inputs import Prepared
from jasper_ray.serving.queue import QueueRow

logger = logging.getLogger(__name__)

Vectors = dict[int, np.ndarray]
"""Unit vectors of one row, by head."""
Outcome = Vectors | Exception


class Model:
    """An encoder in which a bad input fails alone; a model that fails on every input is dead."""

    def __init__(self, encoder: Encoder, budget: TokenBudget) -> None:
        self.encoder = encoder
        self.budget = budget
        self.dead: str | None = None
        """Message of a dead model."""

    def kind(self, one: Prepared) -> Hashable:
        """Return the kind of an input; inputs of one kind may share a batch."""
        return one.pixels_3SS is not None, None if self.encoder.pools_prompts else one.prompt_name

    def embed(self, batch: Sequence[QueueRow]) -> tuple[list[Outcome], int]:
        """Embed rows; return the outcome of each, and the number of tokens computed, padding included.

        A batch that fails is halved until the bad row is alone.
        """
        if self.dead or not batch:
            return [unavailable(self.dead or "")] * len(batch), 0
        try:
            return self._vectors(batch)
        except Exception as error:
            if len(batch) == 1:
                return [self._blame(error, batch[0].input)], 0
        half = len(batch) // 2
        first, computed = self.embed(batch[:half])
        second, more = self.embed(batch[half:])
        return first + second, computed + more

    def _vectors(self, batch: Sequence[QueueRow]) -> tuple[list[Outcome], int]:
        inputs = [row.input for row in batch]
        heads = sorted({head for row in batch for head in row.request.heads})
        if inputs[0].pixels_3SS is not None:
            pixels = np.stack([one.pixels_3SS for one in inputs if one.pixels_3SS is not None])
            found = image_encoder(self.encoder).encode_pixels([one.ids for one in inputs], pixels, heads)
            computed = len(inputs) * max(one.tokens for one in inputs)
        else:
            name = None if self.encoder.pools_prompts else inputs[0].prompt_name
            found, computed = self.budget.encode(
                lambda ids: self.encoder.encode_tokens(ids, heads, name), [one.ids for one in inputs]
            )
        sound = np.all([np.isfinite(found[head]).all(axis=1) for head in heads], axis=0)
        return [
            {head: found[head][place] for head in row.request.heads} if sound[place] else not_finite()
            for place, row in enumerate(batch)
        ], computed

    def _blame(self, error: Exception, one: Prepared) -> Refusal:
        """Refuse the input if the model still embeds a trivial one; otherwise declare the model dead."""
        logger.error("an input failed in the model\n%s", safe_traceback(error))
        try:
            self.encoder.encode_tokens([np.zeros(1, np.int32)], self.encoder.dims[:1])
            if one.pixels_3SS is not None:
                black_B3SS = np.zeros_like(one.pixels_3SS)[None]
                image_encoder(self.encoder).encode_pixels([one.ids], black_B3SS, self.encoder.dims[:1])
        except Exception as again:
            self.die(again)
            return unavailable(self.dead or "")
        if isinstance(error, ConfigError) or (isinstance(error, RuntimeError) and is_out_of_memory(error)):
            return too_large("this input does not fit into the free memory", "input", "out_of_memory")
        return bad_request(f"the model cannot embed this input ({type(error).__name__})", "input", "input_failed")

    def die(self, error: BaseException) -> None:
        """Refuse all further inputs; the health check replaces the replica."""
        self.dead = f"the model has failed ({type(error).__name__}); this replica will be replaced"
        logger.error("the model has failed; this replica will be replaced\n%s", safe_traceback(error))


def not_finite() -> Refusal:
    return bad_request("the model's vector of this input is not finite", "input", "input_failed")
