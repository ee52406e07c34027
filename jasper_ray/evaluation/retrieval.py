"""Documents, queries and relevance judgements, in Cranfield's or BEIR's layout: nDCG@10."""

# Shape legend: Q queries, C documents of the collection, D size of the vectors.

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from jasper_ray.config import ConfigError
from jasper_ray.evaluation.base import (
    CELLS,
    SetData,
    SetSettings,
    Style,
    TextRequest,
    read_fields,
    read_text,
    read_values,
    text_field,
)

NDCG_DEPTH = 10

Texts = dict[str, str]
"""Texts by id, in file order."""
Grades = dict[str, dict[str, float]]
"""Grades above 0 of the relevant document ids, by query id."""


class RetrievalSet(SetSettings):
    """Documents, queries and relevance judgements: nDCG@10, x100."""

    METRICS: ClassVar = {"ndcg@10": Style()}

    type: Literal["retrieval"]
    format: Literal["cranfield", "beir"]
    """cranfield: .I/.T/.W files; judgements count the queries from 1 in the order of their file, codes above 0 are
    relevant and gains are binary. beir: corpus.jsonl, queries.jsonl and a graded qrels tsv with header."""
    documents: Path
    """File of the documents."""
    queries: Path
    """File of the queries; those without a relevant document are skipped."""
    qrels: Path
    """File of the relevance judgements."""
    query_prompt: str | None = None
    """Name of the prompt put before queries; a model that has no prompts at all gets them bare."""
    document_prompt: str | None = None
    """Name of the prompt put before documents; a model that has no prompts at all gets them bare."""

    def read(self) -> SetData:
        cranfield = self.format == "cranfield"
        read_texts = read_cranfield_texts if cranfield else read_beir_texts
        read_grades = read_cranfield_grades if cranfield else read_beir_grades
        documents, queries, grades = read_texts(self.documents), read_texts(self.queries), read_grades(self.qrels)
        self._check_judgements(documents, queries, grades)
        rows = {key: row for row, key in enumerate(documents)}
        judged = [key for key in queries if key in grades]
        return SetData(
            self,
            (
                TextRequest(tuple(documents.values()), self.document_prompt),
                TextRequest(tuple(queries[key] for key in judged), self.query_prompt),
            ),
            {"grades": [{rows[document]: grade for document, grade in grades[key].items()} for key in judged]},
        )

    def score(self, data: SetData, documents_CD: np.ndarray, queries_QD: np.ndarray) -> dict[str, float]:
        return {"ndcg@10": 100 * ndcg(documents_CD, queries_QD, data.judgements["grades"])}

    def _check_judgements(self, documents: Texts, queries: Texts, grades: Grades) -> None:
        if not grades:
            raise ConfigError(f"{self.qrels} calls no document relevant; expected at least one judgement above 0")
        for query, relevant in grades.items():
            if query not in queries:
                raise ConfigError(
                    f"{self.qrels} judges query {query!r}, which is not among the {len(queries)} of {self.queries}"
                )
            for document in relevant:
                if document not in documents:
                    raise ConfigError(
                        f"{self.qrels} calls document {document!r} relevant, "
                        f"which is not among the {len(documents)} of {self.documents}"
                    )


def read_beir_texts(path: Path) -> Texts:
    """Return the documents or queries of a jsonl file: title, if there is one, a space, and text."""
    columns = ("_id", "title", "text")
    texts: Texts = {}
    for line, (key, title, text) in read_values(path, "jsonl", columns):
        values = (key, title or "", text)
        key, title, text = (text_field(v, column, path, line) for v, column in zip(values, columns, strict=True))
        if key in texts:
            raise ConfigError(f"{path}, line {line}: the _id {key!r} is given twice; remove one")
        texts[key] = f"{title} {text}".strip()
    return texts


def read_beir_grades(path: Path) -> Grades:
    """Return the judgements of a tsv file with the header query-id, corpus-id, score; 0 and less is not relevant."""
    grades: Grades = {}
    for line, (query, document, grade) in read_fields(path, "tsv", ("query-id", "corpus-id", "score")):
        _add(grades, query, document, grade, f"{path}, line {line}")
    return grades


def read_cranfield_texts(path: Path) -> Texts:
    """Return the text after `.W` of every `.I` entry, by the number of the entry in the file, counted from 1.

    The entries' own ids are not used: those of the queries have gaps, and judgements count by order. The text repeats
    the title. Two entries of the original collection are empty, and a few have stray marks inside the text.
    """
    entries = re.split(r"^\.I\b.*$", read_text(path), flags=re.MULTILINE)[1:]
    if not entries:
        raise ConfigError(f"{path} has no line that begins with .I, so it is not in Cranfield's format")
    return {str(number): _cranfield_text(entry) for number, entry in enumerate(entries, start=1)}


def read_cranfield_grades(path: Path) -> Grades:
    """Return the judgements of lines `query document code`; a code above 0 means relevant, with the grade 1."""
    grades: Grades = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        fields = line.split()
        if not fields:
            continue
        place = f"{path}, line {number}"
        if len(fields) != 3:
            raise ConfigError(f"{place} holds {line.strip()!r}, expected the three numbers of query, document and code")
        query, document, code = fields
        _add(grades, query, document, code, place, binary=True)
    return grades


def _cranfield_text(entry: str) -> str:
    text = re.split(r"^\.W[ ]*$", entry, maxsplit=1, flags=re.MULTILINE)[-1] if "\n.W" in entry else ""
    return " ".join(re.sub(r"^\.[A-Z][ ]*$", "", text, flags=re.MULTILINE).split())


def _add(grades: Grades, query: str, document: str, grade: str, place: str, binary: bool = False) -> None:
    try:
        value = float(grade)
    except ValueError:
        raise ConfigError(f"{place}: the grade is {grade!r}, expected a number") from None
    if value > 0:
        grades.setdefault(query, {})[document] = 1.0 if binary else value


def ndcg(documents_CD: np.ndarray, queries_QD: np.ndarray, grades: Sequence[Mapping[int, float]]) -> float:
    """Return nDCG@10 with linear gains, averaged over the queries; O(Q C D).

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
    """Return the positions of the `count` largest scores, largest first; the earlier position wins among equals."""
    count = min(count, len(scores_C))
    smallest = np.partition(scores_C, -count)[-count]
    candidates = np.flatnonzero(scores_C >= smallest)
    return candidates[np.argsort(-scores_C[candidates], kind="stable")][:count]
