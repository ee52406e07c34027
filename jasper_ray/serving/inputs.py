"""Inputs of a request, independent of its surface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Cut = Literal["end", "start"] | None
"""The end of a too long text that is truncated; None: the text is refused."""


@dataclass(frozen=True)
class TextInput:
    """A text, with the name of its prompt."""

    text: str
    prompt_name: str | None = None
    cut: Cut = None
    max_tokens: int | None = None
    """Longest length of the text, in tokens, below the model's own."""


@dataclass(frozen=True)
class TokenInput:
    """Token ids as `/tokenize` gives them, with special tokens and prompt."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class ImageInput:
    """The bytes of an image's file, and the text after it, if any."""

    data: bytes
    after: TextInput = TextInput("")


Input = TextInput | TokenInput | ImageInput


@dataclass(frozen=True, eq=False)
class Prepared:
    """An input as the model takes it."""

    ids: np.ndarray
    """Token ids, int32; for an image those of its marks and of the text after it."""
    tokens: int
    """Cost: the number of tokens, an image's own included."""
    pixels_3SS: np.ndarray | None = None
    """Image, uint8."""
    prompt_name: str | None = None
    """Prompt at the beginning of `ids`."""
