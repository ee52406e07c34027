"""What an encoder scores on evaluation sets, for every head from one pass through its body."""

# Shape legend: N texts or images, D size of the vectors.

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from jasper_ray.config import ConfigError
from jasper_ray.encoders.base import Encoder, known_dim
from jasper_ray.evaluation.scores import Score, as_scores
from jasper_ray.evaluation.set_data import ImageRequest, SetData, TextRequest, needs_vision


class SeeingEncoder(Protocol):
    """What an encoder that `sees` can do besides."""

    def encode_heads(self, *, images: Sequence[bytes]) -> dict[int, np.ndarray]:
        """The vectors of every size, from one pass through the vision tower and the body."""
        ...


class Kind(NamedTuple):
    """What is encoded in one go: images, or texts behind one prompt."""

    images: bool
    prompt: str | None


def evaluate(encoder: Encoder, sets: Sequence[SetData], dims: Sequence[int] | None = None) -> list[Score]:
    """The scores of each set and head, sets in their order and heads in that of `dims` (all of the encoder's if None).

    Sets of images have none where the encoder does not see; `unseen` names them. Equal texts or images of a set are
    encoded once, and the body sees them once whatever the number of heads.

    Raises:
        ConfigError: a head or a prompt that the encoder does not have, found before the first text is encoded.
    """
    dims = encoder.dims if dims is None else tuple(dims)
    seen = [data for data in sets if encoder.sees or not needs_vision(data)]
    check(encoder, seen, dims)
    return [score for data in seen for score in _evaluate_set(encoder, data, dims)]


def unseen(encoder: Encoder, sets: Sequence[SetData]) -> list[str]:
    """Names of the sets of images, if the encoder does not see."""
    return [data.name for data in sets if needs_vision(data) and not encoder.sees]


def check(encoder: Encoder, sets: Sequence[SetData], dims: Sequence[int]) -> None:
    """Refuses, with a `ConfigError`, heads and prompts that the encoder does not have."""
    for dim in dims:
        known_dim(encoder.dims, dim)
    check_prompts(encoder.prompts, sets, "the model")


def check_prompts(prompts: Mapping[str, str], sets: Sequence[SetData], who: str) -> None:
    """Refuses, with a `ConfigError`, sets that ask for a prompt that `who` does not have; needs no model."""
    for data in sets:
        for request in data.requests:
            _kind(prompts, request, data.name, who)


def _evaluate_set(encoder: Encoder, data: SetData, dims: Sequence[int]) -> list[Score]:
    encoded = _encode(encoder, data, dims)
    return [
        score for dim in dims for score in as_scores(data.name, dim, data.score(*(vectors[dim] for vectors in encoded)))
    ]


def _encode(encoder: Encoder, data: SetData, dims: Sequence[int]) -> list[dict[int, np.ndarray]]:
    """For each request of the set, the vectors `[N, D]` by head; each different text or image is encoded once."""
    asked = [(_kind(encoder.prompts, request, data.name), _items(request)) for request in data.requests]
    rows: dict[Kind, dict[Hashable, int]] = {}
    for kind, items in asked:
        known = rows.setdefault(kind, {})
        for item in items:
            known.setdefault(item, len(known))
    vectors = {kind: _heads(encoder, list(known), kind, dims) for kind, known in rows.items()}
    encoded = []
    for kind, items in asked:
        places_N = [rows[kind][item] for item in items]
        encoded.append({dim: vectors[kind][dim][places_N] for dim in dims})
    return encoded


def _heads(encoder: Encoder, items: Sequence[Any], kind: Kind, dims: Sequence[int]) -> dict[int, np.ndarray]:
    """Vectors by head; other heads of the encoder are not computed when one is asked for of texts."""
    if kind.images:
        vectors = cast(SeeingEncoder, encoder).encode_heads(images=items)
    elif len(dims) == 1:
        vectors = {dims[0]: encoder.encode(items, kind.prompt, dim=dims[0])}
    else:
        vectors = encoder.encode_heads(items, kind.prompt)
    for dim in dims:
        if not np.isfinite(vectors[dim]).all():
            raise FloatingPointError(f"the encoder's {dim}-d vectors hold values that are not finite")
    return vectors


def _items(request: TextRequest | ImageRequest) -> Sequence[Hashable]:
    return request.images if isinstance(request, ImageRequest) else request.texts


def _kind(prompts: Mapping[str, str], request: TextRequest | ImageRequest, name: str, who: str = "the model") -> Kind:
    """How to encode: images, or texts with the request's prompt, or none for an encoder that was trained without any.

    Some libraries list empty prompts for every model; those count as none.
    """
    named = sorted(key for key, text in prompts.items() if text)
    if isinstance(request, ImageRequest) or request.prompt is None or not named:
        return Kind(images=isinstance(request, ImageRequest), prompt=None)
    if request.prompt not in prompts:
        raise ConfigError(
            f"evaluation set {name!r} asks for the prompt {request.prompt!r}, but {who} has {', '.join(named)}; "
            "name one of these in the set, or leave the prompt out"
        )
    return Kind(images=False, prompt=request.prompt)
