"""What a job remembers of texts it has embedded, so that one that comes again in another block is not embedded again.

One actor for all of a job. Two actors that meet the same text at the same moment both embed it.
"""

# Shape legend: N texts asked about, K of them known, D all numbers of a text's vectors together.

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

import numpy as np
import ray

from jasper_ray.encoders.budget import Encode
from jasper_ray.models.tokenizing import Ids

logger = logging.getLogger(__name__)


class Memory:
    """Vectors by the tokens of their text, up to a number of bytes; then what is new is not kept."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit = limit_bytes
        self.used = 0
        self.vectors: dict[bytes, np.ndarray] = {}

    def lookup(self, keys: Sequence[bytes]) -> tuple[list[int], np.ndarray]:
        """Places of the keys that are known, and their vectors `[K, D]`."""
        known = [place for place, key in enumerate(keys) if key in self.vectors]
        found = [self.vectors[keys[place]] for place in known]
        return known, np.stack(found) if found else np.empty((0, 0), np.float32)

    def add(self, keys: Sequence[bytes], vectors_ND: np.ndarray) -> None:
        """Keep these."""
        for key, vector_D in zip(keys, vectors_ND, strict=True):
            if key not in self.vectors and self.used + vector_D.nbytes <= self.limit:
                self.vectors[key] = vector_D.copy()
                self.used += vector_D.nbytes


class Remembering:
    """An actor's side of a `Memory`: embeds what is not known yet."""

    def __init__(self, memory: ray.actor.ActorHandle) -> None:
        self.memory = memory

    def encode(self, encode: Encode, ids: Ids, dims: Sequence[int]) -> dict[int, np.ndarray]:
        """The vectors of each head for all rows of `ids`; `encode` is given those that are not known."""
        keys = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in ids]
        known, found_KD = ray.get(self.memory.lookup.remote(keys))
        fresh = sorted(set(range(len(ids))) - set(known))
        all_ND = np.empty((len(ids), sum(dims)), np.float32)
        if known:
            all_ND[known] = found_KD
        if fresh:
            heads = encode([ids[place] for place in fresh])
            all_ND[fresh] = np.concatenate([heads[dim] for dim in dims], axis=1)
            self.memory.add.remote([keys[place] for place in fresh], all_ND[fresh])
        ends = np.cumsum(dims)
        return {dim: all_ND[:, end - dim : end] for dim, end in zip(dims, ends, strict=True)}
