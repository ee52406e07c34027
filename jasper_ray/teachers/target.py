"""The target that teachers' vectors make together, and the checks of these vectors.

The target of a text is its teachers' unit vectors, each scaled by √weight, one beside the other, normalised
again (arXiv 2412.19048, section 2.1). Its Gram matrix is then the weighted mean of the teachers' cosines.
"""

# Shape legend: B rows, D size of one teacher's vectors, E size of the target.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from jasper_ray.config import ConfigError
from jasper_ray.vectors import normalise


def check_vectors(vectors_BD: np.ndarray, texts: Sequence[str], teacher: str, dim: int | None) -> None:
    """Reject vectors that would corrupt the target.

    Raises:
        ConfigError: the row count or size is wrong, or a row is not finite, zero, or not of length 1; it names the
            teacher and the first such text.
    """
    if vectors_BD.ndim != 2 or len(vectors_BD) != len(texts):
        raise ConfigError(f"teacher {teacher!r} returned shape {vectors_BD.shape} for {len(texts)} texts")
    if dim is not None and vectors_BD.shape[1] != dim:
        raise ConfigError(
            f"teacher {teacher!r} returned vectors of size {vectors_BD.shape[1]}, but dim is {dim}; fix dim"
        )
    lengths_B = np.linalg.norm(vectors_BD.astype(np.float32), axis=1)
    faults = (
        ("not finite", ~np.isfinite(lengths_B)),
        ("zero", lengths_B == 0),
        ("not of length 1", abs(lengths_B - 1) > 1e-3),
    )
    for fault, bad_B in faults:
        if bad_B.any():
            text = texts[int(bad_B.argmax())]
            raise ConfigError(
                f"teacher {teacher!r} returned a vector that is {fault} for the text {text[:80]!r} "
                f"({int(bad_B.sum())} of {len(texts)} rows); set dtype float32, or remove such texts"
            )


def fuse(columns: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Make the target `[B, E]`, float32 unit rows, from one `[B, D]` tensor a teacher, in the recipe's order."""
    parts = [
        torch.nn.functional.normalize(column_BD.float(), dim=1) * weight**0.5
        for column_BD, weight in zip(columns, weights, strict=True)
    ]
    return torch.nn.functional.normalize(torch.cat(parts, dim=1), dim=1)


def truncate_dims(vectors_BD: np.ndarray, size: int, teacher: str) -> np.ndarray:
    """Keep the first `size` dimensions, normalised again.

    Raises:
        ConfigError: there are fewer.
    """
    if size > vectors_BD.shape[1]:
        raise ConfigError(
            f"teacher {teacher!r}: truncate is {size}, but its vectors have only {vectors_BD.shape[1]} dimensions"
        )
    return normalise(vectors_BD[:, :size])
