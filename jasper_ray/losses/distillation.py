"""The three geometric losses of the Jasper and Stella papers, and the table of losses that a recipe can weigh.

A new loss is one function and one row of LOSSES: a stage's settings, their checks and the objective read the table.

All cosines are computed in float32. Under bfloat16 autocast a cosine between 0.5 and 1 would be known to 0.004 only, a
quarter of the relative similarity's margin, and much of the teacher's order would drown in ties.
"""

# Shape legend: B rows (texts), D dimensions of a student's row, E of a teacher's, P = B(B-1)/2 unordered pairs of rows.

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jasper_ray.losses.ranking import hinge_ranking_loss, strictly_lower


def cosine_loss(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Compute the mean over the rows of `1 - s.t`, s and t the unit rows: 0 where all directions agree.

    Source: arXiv 2412.19048, section 2.3. The paper prints a sum over the batch; its authors' code and their published
    curves are the mean, which the weight of 10 belongs to and which does not move with the batch size.
    Relation to the other two: the only loss that sees coordinates. Where it is 0 the similarity loss is 0 too, but not
    the other way round: the other two are blind to a rotation of the student's space.
    Cost: O(B D) time and memory.

    student_BD: any floating dtype; the gradient flows here. teacher_BD: constant, no gradient flows into it.
    Returns a float32 scalar, computed in float32 also under autocast.

    Raises:
        ValueError: a matrix is not a matrix or is empty, or the two differ in rows or in dimensions.
    """
    check_rows(student_BD, teacher_BD, at_least=1)
    if student_BD.shape[1] != teacher_BD.shape[1]:
        raise ValueError(
            f"the student's rows have {student_BD.shape[1]} dimensions and the teacher's {teacher_BD.shape[1]}; "
            "the cosine loss compares coordinates and needs equal sizes (the two similarity losses do not)"
        )
    cosine_B = (unit_rows(student_BD) * unit_rows(teacher_BD.detach())).sum(dim=1)
    return (1 - cosine_B).mean()


def similarity_loss(student_BD: Tensor, teacher_BE: Tensor) -> Tensor:
    """Compute the mean over all B*B entries of `(S S^T - T T^T)^2`, S and T the unit rows.

    Source: arXiv 2412.19048, section 2.3. The diagonal, 1 against 1, counts among the B*B entries and adds nothing.
    Relation to the other two: it fixes the cosines between texts but no coordinates, so D and E may differ. Relative
    similarity asks less still, only the order of these cosines.
    Cost: O(B^2 (D + E)) time and O(B^2) memory.

    student_BD: any floating dtype; the gradient flows here. teacher_BE: constant, no gradient flows into it.
    Returns a float32 scalar, computed in float32 also under autocast.

    Raises:
        ValueError: a matrix is not a matrix or has fewer than 2 rows, or the row counts differ.
    """
    check_rows(student_BD, teacher_BE, at_least=2)
    return F.mse_loss(cosines(student_BD), cosines(teacher_BE.detach()))


def relative_similarity_loss(student_BD: Tensor, teacher_BE: Tensor, margin: float = 0.015) -> Tensor:
    """Compute `1/N` times the sum, over all pairs p and q of texts with `t_p > t_q`, of `max(0, s_q - s_p + margin)`.

    s_p and t_p are the cosines of pair p = (i < j) to the student and to the teacher, and N = P(P-1)/2 is the number of
    pairs of pairs: 33,028,128 for 128 texts. Pairs tied in the teacher are not compared, but stay in N.

    Source: arXiv 2412.19048, section 2.3 (equation 3), after CoSENT.
    Relation to the other two: only the order of the cosines counts, so D and E may differ, and where the similarity
    loss asks for the teacher's values this one is content with gaps wider than the margin in the teacher's order. It is
    not 0 for a perfect student: two pairs that the teacher itself holds less than the margin apart still pay.
    Cost: O(B^2 (D + E) + P log P) time and O(P) memory, exact: see `jasper_ray.losses.ranking`. The published form
    builds P x P matrices (`benchmarks.losses`).

    student_BD: any floating dtype; the gradient flows here. teacher_BE: constant, no gradient flows into it.
    Returns a float32 scalar; cosines in float32 also under autocast, comparisons and sums in float64.

    Raises:
        ValueError: a matrix is not a matrix or has fewer than 3 rows (no two pairs), or the row counts differ.
    """
    check_rows(student_BD, teacher_BE, at_least=3)
    return hinge_ranking_loss(pair_cosines(student_BD), pair_cosines(teacher_BE.detach()), margin)


class Option(NamedTuple):
    """A number that a loss takes beside the vectors; not negative."""

    default: float
    help: str


class Loss(NamedTuple):
    """A loss that a recipe can weigh: a function of student_BD and teacher_BE, and the conditions it sets."""

    function: Callable[..., Tensor]
    help: str
    """The meaning of its weight in a recipe."""
    least_rows: int = 1
    """Rows that a batch must have."""
    same_size: bool = False
    """The student's and the teacher's rows must have the same size, D = E."""
    options: Mapping[str, Option] = {}
    """Further arguments of `function`, which a recipe sets beside the weights."""


LOSSES: dict[str, Loss] = {
    "cosine": Loss(
        cosine_loss, "Weight of the cosine loss, for a head with as many dimensions as the target.", same_size=True
    ),
    "similarity": Loss(similarity_loss, "Weight of the similarity loss.", least_rows=2),
    "relative_similarity": Loss(
        relative_similarity_loss,
        "Weight of the relative similarity loss.",
        least_rows=3,
        options={"margin": Option(0.015, "Margin of the relative similarity loss, as a difference of cosines.")},
    ),
}
"""Every loss by its name in a recipe. The papers weigh the three 10, 200 and 20."""


def count_comparisons(teacher_BE: Tensor) -> int:
    """Count the pairs of pairs that the teacher orders strictly, each a hinge of the relative similarity loss.

    Equals N = P(P-1)/2 when no two cosines of `teacher_BE` tie in float32; far less is a sign of repeated texts.
    """
    check_matrix("teacher", teacher_BE, at_least=3)
    return int(strictly_lower(pair_cosines(teacher_BE.detach())).sum())


def check_rows(student_BD: Tensor, teacher_BE: Tensor, at_least: int) -> None:
    """Raise `ValueError` unless both are matrices with the same number of rows, and with `at_least` so many."""
    check_matrix("student", student_BD, at_least)
    check_matrix("teacher", teacher_BE, at_least)
    if len(student_BD) != len(teacher_BE):
        raise ValueError(
            f"the student has {len(student_BD)} rows and the teacher {len(teacher_BE)}; "
            "row i of both must be the vector of the same text i"
        )


def check_matrix(whose: str, vectors_BD: Tensor, at_least: int) -> None:
    """Raise `ValueError` unless `vectors_BD` is a matrix with `at_least` so many rows; `whose` names it in the text."""
    if vectors_BD.ndim != 2:
        shape = tuple(vectors_BD.shape)
        raise ValueError(f"the {whose}'s vectors have shape {shape}; expected a matrix, one row a text")
    if len(vectors_BD) < at_least:
        raise ValueError(f"the {whose} has a batch of {len(vectors_BD)}; this loss needs at least {at_least} row(s)")


def unit_rows(vectors_BD: Tensor) -> Tensor:
    """Scale the rows to length 1, in float32. A zero row stays zero."""
    return F.normalize(vectors_BD.float(), dim=1)


def cosines(vectors_BD: Tensor) -> Tensor:
    """Compute the Gram matrix [B, B] of the unit rows: the cosine of every two rows, in float32.

    On a GPU leave TF32 matrix products off, as torch does by default: they would keep 10 bits of each factor.
    """
    cosine_BB: Tensor = Gram.apply(unit_rows(vectors_BD))
    return cosine_BB


class Gram(torch.autograd.Function):
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
    """Compute the cosines [P] of all unordered pairs of rows i < j, in float32: (0,1), (0,2), ..., (B-2,B-1)."""
    first_P, second_P = torch.triu_indices(len(vectors_BD), len(vectors_BD), offset=1, device=vectors_BD.device)
    return cosines(vectors_BD)[first_P, second_P]
