"""Batches by tokens: as many texts at once as a budget holds, padding included; the budget learns from memory."""

# Shape legend: N rows, D size of a head's vectors.

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from jasper_ray.config import ConfigError
from jasper_ray.models.tokenizing import Ids

logger = logging.getLogger(__name__)

SIGNS = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What errors say that are for want of memory, and of no class of their own."""

USUAL_TOKENS = {"cpu": 1_024, "cuda": 65_536}
"""What fills a processor's caches, or a GPU."""

Encode = Callable[[Ids], dict[int, np.ndarray]]
"""A batch's ids to the vectors of each head."""


@dataclass
class TokenBudget:
    """How many tokens go through a model at once."""

    tokens: int
    """Rows times the longest of them, at most. Halved when memory runs out, for good."""
    max_rows: int = 4096
    """Rows of a batch at most, however short they are."""

    def batch_rows(self, longest: int) -> int:
        """Rows of a batch whose longest row has so many tokens; at least one."""
        return max(1, min(self.max_rows, self.tokens // longest))

    def encode(self, encode: Encode, ids: Ids) -> tuple[dict[int, np.ndarray], int]:
        """The vectors of all rows in their order, and how many tokens were computed, padding included.

        Rows go longest first, so that rows of a batch are of similar length and memory runs out at once or never. A
        batch that does not fit is halved and tried again.

        Raises:
            ConfigError: not even one row fits.
        """
        lengths_N = np.array([len(row) for row in ids])
        order_N = np.argsort(-lengths_N, kind="stable")
        parts: list[dict[int, np.ndarray]] = []
        start = computed = 0
        while start < len(order_N):
            longest = int(lengths_N[order_N[start]])
            rows_B = order_N[start : start + self.batch_rows(longest)]
            try:
                parts.append(encode([ids[row] for row in rows_B]))
                fits = True
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                fits = False
            if not fits:  # out here, where no traceback holds the activations any more
                self.shrink(len(rows_B), longest)
                continue
            start += len(rows_B)
            computed += len(rows_B) * longest
        return in_order(parts, order_N), computed

    def shrink(self, rows: int, longest: int) -> None:
        """Half of what did not fit is the budget from now on; raises `ConfigError` where that was a single row."""
        if rows == 1:
            raise ConfigError(
                f"a text of {longest} tokens does not fit into memory alone; let fewer copies share a device, "
                "or give them one with more memory"
            )
        self.tokens = min(self.tokens, max(longest, rows * longest // 2))  # another thread may have halved it too
        logger.warning("out of memory at %d rows of %d tokens; from now on %d tokens", rows, longest, self.tokens)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or the processor's allocator, had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)


def in_order(parts: Sequence[dict[int, np.ndarray]], order_N: np.ndarray) -> dict[int, np.ndarray]:
    """The parts below each other, row i of them put at `order_N[i]`."""
    vectors: dict[int, np.ndarray] = {}
    for dim in parts[0] if parts else ():
        sorted_ND = np.concatenate([part[dim] for part in parts])
        vectors[dim] = np.empty_like(sorted_ND)
        vectors[dim][order_N] = sorted_ND
    return vectors
