"""Reading of evaluation sets: once, and checked before any model is loaded."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jasper_ray.config import ConfigError
from jasper_ray.evaluation import retrieval
from jasper_ray.evaluation.image_reading import read_image_captions, read_zero_shot
from jasper_ray.evaluation.set_data import ClassificationData, PairData, RetrievalData, SetData, TextRequest
from jasper_ray.evaluation.sets import (
    ClassificationSet,
    EvaluationSet,
    ImageCaptionSet,
    PairSet,
    RetrievalSet,
)
from jasper_ray.evaluation.tables import Row, read_rows


def read_sets(sets: Sequence[EvaluationSet]) -> tuple[SetData, ...]:
    """The contents of every set.

    Raises:
        ConfigError: a name given twice, a missing file or column, a score that is no number, a judgement of an unknown
            document or query, a class of the test file that the training file lacks, a broken image.
    """
    for name, count in Counter(one.name for one in sets).items():
        if count > 1:
            raise ConfigError(
                f"found {count} evaluation sets of the name {name!r}; give each its own, reports tell them by it"
            )
    return tuple(read_set(one) for one in sets)


def read_set(one: EvaluationSet) -> SetData:
    """The contents of one set; see `read_sets`."""
    if isinstance(one, PairSet):
        return _read_pairs(one)
    if isinstance(one, RetrievalSet):
        return _read_retrieval(one)
    if isinstance(one, ClassificationSet):
        return _read_classification(one)
    return read_image_captions(one) if isinstance(one, ImageCaptionSet) else read_zero_shot(one)


def _read_pairs(one: PairSet) -> PairData:
    columns = (one.columns.left, one.columns.right, one.columns.score)
    rows = read_rows(one.path, one.format, one.header, columns)[: one.limit]
    scores = np.array([_number(row, one.path) for row in rows])
    if np.ptp(scores) == 0:
        raise ConfigError(
            f"{one.path} gives all {len(rows)} pairs the score {scores[0]:g}; a ranking needs at least two scores"
        )
    left, right, _ = zip(*(row.fields for row in rows), strict=True)
    return PairData(one.name, (TextRequest(left, one.prompt), TextRequest(right, one.prompt)), scores)


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
            TextRequest(tuple(documents.values()), one.document_prompt),
            TextRequest(tuple(queries[key] for key in asked), one.query_prompt),
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
    requests = (TextRequest(train_texts, one.prompt), TextRequest(test_texts, one.prompt))
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
