"""The three geometric losses of the Jasper and Stella papers, and the objective that weighs them.

Each is a differentiable function of plain tensors: rows normalised inside, float32 inside, a float32 scalar out.
"""

from __future__ import annotations

from jasper_ray.losses.cosine import cosine_loss
from jasper_ray.losses.objective import HeadLosses, LossTerms, Objective
from jasper_ray.losses.relative_similarity import count_comparisons, relative_similarity_loss
from jasper_ray.losses.similarity import similarity_loss

__all__ = [
    "HeadLosses",
    "LossTerms",
    "Objective",
    "cosine_loss",
    "count_comparisons",
    "relative_similarity_loss",
    "similarity_loss",
]
