"""What an encoder is: the one thing that teachers, students, batch jobs and servers share."""

# Shape legend: N texts, D size of the vectors.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from jasper_ray.config import ConfigError
from jasper_ray.models.tokenizing import Ids, Tokenizing


class Encoder(Protocol):
    """Turns texts into unit vectors."""

    @property
    def dims(self) -> tuple[int, ...]:
        """Sizes it can return; the first is the default."""
        ...

    @property
    def prompts(self) -> Mapping[str, str]:
        """Text put before a text, by name."""
        ...

    @property
    def sees(self) -> bool:
        """Whether it turns images into vectors too."""
        ...

    def encode(self, texts: Sequence[str], prompt_name: str | None = None, dim: int | None = None) -> np.ndarray:
        """Unit vectors, float32 `[N, dim]`, in the order of `texts`.

        Raises:
            ConfigError: an unknown `prompt_name` or `dim`.
        """
        ...

    def encode_heads(self, texts: Sequence[str], prompt_name: str | None = None) -> dict[int, np.ndarray]:
        """The vectors of every size in `dims`, from one pass through the body."""
        ...


class TokenEncoder(Encoder, Protocol):
    """An encoder whose texts may become tokens elsewhere, before they meet its weights."""

    @property
    def default_prompt(self) -> str | None:
        """The name of the prompt that the model itself puts before a text when none is asked for."""
        ...

    @property
    def pools_prompts(self) -> bool:
        """Whether a prompt's tokens count like the text's: rows of different prompts may then share a batch."""
        ...

    def tokenizing(self, prompt_name: str | None = None) -> Tokenizing | None:
        """How texts become what `encode_tokens` takes; None for a model that only takes texts.

        Raises:
            ConfigError: an unknown `prompt_name`.
        """
        ...

    def encode_tokens(self, ids: Ids, dims: Sequence[int], prompt_name: str | None = None) -> dict[int, np.ndarray]:
        """Unit vectors, float32 `[N, D]` for each D of `dims`, in one pass of one batch of what `tokenizing` made with
        that prompt: some models do not pool over its tokens."""
        ...


def with_prompt(texts: Sequence[str], prompts: Mapping[str, str], prompt_name: str | None) -> list[str]:
    """Each text behind the prompt of that name; bare when no name is given."""
    if isinstance(texts, str):
        raise TypeError(f"found one string, {texts[:40]!r}, where a list of texts was expected; put it in a list")
    prompt = prompt_text(prompts, prompt_name)
    return [prompt + text for text in texts]


def prompt_text(prompts: Mapping[str, str], prompt_name: str | None) -> str:
    """The prompt of that name, empty when no name is given; an error when there is none of that name."""
    if prompt_name is None:
        return ""
    if prompt_name not in prompts:
        raise ConfigError(f"there is no prompt {prompt_name!r}; this model has {', '.join(sorted(prompts)) or 'none'}")
    return prompts[prompt_name]


def known_dim(dims: tuple[int, ...], dim: int | None) -> int:
    """`dim`, or the default; an error when the encoder has no such size."""
    if dim is not None and dim not in dims:
        raise ConfigError(f"there is no head of size {dim}; this model has {', '.join(map(str, dims))}")
    return dims[0] if dim is None else dim
