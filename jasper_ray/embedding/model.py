"""A job's model: opened on the device that its copies have, with the prompt and the budget of the settings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from jasper_ray.config import ConfigError
from jasper_ray.embedding.settings import EmbedSettings, VectorColumn
from jasper_ray.encoders import SentenceTransformerEncoder, TokenEncoder, load_encoder
from jasper_ray.encoders.base import known_dim
from jasper_ray.encoders.precision import precise
from jasper_ray.encoders.token_budget import USUAL_TOKENS, TokenBudget
from jasper_ray.models.loading import first_line
from jasper_ray.vectors import Dtype


def open_encoder(settings: EmbedSettings, revision: str | None, dtype: Dtype) -> TokenEncoder:
    """The model, for texts alone. Copies that reserve no GPU stay off it, whether or not they could see one.

    Raises:
        ConfigError: it does not load.
    """
    assert settings.pool
    device = None if settings.pool.gpus else "cpu"
    torch.set_num_threads(settings.pool.torch_threads)
    return load_encoder(settings.model, device, dtype, revision=revision, max_length=settings.max_length, sight=False)


def budget_of(settings: EmbedSettings) -> TokenBudget:
    """Tokens at once: where nothing is said what fills a processor's caches, or a GPU."""
    assert settings.pool
    return TokenBudget(settings.batch_tokens or USUAL_TOKENS["cuda" if settings.pool.gpus else "cpu"])


def prompt_name_of(settings: EmbedSettings, encoder: TokenEncoder) -> str | None:
    """The prompt before every text: the asked-for one, or what sentence-transformers takes of its own accord. An empty
    name means none."""
    if settings.prompt is not None:
        return settings.prompt or None
    return encoder.default_prompt


def check_dims(encoder: TokenEncoder, columns: Sequence[VectorColumn]) -> None:
    """Refuse a size that the model does not have: a student has its heads, another model every prefix."""
    for column in columns:
        if not (isinstance(encoder, SentenceTransformerEncoder) and column.dim < encoder.dims[0]):
            known_dim(encoder.dims, column.dim)


def check_length(encoder: TokenEncoder, max_length: int) -> None:
    """Refuse a greatest length that the model has no positions for; found out here, and not by the first long text."""
    try:
        encoder.encode_tokens([np.ones(max_length, np.int32)], encoder.dims[:1])
    except (IndexError, RuntimeError) as error:
        raise ConfigError(
            f"the model cannot read {max_length} tokens ({first_line(error)}); lower --max-length"
        ) from error


def wanted_precision(settings: EmbedSettings) -> Dtype:
    """What to try: what the device is fast in, where it is left open."""
    assert settings.pool
    return precise(settings.precision, "cuda" if settings.pool.gpus else "cpu")
