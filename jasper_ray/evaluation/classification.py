"""Labelled texts: accuracy of a logistic regression on the vectors."""

# Shape legend: N training rows, M test rows, D size of the vectors.

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from jasper_ray.config import ConfigError, Settings
from jasper_ray.evaluation.base import Column, SetData, Style, TableSet, TextRequest


class LabelColumns(Settings):
    """The columns of a text and its class: names, or positions counted from 0."""

    text: Column
    label: Column


class ClassificationSet(TableSet):
    """Labelled texts: accuracy of a logistic regression on the vectors, x100."""

    METRICS: ClassVar = {"accuracy": Style()}

    type: Literal["classification"]
    train: Path
    """File of the texts that the classifier learns from."""
    test: Path
    """File of the texts that the classifier is tested on."""
    columns: LabelColumns
    """Columns of the text and its class, in both files."""
    train_per_class: PositiveInt | None = None
    """Training texts used of each class, those with the smallest hashes. Default: all."""
    test_per_class: PositiveInt | None = None
    """Test texts used of each class, those with the smallest hashes. Default: all."""

    def read(self) -> SetData:
        train_texts, train_labels = self._texts(self.train, self.train_per_class)
        test_texts, test_labels = self._texts(self.test, self.test_per_class)
        known, unknown = set(train_labels), sorted(set(test_labels) - set(train_labels))
        if unknown:
            raise ConfigError(
                f"{self.test} holds the class {unknown[0]!r}, which is not among the {len(known)} of {self.train}"
            )
        if len(known) < 2:
            raise ConfigError(f"{self.train} holds the class {train_labels[0]!r} alone; expected at least two classes")
        requests = (TextRequest(train_texts, self.prompt), TextRequest(test_texts, self.prompt))
        return SetData(self, requests, {"labels": (train_labels, test_labels)})

    def score(self, data: SetData, train_ND: np.ndarray, test_MD: np.ndarray) -> dict[str, float]:
        train_labels_N, test_labels_M = data.judgements["labels"]
        return {"accuracy": 100 * accuracy(train_ND, train_labels_N, test_MD, test_labels_M)}

    def _texts(self, path: Path, count: int | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return texts and labels; `count` of each class, those with the smallest hashes, in any order of the file."""
        rows = [(text, label) for _, (text, label) in self.rows(path)]
        if count is not None:
            by_label: dict[str, list[tuple[str, str]]] = {label: [] for label in sorted({label for _, label in rows})}
            for row in sorted(rows, key=lambda row: hashlib.blake2b(row[0].encode(), digest_size=8).digest()):
                by_label[row[1]].append(row)
            rows = [row for members in by_label.values() for row in members[:count]]
        texts, labels = zip(*rows, strict=True)
        return texts, labels


def accuracy(
    train_ND: np.ndarray, train_labels_N: Sequence[str], test_MD: np.ndarray, test_labels_M: Sequence[str]
) -> float:
    """Return the share of test rows that a logistic regression trained on the training rows labels rightly.

    Multinomial, L2 penalty with C = 1, unit rows unscaled, L-BFGS in float64 to convergence: nothing is random, so the
    same vectors give the same accuracy.
    """
    from sklearn.linear_model import LogisticRegression

    classifier = LogisticRegression(C=1.0, max_iter=1000, random_state=0)
    classifier.fit(train_ND.astype(np.float64), np.asarray(train_labels_N))
    return float(np.mean(classifier.predict(test_MD.astype(np.float64)) == np.asarray(test_labels_M)))
