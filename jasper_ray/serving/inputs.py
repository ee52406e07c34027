"""What a request asks to embed, once its surface's own words are gone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Cut = Literal["end", "start"] | None
"""Where a text that is too long is cut; None: it is refused."""


@dataclass(frozen=True)
class TextInput:
    """A text, behind a prompt."""

    text: str
    prompt_name: str | None = None
    cut: Cut = None
    max_tokens: int | None = None
    """Tokens it may have, where that is less than the model takes."""


@dataclass(frozen=True)
class TokenInput:
    """Token ids as `/tokenize` gives them: special tokens and prompt included, and taken as they are."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class ImageInput:
    """The bytes of an image's file, and the text after it, if any: behind its prompt, as `encode` takes them."""

    data: bytes
    after: TextInput = TextInput("")


Input = TextInput | TokenInput | ImageInput


@dataclass(frozen=True, eq=False)
class Prepared:
    """An input as the model takes it."""

    ids: np.ndarray
    """Token ids, int32; of the text alone for an image."""
    tokens: int
    """What it costs: its tokens, an image's own included."""
    pixels_3SS: np.ndarray | None = None
    """An image, uint8."""
    prompt_name: str | None = None
    """The prompt that `ids` begin with."""
