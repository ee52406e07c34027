"""What an encoder scores on evaluation sets, for every head from one pass through its body."""

# Shape legend: N texts, D size of the vectors.

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jasper_ray.config import ConfigError
from jasper_ray.encoders.base import Encoder, known_dim
from jasper_ray.evaluation.reading import Request, SetData
from jasper_ray.evaluation.scores import Score


def evaluate(encoder: Encoder, sets: Sequence[SetData], dims: Sequence[int] | None = None) -> list[Score]:
    """One score for each set and head, sets in their order and heads in that of `dims` (all of the encoder's if None).

    Equal texts of a set are encoded once, and the body sees a text once whatever the number of heads.

    Raises:
        ConfigError: a head or a prompt that the encoder does not have, found before the first text is encoded.
    """
    dims = encoder.dims if dims is None else tuple(dims)
    check(encoder, sets, dims)
    return [score for data in sets for score in _evaluate_set(encoder, data, dims)]


def check(encoder: Encoder, sets: Sequence[SetData], dims: Sequence[int]) -> None:
    """Refuses, with a `ConfigError`, heads and prompts that the encoder does not have."""
    for dim in dims:
        known_dim(encoder.dims, dim)
    check_prompts(encoder.prompts, sets, "the model")


def check_prompts(prompts: Mapping[str, str], sets: Sequence[SetData], who: str) -> None:
    """Refuses, with a `ConfigError`, sets that ask for a prompt that `who` does not have; needs no model."""
    for data in sets:
        for request in data.requests:
            _prompt(prompts, request, data.name, who)


def _evaluate_set(encoder: Encoder, data: SetData, dims: Sequence[int]) -> list[Score]:
    encoded = _encode(encoder, data, dims)
    return [
        Score(set=data.name, metric=data.metric, dim=dim, value=data.score(*(vectors[dim] for vectors in encoded)))
        for dim in dims
    ]


def _encode(encoder: Encoder, data: SetData, dims: Sequence[int]) -> list[dict[int, np.ndarray]]:
    """For each request of the set, the vectors `[N, D]` of its texts by head; each different text is encoded once."""
    rows: dict[str | None, dict[str, int]] = {}
    for request in data.requests:
        known = rows.setdefault(_prompt(encoder.prompts, request, data.name), {})
        for text in request.texts:
            known.setdefault(text, len(known))
    vectors = {prompt: _heads(encoder, list(known), prompt, dims) for prompt, known in rows.items()}
    encoded = []
    for request in data.requests:
        prompt = _prompt(encoder.prompts, request, data.name)
        places_N = [rows[prompt][text] for text in request.texts]
        encoded.append({dim: vectors[prompt][dim][places_N] for dim in dims})
    return encoded


def _heads(encoder: Encoder, texts: Sequence[str], prompt: str | None, dims: Sequence[int]) -> dict[int, np.ndarray]:
    """Vectors by head; other heads of the encoder are not computed when one is asked for."""
    if len(dims) == 1:
        vectors = {dims[0]: encoder.encode(texts, prompt, dim=dims[0])}
    else:
        vectors = encoder.encode_heads(texts, prompt)
    for dim in dims:
        if not np.isfinite(vectors[dim]).all():
            raise FloatingPointError(f"the encoder's {dim}-d vectors hold values that are not finite")
    return vectors


def _prompt(prompts: Mapping[str, str], request: Request, name: str, who: str = "the model") -> str | None:
    """The prompt to encode with: the request's, or none for an encoder that was trained without any.

    Some libraries list empty prompts for every model; those count as none.
    """
    named = sorted(key for key, text in prompts.items() if text)
    if request.prompt is None or not named:
        return None
    if request.prompt not in prompts:
        raise ConfigError(
            f"evaluation set {name!r} asks for the prompt {request.prompt!r}, but {who} has {', '.join(named)}; "
            "name one of these in the set, or leave the prompt out"
        )
    return request.prompt
