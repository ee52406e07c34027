"""Scores of geometry: a student's vectors against their target's on held-out rows."""

# Shape legend: N rows, D size of the student's vectors, E size of the target, P pairs of rows: N (N - 1) / 2.

from __future__ import annotations

import math

import numpy as np

from jasper_ray.evaluation.base import Style
from jasper_ray.vectors import normalise

GEOMETRY = {"cosine": Style(3), "gram_error": Style(4, "smallest"), "pair_order": Style(3)}
"""The metrics of `geometry_scores`."""


def geometry_scores(student_ND: np.ndarray, target_NE: np.ndarray) -> dict[str, float]:
    """Compare a head with the target; rows are normalised first. About 16 N² bytes of memory, O(N² log N) time.

        cosine: mean cosine of a student row with its target row, -1 to 1; only for a head of the target's size
        gram_error: root mean squared difference between student and target cosine of a pair of rows; 0 is best
        pair_order: share of pairs of pairs that student and target put in the same order, 0 to 1; see `pair_order`

    Raises:
        ValueError: fewer than three rows, or a different number of them on the two sides.
    """
    if len(student_ND) != len(target_NE) or len(student_ND) < 3:
        raise ValueError(
            f"found {len(student_ND)} student rows and {len(target_NE)} target rows, expected as many and at least 3"
        )
    student_ND, target_NE = normalise(student_ND), normalise(target_NE)
    same_size = student_ND.shape == target_NE.shape
    student_P, target_P = pair_cosines(student_ND), pair_cosines(target_NE)
    return {
        **({"cosine": float(np.einsum("nd,nd->n", student_ND, target_NE).mean())} if same_size else {}),
        "gram_error": float(np.sqrt(np.mean(np.square(student_P - target_P, dtype=np.float64)))),
        "pair_order": pair_order(student_P, target_P),
    }


def pair_cosines(x_ND: np.ndarray) -> np.ndarray:
    """Return the cosines of all pairs of different unit rows: the Gram matrix above its diagonal, `[P]`."""
    return (x_ND @ x_ND.T)[np.triu_indices(len(x_ND), k=1)]


def pair_order(student_P: np.ndarray, teacher_P: np.ndarray) -> float:
    """Return C / (C + D) over all pairs (p, q) of entries, in O(P log P).

    C counts the pairs with student_p - student_q and teacher_p - teacher_q of the same sign, D those of opposite sign;
    a pair with either difference exactly 0 is in neither. 1: the same order throughout, 0.5: chance, also the value if
    no pair can be compared, as of a student that has collapsed to a point.

    With T all pairs and S those tied on a side, C + D = T - S_s - S_t + S_both and
    tau_b = (C - D) / sqrt((T - S_s) (T - S_t)).

    Source: Kendall 1945, https://doi.org/10.1093/biomet/33.3.239
    """
    from scipy.stats import kendalltau  # here and not above: it takes a second, and recipes are read without it

    pairs = math.comb(len(student_P), 2)
    student_ties, teacher_ties = _ties(student_P), _ties(teacher_P)
    comparable = pairs - student_ties - teacher_ties + _ties(np.stack([student_P, teacher_P], axis=1))
    if comparable == 0:
        return 0.5
    tau = float(kendalltau(student_P, teacher_P, method="asymptotic").statistic)  # the p-value's method: exact is slow
    difference = tau * np.sqrt(float(pairs - student_ties) * float(pairs - teacher_ties))
    return float((1 + difference / comparable) / 2)


def _ties(values: np.ndarray) -> int:
    """Count the pairs of equal entries (rows, if `values` has two dimensions)."""
    _, counts = np.unique(values, axis=0, return_counts=True)
    return sum(math.comb(int(count), 2) for count in counts)
