"""How closely a student's vectors repeat their target's geometry on rows it was not trained on."""

# Shape legend: N rows, D size of the student's vectors, E size of the target, P pairs of rows: N (N - 1) / 2.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jasper_ray.evaluation.scores import MetricName, Score, as_scores
from jasper_ray.vectors import normalise


@dataclass(frozen=True)
class Agreement:
    """One head against the target."""

    cosine: float | None
    """Mean cosine of a student row with its target row, -1 to 1; None for a head of another size than the target."""
    gram_error: float
    """Root mean squared difference between student and target cosine of a pair of rows, over all pairs; 0 is best."""
    pair_order: float
    """Share of pairs of pairs that student and teacher put in the same order, 0 to 1; see `pair_order`."""

    def scores(self, name: str, dim: int) -> list[Score]:
        """The same figures as scores of a set called `name`, without a cosine that is None."""
        figures: dict[MetricName, float] = {} if self.cosine is None else {"cosine": self.cosine}
        return as_scores(name, dim, {**figures, "gram_error": self.gram_error, "pair_order": self.pair_order})


def agreement(student_ND: np.ndarray, target_NE: np.ndarray) -> Agreement:
    """All three figures; rows are normalised first. Needs N >= 3; about 16 N² bytes of memory and O(N² log N) time.

    Raises:
        ValueError: fewer than three rows, or another number of them on the two sides.
    """
    if len(student_ND) != len(target_NE) or len(student_ND) < 3:
        raise ValueError(
            f"found {len(student_ND)} student rows and {len(target_NE)} target rows, expected as many and at least 3"
        )
    student_ND, target_NE = normalise(student_ND), normalise(target_NE)
    same_size = student_ND.shape == target_NE.shape
    cosines_P, wanted_P = pair_cosines(student_ND), pair_cosines(target_NE)
    return Agreement(
        cosine=float(np.einsum("nd,nd->n", student_ND, target_NE).mean()) if same_size else None,
        gram_error=float(np.sqrt(np.mean(np.square(cosines_P - wanted_P, dtype=np.float64)))),
        pair_order=pair_order(cosines_P, wanted_P),
    )


def pair_cosines(x_ND: np.ndarray) -> np.ndarray:
    """Cosines of all pairs of different rows of the unit rows `x_ND`: the Gram matrix above its diagonal, `[P]`."""
    return (x_ND @ x_ND.T)[np.triu_indices(len(x_ND), k=1)]


def pair_order(student_P: np.ndarray, teacher_P: np.ndarray) -> float:
    """C / (C + D) over all pairs (p, q) of entries, in O(P log P).

    C counts the pairs with student_p - student_q and teacher_p - teacher_q of the same sign, D those of opposite sign;
    a pair with either difference exactly 0 is in neither. 1: the same order throughout, 0.5: chance, which is also
    the value where no pair can be compared, as of a student that has collapsed to a point.

    With T all pairs and S those tied on a side, C + D = T - S_s - S_t + S_both and
    tau_b = (C - D) / sqrt((T - S_s) (T - S_t)).

    Source: Kendall 1945, https://doi.org/10.1093/biomet/33.3.239
    """
    from scipy.stats import kendalltau  # here and not above: it takes a second, and recipes are read without it

    pairs = _pairs(len(student_P))
    student_ties, teacher_ties = _ties(student_P), _ties(teacher_P)
    comparable = pairs - student_ties - teacher_ties + _ties(np.stack([student_P, teacher_P], axis=1))
    if comparable == 0:
        return 0.5
    tau = float(kendalltau(student_P, teacher_P, method="asymptotic").statistic)  # the p-value's method: exact is slow
    difference = tau * np.sqrt(float(pairs - student_ties) * float(pairs - teacher_ties))
    return float((1 + difference / comparable) / 2)


def _pairs(count: int) -> int:
    return count * (count - 1) // 2


def _ties(values: np.ndarray) -> int:
    """Pairs of equal entries (rows, where `values` has two dimensions)."""
    _, counts = np.unique(values, axis=0, return_counts=True)
    return sum(_pairs(int(count)) for count in counts if count > 1)
