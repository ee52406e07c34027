"""The losses of a stage: differentiable functions of plain tensors, their table, and the objective that weighs them.

In each, rows are normalised inside, arithmetic is float32 inside, and a float32 scalar comes out.
"""

from __future__ import annotations

from jasper_ray.losses.distillation import (
    LOSSES,
    Loss,
    Option,
    cosine_loss,
    count_comparisons,
    relative_similarity_loss,
    similarity_loss,
)

__all__ = [
    "LOSSES",
    "Loss",
    "Option",
    "cosine_loss",
    "count_comparisons",
    "relative_similarity_loss",
    "similarity_loss",
]
