"""Images and their captions: how often images find their captions, and captions their images."""

# Shape legend: N pairs, Q queries, C candidates, D size of the vectors, M matches of a query with a candidate.

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar, Literal

import numpy as np

from jasper_ray.config import ConfigError
from jasper_ray.evaluation.base import CELLS, ImageRequest, ImageSet, SetData, Style, TextRequest

BY_IMAGE = {1: "i2t@1", 5: "i2t@5", 10: "i2t@10"}
"""Metrics of captions found by images, by the number of captions considered."""
BY_CAPTION = {1: "t2i@1", 5: "t2i@5", 10: "t2i@10"}
"""Metrics of images found by captions, by the number of images considered."""
TIE = 1e-6
"""Cosines closer than this are equal: float32 rounds off as much, differently for each size of a product."""


class ImageCaptionSet(ImageSet):
    """Images and their captions: recall at 1, 5 and 10 of captions by image and of images by caption, x100."""

    METRICS: ClassVar = dict.fromkeys([*BY_IMAGE.values(), *BY_CAPTION.values()], Style())

    type: Literal["image_captions"]

    def read(self) -> SetData:
        images, captions = self.pairs()
        for kind, different in (("image", set(images)), ("caption", set(captions))):
            if len(different) < 2:
                raise ConfigError(
                    f"evaluation set {self.name!r}: {self.images.path} has {len(different)} different {kind}; "
                    "a ranking needs at least two"
                )
        return SetData(self, (ImageRequest(images), TextRequest(captions, self.prompt)), {})

    def score(self, data: SetData, images_ND: np.ndarray, captions_ND: np.ndarray) -> dict[str, float]:
        images, captions = data.requests
        return recalls(images_ND, captions_ND, captions.texts, images.images)


def recalls(
    images_ND: np.ndarray,
    captions_ND: np.ndarray,
    captions: Sequence[str],
    images: Sequence[Hashable] | None = None,
) -> dict[str, float]:
    """Return the share of queries, x100, that have a match among the 1, 5 and 10 candidates of the highest cosine.

    The rows are pairs of an image and a caption, both as unit vectors. Equal `captions` are one caption, and equal
    `images` (their bytes, hashes or names) one image; when these are None, every row is an image of its own. An image
    and a caption match if a row pairs them, so either can have several matches. Every image is a query among the
    different captions (`i2t`), every different caption a query among the different images (`t2i`). Of equal rows the
    vector of the first one counts.

    A tie counts against the query: a candidate that does not match goes before a match of the same cosine, so that
    vectors that have collapsed to a point score 0. O(N² D) time, 128 MB of cosines at once.

    Source: Hodosh, Young and Hockenmaier 2013, https://doi.org/10.1613/jair.3994

    Raises:
        ValueError: no pairs, or a different number of them on the two sides.
        FloatingPointError: a value that is not finite.
    """
    names = range(len(captions)) if images is None else images
    if len({len(images_ND), len(captions_ND), len(captions), len(names)}) > 1 or not len(captions):
        raise ValueError(
            f"found {len(images_ND)} rows of images, {len(captions_ND)} of captions, {len(captions)} captions and "
            f"{len(names)} images, expected as many of each and at least 1"
        )
    if not (np.isfinite(images_ND).all() and np.isfinite(captions_ND).all()):
        raise FloatingPointError("the vectors of images or captions hold values that are not finite")
    image_N, caption_N = _numbers(names), _numbers(captions)
    images_ID, captions_TD = images_ND[_first_rows(image_N)], captions_ND[_first_rows(caption_N)]
    by_image = first_ranks(images_ID, captions_TD, image_N, caption_N)
    by_caption = first_ranks(captions_TD, images_ID, caption_N, image_N)
    return {**_shares(by_image, BY_IMAGE), **_shares(by_caption, BY_CAPTION)}


def first_ranks(
    queries_QD: np.ndarray, candidates_CD: np.ndarray, queries_M: np.ndarray, candidates_M: np.ndarray
) -> np.ndarray:
    """Return the rank of each query's first match, from 1: `[Q]`. Query `queries_M[m]` matches `candidates_M[m]`.

    Every query has a match; the same match may be given several times.
    """
    step = max(1, CELLS // len(candidates_CD))
    ranks = []
    for start in range(0, len(queries_QD), step):
        here_M = (start <= queries_M) & (queries_M < start + step)
        scores_QC = queries_QD[start : start + step] @ candidates_CD.T
        ranks.append(_ranks(scores_QC, queries_M[here_M] - start, candidates_M[here_M]))
    return np.concatenate(ranks)


def _ranks(scores_QC: np.ndarray, rows_M: np.ndarray, columns_M: np.ndarray) -> np.ndarray:
    """Return `first_ranks` from the scores, which are overwritten."""
    best_Q = np.full(len(scores_QC), -np.inf, scores_QC.dtype)
    np.maximum.at(best_Q, rows_M, scores_QC[rows_M, columns_M])
    scores_QC[rows_M, columns_M] = -np.inf
    return 1 + np.count_nonzero(scores_QC >= best_Q[:, None] - TIE, axis=1)


def _numbers(names: Sequence[Hashable]) -> np.ndarray:
    """Number the names from 0 in the order of first appearance; equal names have the same number."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names])


def _first_rows(numbers_N: np.ndarray) -> np.ndarray:
    """Return the first row of each number, in the order of the numbers."""
    return np.unique(numbers_N, return_index=True)[1]


def _shares(ranks_Q: np.ndarray, metrics: dict[int, str]) -> dict[str, float]:
    return {metric: 100 * float(np.mean(ranks_Q <= depth)) for depth, metric in metrics.items()}
