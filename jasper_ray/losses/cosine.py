"""The cosine loss: every student vector should point where the teacher's points."""

# Shape legend: B rows (texts), D dimensions, the same for student and teacher.

from __future__ import annotations

from torch import Tensor

from jasper_ray.losses.geometry import check_rows, unit_rows


def cosine_loss(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Mean over the rows of `1 - s.t`, s and t the unit rows: 0 where all directions agree, 1 where none is related.

    Source: arXiv 2412.19048, section 2.3. The paper prints a sum over the batch; its authors' code and their published
    curves are the mean, which the weight of 10 belongs to and which does not move with the batch size.
    Relation to the other two: the only loss that sees coordinates. Where it is 0 the similarity loss is 0 too, but not
    the other way round: the other two are blind to a rotation of the student's space.
    Cost: O(B D) time and memory.

    student_BD: any floating dtype; the gradient flows here. teacher_BD: constant, no gradient flows into it.
    Returns a float32 scalar, computed in float32 also under autocast.
    Raises `ValueError` if a matrix is not a matrix, is empty, or if the two differ in rows or in dimensions.
    """
    check_rows(student_BD, teacher_BD, at_least=1)
    if student_BD.shape[1] != teacher_BD.shape[1]:
        raise ValueError(
            f"The student's rows have {student_BD.shape[1]} dimensions and the teacher's {teacher_BD.shape[1]}; "
            "the cosine loss compares coordinates and needs equal sizes (the two similarity losses do not)."
        )
    cosine_B = (unit_rows(student_BD) * unit_rows(teacher_BD.detach())).sum(dim=1)
    return (1 - cosine_B).mean()
