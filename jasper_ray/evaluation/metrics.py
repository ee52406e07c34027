"""The figures that the evaluation sets are summed up in, from plain arrays."""

# Shape legend: P pairs, N rows, M other rows, Q queries, C documents of the collection or classes, T texts of a class,
# D size of the vectors.

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jasper_ray.vectors import normalise

NDCG_DEPTH = 10
CELLS = 32_000_000
"""Scores computed at once in retrieval: 128 MB of float32."""


def spearman(left_PD: np.ndarray, right_PD: np.ndarray, scores_P: np.ndarray) -> float:
    """Spearman's rank correlation of the rows' cosines with `scores_P`; 0 when all cosines are the same."""
    from scipy.stats import spearmanr  # here and not above: it takes a second, and recipes are read without it

    cosines_P = np.einsum("pd,pd->p", left_PD, right_PD)
    if np.ptp(cosines_P) == 0:
        return 0.0
    return float(spearmanr(cosines_P, scores_P).statistic)


def ndcg(documents_CD: np.ndarray, queries_QD: np.ndarray, grades: Sequence[Mapping[int, float]]) -> float:
    """nDCG@10 with linear gains, averaged over the queries; O(Q C D).

    `grades[q]` maps the rows of the documents that are relevant to query `q` to their grades, above 0. A document at
    rank r counts grade / log2(r + 1), as in trec_eval. Documents of equal score keep the order of the collection.

    Source: Järvelin and Kekäläinen 2002, https://doi.org/10.1145/582415.582418
    """
    step = max(1, CELLS // len(documents_CD))
    totals = [
        _query_ndcg(scores_C, grades[start + row])
        for start in range(0, len(queries_QD), step)
        for row, scores_C in enumerate(queries_QD[start : start + step] @ documents_CD.T)
    ]
    return float(np.mean(totals))


def _query_ndcg(scores_C: np.ndarray, grades: Mapping[int, float]) -> float:
    gains = [grades.get(int(document), 0.0) for document in _best(scores_C, NDCG_DEPTH)]
    ideal = sorted(grades.values(), reverse=True)[:NDCG_DEPTH]
    return _discounted(gains) / _discounted(ideal)


def _discounted(gains: Sequence[float]) -> float:
    return float(np.sum(np.asarray(gains) / np.log2(np.arange(2, len(gains) + 2))))


def _best(scores_C: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` largest scores, largest first; the earlier position wins among equals."""
    count = min(count, len(scores_C))
    smallest = np.partition(scores_C, -count)[-count]
    candidates = np.flatnonzero(scores_C >= smallest)
    return candidates[np.argsort(-scores_C[candidates], kind="stable")][:count]


def accuracy(
    train_ND: np.ndarray, train_labels_N: Sequence[str], test_MD: np.ndarray, test_labels_M: Sequence[str]
) -> float:
    """Share of test rows that a logistic regression learnt on the training rows labels rightly.

    Multinomial, L2 penalty with C = 1, unit rows unscaled, L-BFGS in float64 to convergence: nothing is drawn, so the
    same vectors give the same figure.
    """
    from sklearn.linear_model import LogisticRegression

    classifier = LogisticRegression(C=1.0, max_iter=1000, random_state=0)
    classifier.fit(train_ND.astype(np.float64), np.asarray(train_labels_N))
    return float(np.mean(classifier.predict(test_MD.astype(np.float64)) == np.asarray(test_labels_M)))


def zero_shot_accuracy(images_ND: np.ndarray, texts_CTD: np.ndarray, classes_N: Sequence[int]) -> float:
    """Share of images whose own class is the nearest one; a class is the normalised mean of its texts' unit vectors.

    Among classes of equal cosine the earlier one is taken.

    Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 3.1.4
    """
    classes_CD = normalise(texts_CTD.mean(axis=1))
    return float(np.mean(np.argmax(images_ND @ classes_CD.T, axis=1) == np.asarray(classes_N)))
