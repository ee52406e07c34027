"""Sentence pairs with a score: Spearman's rank correlation of the cosines with the scores."""

# Shape legend: P pairs, D size of the vectors.

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from jasper_ray.config import ConfigError, Settings
from jasper_ray.evaluation.base import Column, SetData, Style, TableSet, TextRequest


class PairColumns(Settings):
    """The columns of the two sentences and their score: names, or positions counted from 0."""

    left: Column
    right: Column
    score: Column


class PairSet(TableSet):
    """Sentence pairs with a score: Spearman's rank correlation of the cosines with the scores, x100."""

    METRICS: ClassVar = {"spearman": Style()}

    type: Literal["pairs"]
    path: Path
    """File of the pairs."""
    columns: PairColumns
    """Columns of the sentences and the score."""
    limit: PositiveInt | None = None
    """Number of pairs used, from the start of the file. Default: all."""

    def read(self) -> SetData:
        rows = self.rows(self.path)[: self.limit]
        scores = np.array([self._number(line, fields[2]) for line, fields in rows])
        if np.ptp(scores) == 0:
            raise ConfigError(
                f"{self.path} gives all {len(rows)} pairs the score {scores[0]:g}; a ranking needs at least two scores"
            )
        left, right, _ = zip(*(fields for _, fields in rows), strict=True)
        return SetData(self, (TextRequest(left, self.prompt), TextRequest(right, self.prompt)), {"scores": scores})

    def score(self, data: SetData, left_PD: np.ndarray, right_PD: np.ndarray) -> dict[str, float]:
        return {"spearman": 100 * spearman(left_PD, right_PD, data.judgements["scores"])}

    def _number(self, line: int, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ConfigError(f"{self.path}, line {line}: the score is {text!r}, expected a finite number")
        return value


def spearman(left_PD: np.ndarray, right_PD: np.ndarray, scores_P: np.ndarray) -> float:
    """Return Spearman's rank correlation of the rows' cosines with `scores_P`; 0 when all cosines are the same."""
    from scipy.stats import spearmanr  # here and not above: it takes a second, and recipes are read without it

    cosines_P = np.einsum("pd,pd->p", left_PD, right_PD)
    return 0.0 if np.ptp(cosines_P) == 0 else float(spearmanr(cosines_P, scores_P).statistic)
