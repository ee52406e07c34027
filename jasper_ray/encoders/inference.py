"""Open a model for inference: one way for batch jobs, servers and measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from jasper_ray.config import ConfigError, first_line
from jasper_ray.encoders import Encoder, load_encoder
from jasper_ray.encoders.base import prompt_text
from jasper_ray.encoders.precision import check_precision, device_type, precise
from jasper_ray.encoders.token_budget import USUAL_TOKENS, TokenBudget, free_memory, is_out_of_memory
from jasper_ray.models.tokens import Tokenizing
from jasper_ray.resources import ModelSettings
from jasper_ray.vectors import Dtype


@dataclass(frozen=True)
class OpenModel:
    """A loaded model, with its settings resolved."""

    encoder: Encoder
    prompt_name: str | None
    """Prompt put before every text."""
    precision: Dtype
    cosine: float | None
    """Least cosine of a sample's vectors in this precision with those in float32; None if not compared."""
    tokenizing: Tokenizing | None
    """The way from texts to ids, with the prompt; None for a model that takes only texts."""
    budget: TokenBudget

    @property
    def prompt(self) -> str:
        """Text put before every text."""
        return prompt_text(self.encoder.prompts, self.prompt_name)


Sample = Callable[[OpenModel], Mapping[int, np.ndarray]]
"""Function that computes a model's vectors of some texts, by size."""


def open_for_inference(
    settings: ModelSettings, device: str | None, sample: Sample | None = None, vision: bool = False
) -> OpenModel:
    """Load the model in the precision of the settings. A lower one is compared with float32 on `sample`.

    `device` None takes a GPU if there is one. Without `vision` a student takes no images and less memory.

    Raises:
        ConfigError: nothing loads; the model has no such prompt or length; the required precision is too inexact.
    """
    precision = precise(settings.precision, device)
    if precision == "float32" or sample is None:
        return checked(open_model(settings, device, precision, vision), settings)
    exact = sample(checked(open_model(settings, device, "float32", vision), settings))
    free_memory()  # there may be room for one of the two
    opened = open_model(settings, device, precision, vision)
    cosine = check_precision(exact, sample(opened), precision, required=settings.precision != "auto")
    if cosine is not None:
        return replace(opened, cosine=cosine)
    del opened
    free_memory()
    return open_model(settings, device, "float32", vision)


def open_model(settings: ModelSettings, device: str | None, precision: Dtype, vision: bool = False) -> OpenModel:
    """Load the model in a known precision."""
    encoder = load_encoder(
        settings.model,
        device,
        precision,
        revision=settings.revision,
        max_length=settings.max_length,
        vision=vision,
    )
    prompt_name = encoder.default_prompt if settings.prompt is None else settings.prompt or None
    tokenizing = encoder.tokenizing(prompt_name)
    budget = TokenBudget(settings.batch_tokens or USUAL_TOKENS.get(device_type(device), USUAL_TOKENS["cpu"]))
    return OpenModel(encoder, prompt_name, precision, None, tokenizing, budget)


def checked(opened: OpenModel, settings: ModelSettings) -> OpenModel:
    """Return the model, if it can read the length of the settings."""
    if opened.tokenizing and settings.max_length:
        check_length(opened.encoder, settings.max_length)
    return opened


def check_length(encoder: Encoder, max_length: int) -> None:
    """Refuse a length that the model has no positions for, now and not at the first long text.

    Raises:
        ConfigError: the model cannot read so many tokens.
    """
    try:
        encoder.encode_tokens([np.ones(max_length, np.int32)], encoder.dims[:1])
    except (IndexError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        raise ConfigError(
            f"the model cannot read {max_length} tokens ({first_line(error)}); lower max_length"
        ) from error
