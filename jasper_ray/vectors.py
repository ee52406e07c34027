"""Operations on rows of vectors that every floor shares."""

# Shape legend: N rows, D dimensions, B batch rows.

from __future__ import annotations

from typing import Literal

import numpy as np

Dtype = Literal["float32", "bfloat16", "float16"]
"""Precision in which a model computes."""


def normalise(x_ND: np.ndarray) -> np.ndarray:
    """Rows of `x_ND` scaled to length 1, in float32. A zero row stays zero."""
    x_ND = np.asarray(x_ND, dtype=np.float32)
    norms_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
    return x_ND / np.maximum(norms_N1, np.finfo(np.float32).tiny)
