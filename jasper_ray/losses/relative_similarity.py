"""The relative similarity loss: of two pairs of texts, the student should find closer the one the teacher does."""

# Shape legend: B rows (texts), D dimensions of a student's row, E of a teacher's, P = B(B-1)/2 unordered pairs of rows.

from __future__ import annotations

from torch import Tensor

from jasper_ray.losses.geometry import check_matrix, check_rows, pair_cosines
from jasper_ray.losses.ranking import hinge_ranking_loss, strictly_lower


def relative_similarity_loss(student_BD: Tensor, teacher_BE: Tensor, margin: float = 0.015) -> Tensor:
    """`1/N` times the sum, over all pairs p and q of texts with `t_p > t_q`, of `max(0, s_q - s_p + margin)`.

    s_p and t_p are the cosines of pair p = (i < j) to the student and to the teacher, and N = P(P-1)/2 is the number of
    pairs of pairs: 33,028,128 for 128 texts. Pairs tied in the teacher are not compared, but stay in N.

    Source: arXiv 2412.19048, section 2.3 (equation 3), after CoSENT.
    Relation to the other two: only the order of the cosines counts, so D and E may differ, and where the similarity
    loss wants the teacher's values this one is content with gaps wider than the margin in the teacher's order. It is
    not 0 for a perfect student: two pairs that the teacher itself holds less than the margin apart still pay.
    Cost: O(B^2 (D + E) + P log P) time and O(P) memory, exact: see `jasper_ray.losses.ranking`. The published form
    builds P x P matrices (`benchmarks.losses`).

    student_BD: any floating dtype; the gradient flows here. teacher_BE: constant, no gradient flows into it.
    Returns a float32 scalar; cosines in float32 also under autocast, comparisons and sums in float64.
    Raises `ValueError` if a matrix is not a matrix, has fewer than 3 rows (no two pairs), or if the row counts differ.
    """
    check_rows(student_BD, teacher_BE, at_least=3)
    return hinge_ranking_loss(pair_cosines(student_BD), pair_cosines(teacher_BE.detach()), margin)


def count_comparisons(teacher_BE: Tensor) -> int:
    """How many of the N pairs of pairs the teacher orders strictly, i.e. how many hinges the loss is a sum of.

    Equals N = P(P-1)/2 when no two cosines of `teacher_BE` tie in float32; far less is a sign of repeated texts.
    """
    check_matrix("teacher", teacher_BE, at_least=3)
    return int(strictly_lower(pair_cosines(teacher_BE.detach())).sum())
