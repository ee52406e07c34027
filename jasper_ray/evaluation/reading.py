"""Evaluation sets in memory: read once, checked before any model is loaded, then scored with any number of models."""

# Shape legend: P pairs, C documents, Q queries, N training rows, M test rows, D size of the vectors.

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from jasper_ray.config import ConfigError, fingerprint
from jasper_ray.evaluation import retrieval
from jasper_ray.evaluation.metrics import accuracy, ndcg, spearman
from jasper_ray.evaluation.scores import MetricName
from jasper_ray.evaluation.sets import ClassificationSet, EvaluationSet, PairSet, RetrievalSet
from jasper_ray.evaluation.tables import Row, read_rows


@dataclass(frozen=True)
class Request:
    """Texts whose vectors a set needs, and the name of their prompt."""

    texts: tuple[str, ...]
    prompt: str | None


@dataclass(frozen=True, eq=False)
class PairData:
    """Sentence pairs and their scores."""

    metric: ClassVar[MetricName] = "spearman"
    name: str
    requests: tuple[Request, Request]
    scores: np.ndarray
    """One a pair, in float64."""

    def score(self, left_PD: np.ndarray, right_PD: np.ndarray) -> float:
        """Spearman x100; the arrays are the vectors of `requests`."""
        return 100 * spearman(left_PD, right_PD, self.scores)


@dataclass(frozen=True, eq=False)
class RetrievalData:
    """Documents, the queries that have a relevant one, and for each query the relevant rows' grades."""

    metric: ClassVar[MetricName] = "ndcg@10"
    name: str
    requests: tuple[Request, Request]
    grades: tuple[Mapping[int, float], ...]

    def score(self, documents_CD: np.ndarray, queries_QD: np.ndarray) -> float:
        """nDCG@10 x100; the arrays are the vectors of `requests`."""
        return 100 * ndcg(documents_CD, queries_QD, self.grades)


@dataclass(frozen=True, eq=False)
class ClassificationData:
    """Training and test texts and their classes."""

    metric: ClassVar[MetricName] = "accuracy"
    name: str
    requests: tuple[Request, Request]
    labels: tuple[tuple[str, ...], tuple[str, ...]]

    def score(self, train_ND: np.ndarray, test_MD: np.ndarray) -> float:
        """Accuracy x100; the arrays are the vectors of `requests`."""
        return 100 * accuracy(train_ND, self.labels[0], test_MD, self.labels[1])


SetData = PairData | RetrievalData | ClassificationData


def read_sets(sets: Sequence[EvaluationSet]) -> tuple[SetData, ...]:
    """The contents of every set.

    Raises:
        ConfigError: a name given twice, a missing file or column, a score that is no number, a judgement of an unknown
            document or query, a class of the test file that the training file lacks.
    """
    for name, count in Counter(one.name for one in sets).items():
        if count > 1:
            raise ConfigError(
                f"found {count} evaluation sets of the name {name!r}; give each its own, reports tell them by it"
            )
    return tuple(read_set(one) for one in sets)


def contents(sets: Sequence[SetData]) -> str:
    """Twelve hex digits that name what the sets hold: texts, prompts and judgements."""
    return fingerprint(json.loads(json.dumps([asdict(data) for data in sets], default=np.ndarray.tolist)))


def read_set(one: EvaluationSet) -> SetData:
    """The contents of one set; see `read_sets`."""
    if isinstance(one, PairSet):
        return _read_pairs(one)
    if isinstance(one, RetrievalSet):
        return _read_retrieval(one)
    return _read_classification(one)


def _read_pairs(one: PairSet) -> PairData:
    columns = (one.columns.left, one.columns.right, one.columns.score)
    rows = read_rows(one.path, one.format, one.header, columns)[: one.limit]
    scores = np.array([_number(row, one.path) for row in rows])
    if np.ptp(scores) == 0:
        raise ConfigError(
            f"{one.path} gives all {len(rows)} pairs the score {scores[0]:g}; a ranking needs at least two scores"
        )
    left, right, _ = zip(*(row.fields for row in rows), strict=True)
    return PairData(one.name, (Request(left, one.prompt), Request(right, one.prompt)), scores)


def _number(row: Row, path: Path) -> float:
    try:
        value = float(row.fields[2])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{path}, line {row.line}: the score is {row.fields[2]!r}, a finite number was expected")
    return value


def _read_retrieval(one: RetrievalSet) -> RetrievalData:
    cranfield = one.format == "cranfield"
    read_texts = retrieval.read_cranfield_texts if cranfield else retrieval.read_beir_texts
    read_grades = retrieval.read_cranfield_grades if cranfield else retrieval.read_beir_grades
    documents, queries, grades = read_texts(one.documents), read_texts(one.queries), read_grades(one.qrels)
    _check_judgements(one, documents, queries, grades)
    rows = {key: row for row, key in enumerate(documents)}
    asked = [key for key in queries if key in grades]
    return RetrievalData(
        one.name,
        (
            Request(tuple(documents.values()), one.document_prompt),
            Request(tuple(queries[key] for key in asked), one.query_prompt),
        ),
        tuple({rows[document]: grade for document, grade in grades[key].items()} for key in asked),
    )


def _check_judgements(
    one: RetrievalSet, documents: retrieval.Texts, queries: retrieval.Texts, grades: retrieval.Grades
) -> None:
    if not grades:
        raise ConfigError(f"{one.qrels} calls no document relevant; at least one judgement above 0 was expected")
    for query, relevant in grades.items():
        if query not in queries:
            raise ConfigError(
                f"{one.qrels} judges query {query!r}, which is not among the {len(queries)} of {one.queries}"
            )
        for document in relevant:
            if document not in documents:
                raise ConfigError(
                    f"{one.qrels} calls document {document!r} relevant, "
                    f"which is not among the {len(documents)} of {one.documents}"
                )


def _read_classification(one: ClassificationSet) -> ClassificationData:
    columns = (one.columns.text, one.columns.label)
    train = _per_class(read_rows(one.train, one.format, one.header, columns), one.train_per_class)
    test = _per_class(read_rows(one.test, one.format, one.header, columns), one.test_per_class)
    (train_texts, train_labels), (test_texts, test_labels) = zip(*train, strict=True), zip(*test, strict=True)
    known, unknown = set(train_labels), sorted(set(test_labels) - set(train_labels))
    if unknown:
        raise ConfigError(
            f"{one.test} holds the class {unknown[0]!r}, which is not among the {len(known)} of {one.train}"
        )
    if len(known) < 2:
        raise ConfigError(f"{one.train} holds the class {train_labels[0]!r} alone; at least two classes were expected")
    requests = (Request(train_texts, one.prompt), Request(test_texts, one.prompt))
    return ClassificationData(one.name, requests, (train_labels, test_labels))


def _per_class(rows: Sequence[Row], count: int | None) -> list[tuple[str, str]]:
    """Texts and labels; with `count`, of each class those with the smallest hash, whatever the order of the file."""
    pairs = [(row.fields[0], row.fields[1]) for row in rows]
    if count is None:
        return pairs
    chosen: dict[str, list[tuple[str, str]]] = {}
    for pair in sorted(pairs, key=lambda pair: hashlib.blake2b(pair[0].encode(), digest_size=8).digest()):
        members = chosen.setdefault(pair[1], [])
        if len(members) < count:
            members.append(pair)
    return [pair for label in sorted(chosen) for pair in chosen[label]]
