"""An encoder without weights: texts become directions drawn from their words' hashes."""

# Shape legend: N texts, D size of the vectors.

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from jasper_ray.encoders.base import known_dim, with_prompt
from jasper_ray.vectors import normalise


class HashEncoder:
    """Sums a fixed ±1 vector for every word: equal texts get equal vectors, texts that share words similar ones.

    It needs no download and no time, so it stands for a teacher where the plumbing is what is tested.
    """

    def __init__(self, dim: int = 64, prompts: Mapping[str, str] | None = None) -> None:
        self.dims = (dim,)
        self.prompts: Mapping[str, str] = prompts or {}

    @property
    def sees(self) -> bool:
        return False

    def encode(self, texts: Sequence[str], prompt_name: str | None = None, dim: int | None = None) -> np.ndarray:
        """See `Encoder.encode`."""
        size = known_dim(self.dims, dim)
        vectors_ND = np.zeros((len(texts), size), dtype=np.float32)
        for row, text in enumerate(with_prompt(texts, self.prompts, prompt_name)):
            for word in ["", *text.split()]:  # the empty word gives a text without words a direction too
                vectors_ND[row] += word_signs(word, size)
        return normalise(vectors_ND + 1e-3)  # words can cancel to zero; a small constant keeps every row a direction

    def encode_heads(self, texts: Sequence[str], prompt_name: str | None = None) -> dict[int, np.ndarray]:
        """See `Encoder.encode_heads`."""
        return {self.dims[0]: self.encode(texts, prompt_name)}


def word_signs(word: str, size: int) -> np.ndarray:
    """A ±1 vector of `size` entries that only the word decides."""
    digest = hashlib.shake_128(word.encode()).digest((size + 7) // 8)
    bits_D = np.unpackbits(np.frombuffer(digest, dtype=np.uint8))[:size]
    return bits_D.astype(np.float32) * 2 - 1
