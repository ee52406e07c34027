"""An encoder without weights: directions drawn from the hashes of a text's words."""

# Shape legend: N texts, D size of the vectors.

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from jasper_ray.encoders.base import Encoder, as_list, known_dim, prompt_text
from jasper_ray.vectors import normalise


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
        """See `Encoder.encode`."""
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
