"""Unit rows and the cosines between them, always in float32: what every loss measures.

Under bfloat16 autocast a cosine between 0.5 and 1 would be known to 0.004 only, a quarter of the relative similarity's
margin, and much of the teacher's order would drown in ties. Hence float32, whatever comes in, autocast or not.
"""

# Shape legend: B rows (texts), D dimensions of a student's row, E of a teacher's, P = B(B-1)/2 unordered pairs of rows.

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def check_rows(student_BD: Tensor, teacher_BE: Tensor, at_least: int) -> None:
    """Raise `ValueError` unless both are matrices with the same number of rows, and with `at_least` so many."""
    check_matrix("student", student_BD, at_least)
    check_matrix("teacher", teacher_BE, at_least)
    if len(student_BD) != len(teacher_BE):
        raise ValueError(
            f"The student has {len(student_BD)} rows and the teacher {len(teacher_BE)}; "
            "row i of both must be the vector of the same text i."
        )


def check_matrix(whose: str, vectors_BD: Tensor, at_least: int) -> None:
    """Raise `ValueError` unless `vectors_BD` is a matrix with `at_least` so many rows; `whose` names it in the text."""
    if vectors_BD.ndim != 2:
        shape = tuple(vectors_BD.shape)
        raise ValueError(f"The {whose}'s vectors have shape {shape}; expected a matrix, one row a text.")
    if len(vectors_BD) < at_least:
        raise ValueError(f"The {whose} has a batch of {len(vectors_BD)}; this loss needs at least {at_least} row(s).")


def unit_rows(vectors_BD: Tensor) -> Tensor:
    """The rows scaled to length 1, in float32. A zero row stays zero."""
    return F.normalize(vectors_BD.float(), dim=1)


def cosines(vectors_BD: Tensor) -> Tensor:
    """The Gram matrix [B, B] of the unit rows: the cosine of every two rows, in float32.

    On a GPU leave TF32 matrix products off, as torch does by default: they would keep 10 bits of each factor.
    """
    cosine_BB: Tensor = _Gram.apply(unit_rows(vectors_BD))
    return cosine_BB


class _Gram(torch.autograd.Function):
    """`x x^T` outside autocast, backward too, which a caller may well start inside; and one product there, not two."""

    @staticmethod
    def forward(ctx: Any, unit_BD: Tensor) -> Tensor:
        ctx.save_for_backward(unit_BD)
        with torch.autocast(device_type=unit_BD.device.type, enabled=False):
            return unit_BD @ unit_BD.T

    @staticmethod
    def backward(ctx: Any, upstream_BB: Tensor) -> Tensor:
        (unit_BD,) = ctx.saved_tensors
        with torch.autocast(device_type=unit_BD.device.type, enabled=False):
            gradient_BD: Tensor = (upstream_BB + upstream_BB.T) @ unit_BD
            return gradient_BD


def pair_cosines(vectors_BD: Tensor) -> Tensor:
    """The cosines [P] of all unordered pairs of rows i < j, in float32, in the order (0,1), (0,2), ..., (B-2,B-1)."""
    first_P, second_P = torch.triu_indices(len(vectors_BD), len(vectors_BD), offset=1, device=vectors_BD.device)
    return cosines(vectors_BD)[first_P, second_P]
