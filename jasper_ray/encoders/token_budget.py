"""Batches by tokens, padding included; a budget that is halved when memory runs out."""

# Shape legend: N rows, D size of a head's vectors.

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from jasper_ray.config import ConfigError
from jasper_ray.models.tokens import Ids

logger = logging.getLogger(__name__)

SIGNS = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Messages of out-of-memory errors that have no class of their own."""

USUAL_TOKENS = {"cpu": 1_024, "cuda": 65_536}
"""Default budgets: they fill a CPU's caches, or a GPU."""

Encode = Callable[[Ids], dict[int, np.ndarray]]
"""Function from a batch's ids to the vectors of each head."""


@dataclass
class TokenBudget:
    """The number of tokens that go through a model at once."""

    tokens: int
    """Most tokens of a batch: rows times the longest row. Halved when memory runs out, and stays so."""
    max_rows: int = 4096
    """Most rows of a batch."""

    def batch_rows(self, longest: int) -> int:
        """Count the rows of a batch whose longest row has `longest` tokens; at least one."""
        return max(1, min(self.max_rows, self.tokens // longest))

    def encode(self, encode: Encode, ids: Ids) -> tuple[dict[int, np.ndarray], int]:
        """Encode rows in batches, longest row first, so that memory runs out at once or never; halve what does not fit.

        Returns:
            The vectors in the order of `ids`, and the number of tokens computed, padding included.

        Raises:
            ConfigError: a single row does not fit.
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
            if not fits:  # outside of except, where no traceback holds the activations
                self.shrink(len(rows_B), longest)
                continue
            start += len(rows_B)
            computed += len(rows_B) * longest
        return in_order(parts, order_N), computed

    def shrink(self, rows: int, longest: int) -> None:
        """Set the budget to half of the batch that did not fit."""
        if rows == 1:
            raise ConfigError(
                f"a text of {longest} tokens does not fit into memory alone; let fewer copies share a device, "
                "or give them one with more memory"
            )
        self.tokens = min(self.tokens, max(longest, rows * longest // 2))  # another thread may have halved it too
        logger.warning("out of memory at %d rows of %d tokens; new budget: %d tokens", rows, longest, self.tokens)
        free_memory()


def free_memory() -> None:
    """Release the memory of models and activations that nothing refers to."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Recognise that a device, or the CPU's allocator, had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)


def in_order(parts: Sequence[dict[int, np.ndarray]], order_N: np.ndarray) -> dict[int, np.ndarray]:
    """Concatenate the parts, and move row i to `order_N[i]`."""
    vectors: dict[int, np.ndarray] = {}
    for dim in parts[0] if parts else ():
        sorted_ND = np.concatenate([part[dim] for part in parts])
        vectors[dim] = np.empty_like(sorted_ND)
        vectors[dim][order_N] = sorted_ND
    return vectors
