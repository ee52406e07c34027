"""The relative similarity loss in its published form, all P x P comparisons in one matrix; the fast one must equal it.

Kept for tests and benchmarks; training never calls it. O(P^2) = O(B^4) time and memory: each of its float32 matrices
takes 264 MB for 128 texts, and 1.1 TB for 1,024.
"""

# Shape legend: B rows (texts), D dimensions of a student's row, E of a teacher's, P = B(B-1)/2 unordered pairs of rows.

from __future__ import annotations

import torch
from torch import Tensor

from jasper_ray.losses.geometry import check_rows, pair_cosines


def matrix_relative_similarity(
    student_BD: Tensor, teacher_BE: Tensor, margin: float = 0.015, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Arguments, value, gradient and errors of `relative_similarity_loss`; source: arXiv 2412.19048, equation 3.

    dtype: of the P x P arithmetic on the float32 cosines. float32 is the published one; float64 takes twice the memory
    and agrees with the fast form in every single comparison.
    """
    check_rows(student_BD, teacher_BE, at_least=3)
    return matrix_hinge_ranking(pair_cosines(student_BD).to(dtype), pair_cosines(teacher_BE.detach()), margin).float()


def matrix_hinge_ranking(student_P: Tensor, teacher_P: Tensor, margin: float) -> Tensor:
    """`hinge_ranking_loss` as a matrix [p, q] in the student's dtype: the hinges, where the teacher holds p above q."""
    hinge_PP = torch.relu((student_P + margin)[None, :] - student_P[:, None])
    ordered_PP = teacher_P[:, None] > teacher_P[None, :]
    return (hinge_PP * ordered_PP).sum() / (len(student_P) * (len(student_P) - 1) // 2)
