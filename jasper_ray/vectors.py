"""Precisions, and operations on rows of vectors."""

# Shape legend: N rows, D dimensions, R = 2 (the least and the largest value).

from __future__ import annotations

from typing import Literal

import numpy as np

Dtype = Literal["float32", "bfloat16", "float16"]
"""Precision in which a model computes."""

Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""A precision as a setting: `auto` takes the one in which the device is measured to be fast."""


def normalise(x_ND: np.ndarray) -> np.ndarray:
    """Scale rows to length 1, in float32. A zero row stays zero."""
    x_ND = np.asarray(x_ND, dtype=np.float32)
    norms_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
    return x_ND / np.maximum(norms_N1, np.finfo(np.float32).tiny)


def int8_ranges(x_ND: np.ndarray) -> np.ndarray:
    """Find the least and the largest value of each dimension, float32 `[2, D]`, for `quantise_int8`."""
    return np.stack([x_ND.min(axis=0), x_ND.max(axis=0)]).astype(np.float32)


def quantise_int8(x_ND: np.ndarray, ranges_RD: np.ndarray) -> np.ndarray:
    """Quantise each dimension to int8 in 255 equal steps, from its least (-128) to its largest value (127).

    Values outside of `ranges_RD` are clipped. The numbers are those of sentence-transformers'
    `quantize_embeddings(…, "int8", ranges)`.
    """
    low_D, high_D = np.asarray(ranges_RD, dtype=np.float32)
    steps_D = (high_D - low_D) / 255
    steps_D = np.where(steps_D == 0, np.float32(1), steps_D)
    return (np.clip(np.floor((x_ND - low_D) / steps_D), 0, 255) - 128).astype(np.int8)


def quantise_binary(x_ND: np.ndarray) -> np.ndarray:
    """Keep one bit per dimension, 1 above zero: int8 `[N, D/8]`, eight to a byte from the highest bit, minus 128.

    The numbers are those of sentence-transformers' `quantize_embeddings(…, "binary")`; add 128 for unsigned bytes.
    """
    return (np.packbits(x_ND > 0, axis=-1).astype(np.int16) - 128).astype(np.int8)


def least_cosine(x_ND: np.ndarray, y_ND: np.ndarray) -> float:
    """Find the smallest cosine between equal rows of two matrices; 1 without rows."""
    cosines_N = (normalise(x_ND) * normalise(y_ND)).sum(axis=1)
    return float(cosines_N.min(initial=1.0))
