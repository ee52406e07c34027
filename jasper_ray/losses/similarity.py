"""The similarity loss: two texts should be as close to the student as they are to the teacher."""

# Shape legend: B rows (texts), D dimensions of the student's rows, E of the teacher's.

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from jasper_ray.losses.geometry import check_rows, cosines


def similarity_loss(student_BD: Tensor, teacher_BE: Tensor) -> Tensor:
    """Mean over all B*B entries of `(S S^T - T T^T)^2`, S and T the unit rows.

    Source: arXiv 2412.19048, section 2.3. The diagonal, 1 against 1, counts among the B*B entries and adds nothing.
    Relation to the other two: it fixes the cosines between texts but no coordinates, so D and E may differ. Relative
    similarity asks less still, only the order of these cosines.
    Cost: O(B^2 (D + E)) time and O(B^2) memory.

    student_BD: any floating dtype; the gradient flows here. teacher_BE: constant, no gradient flows into it.
    Returns a float32 scalar, computed in float32 also under autocast.
    Raises `ValueError` if a matrix is not a matrix, has fewer than 2 rows, or if the row counts differ.
    """
    check_rows(student_BD, teacher_BE, at_least=2)
    return F.mse_loss(cosines(student_BD), cosines(teacher_BE.detach()))
