"""Encoder: the class that teachers, students, batch jobs and servers share, and an encoder without weights."""

# Shape legend: N texts, B rows of a batch, S side of an image in pixels, D size of the vectors.

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from jasper_ray.config import ConfigError
from jasper_ray.images import PIXEL_LIMIT, ImageLike
from jasper_ray.models.tokens import Ids, Tokenizing
from jasper_ray.vectors import normalise


class Encoder(ABC):
    """A model that turns texts into unit vectors. A new kind needs `dims` and `encode`."""

    prompts: Mapping[str, str] = MappingProxyType({})
    """Text put before a text, by name."""

    @property
    @abstractmethod
    def dims(self) -> tuple[int, ...]:
        """Sizes of its vectors; the first is the default."""

    @abstractmethod
    def encode(self, texts: Sequence[str], prompt_name: str | None = None, dim: int | None = None) -> np.ndarray:
        """Return unit vectors, float32 `[N, dim]`, in the order of `texts`.

        Raises:
            ConfigError: an unknown `prompt_name` or `dim`.
        """

    def encode_heads(self, texts: Sequence[str], prompt_name: str | None = None) -> dict[int, np.ndarray]:
        """Return the vectors of every size in `dims`; a model with heads computes its body once for all."""
        return {dim: self.encode(texts, prompt_name, dim) for dim in self.dims}

    @property
    def accepts_images(self) -> bool:
        """True if images become vectors too; the encoder is then an `ImageEncoder`."""
        return False

    @property
    def default_prompt(self) -> str | None:
        """Name of the prompt that the model itself puts before texts by default."""
        return None

    @property
    def pools_prompts(self) -> bool:
        """True if a prompt's tokens are pooled like the text's: rows of different prompts may then share a batch."""
        return True

    @property
    def allows_prefixes(self) -> bool:
        """True if `encode_tokens` also gives sizes below `dims[0]`, as a prefix of the vector."""
        return False

    def tokenizing(self, prompt_name: str | None = None) -> Tokenizing | None:
        """Return the way from texts to the ids of `encode_tokens`; None for a model that takes only texts.

        Raises:
            ConfigError: an unknown `prompt_name`.
        """
        return None

    def encode_tokens(self, ids: Ids, dims: Sequence[int], prompt_name: str | None = None) -> dict[int, np.ndarray]:
        """Encode one batch of token ids that `tokenizing` made with the same prompt.

        Returns:
            Unit vectors, float32 `[B, D]` for each D of `dims`.
        """
        raise NotImplementedError


class ImageEncoder(Encoder):
    """An encoder that may also take images, alone or followed by a text."""

    pixel_limit: int = PIXEL_LIMIT
    """Largest image, in pixels; larger ones are refused before they are decoded."""

    @property
    def accepts_images(self) -> bool:
        return True

    @abstractmethod
    def encode_images(self, images: Sequence[ImageLike]) -> dict[int, np.ndarray]:
        """Return the vectors of every size in `dims`, from one pass through vision and body."""

    def image_tokenizing(self) -> Tokenizing:
        """Return the way from the text after an image to ids; these begin with the image's own."""
        raise NotImplementedError

    def pixels(self, image: ImageLike) -> np.ndarray:
        """Decode an image to the input of the vision tower: uint8 `[3, S, S]`.

        Raises:
            BadImage: the image cannot be used.
        """
        raise NotImplementedError

    def encode_pixels(self, ids: Ids, pixels_B3SS: np.ndarray, dims: Sequence[int]) -> dict[int, np.ndarray]:
        """Encode one batch of images, with the ids that `image_tokenizing` made of the texts after them.

        Returns:
            Unit vectors, float32 `[B, D]` for each D of `dims`.
        """
        raise NotImplementedError


def image_encoder(encoder: Encoder) -> ImageEncoder:
    """Return the encoder if it takes images.

    Raises:
        ConfigError: it takes only texts.
    """
    if isinstance(encoder, ImageEncoder) and encoder.accepts_images:
        return encoder
    raise ConfigError("this model takes no images; give a student that was distilled with a stage on images")


def as_list(texts: Sequence[str]) -> list[str]:
    """Make a list of texts; a single string is a TypeError."""
    if isinstance(texts, str):
        raise TypeError(f"found one string, {texts[:40]!r}, where a list of texts was expected; put it in a list")
    return list(texts)


def prompt_text(prompts: Mapping[str, str], prompt_name: str | None) -> str:
    """Look up a prompt; empty without a name.

    Raises:
        ConfigError: an unknown `prompt_name`.
    """
    if prompt_name is None:
        return ""
    if prompt_name not in prompts:
        raise ConfigError(f"there is no prompt {prompt_name!r}; this model has {', '.join(sorted(prompts)) or 'none'}")
    return prompts[prompt_name]


def known_dim(dims: tuple[int, ...], dim: int | None) -> int:
    """Return `dim`, by default the first of `dims`.

    Raises:
        ConfigError: the encoder has no vectors of that size.
    """
    if dim is not None and dim not in dims:
        raise ConfigError(f"there is no head of size {dim}; this model has {', '.join(map(str, dims))}")
    return dims[0] if dim is None else dim


class HashEncoder(Encoder):
    """Sum of a fixed ±1 vector per word: equal texts get equal vectors, texts that share words similar ones.

    It needs no download and no time, so tests and dry runs use it as a teacher.
    """

    def __init__(self, dim: int = 64, prompts: Mapping[str, str] | None = None) -> None:
        self.dim = dim
        self.prompts = prompts or {}

    @property
    def dims(self) -> tuple[int, ...]:
        return (self.dim,)

    def encode(self, texts: Sequence[str], prompt_name: str | None = None, dim: int | None = None) -> np.ndarray:
        size = known_dim(self.dims, dim)
        prompt = prompt_text(self.prompts, prompt_name)
        vectors_ND = np.zeros((len(texts), size), dtype=np.float32)
        for row, text in enumerate(as_list(texts)):
            for word in ["", *(prompt + text).split()]:  # the empty word gives a text without words a direction too
                vectors_ND[row] += word_signs(word, size)
        return normalise(vectors_ND + 1e-3)  # words can cancel to zero; a small constant keeps every row a direction


def word_signs(word: str, size: int) -> np.ndarray:
    """Draw a ±1 vector of `size` entries from the word's hash."""
    digest = hashlib.shake_128(word.encode()).digest((size + 7) // 8)
    bits_D = np.unpackbits(np.frombuffer(digest, dtype=np.uint8))[:size]
    return bits_D.astype(np.float32) * 2 - 1
