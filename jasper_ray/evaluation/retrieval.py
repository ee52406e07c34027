"""Readers of retrieval files in the two usual layouts: Cranfield's marked-up text and BEIR's jsonl."""

from __future__ import annotations

import re
from pathlib import Path

from jasper_ray.config import ConfigError
from jasper_ray.evaluation.tables import read_objects, read_rows, read_text, text_field

Texts = dict[str, str]
"""Texts by id, in file order."""
Grades = dict[str, dict[str, float]]
"""For each query id, the grade of each relevant document id; all grades are above 0."""


def read_beir_texts(path: Path) -> Texts:
    """Documents or queries of a jsonl file: title, if there is one, a space, and text."""
    texts: Texts = {}
    for line, value in read_objects(path):
        key = text_field(value, "_id", path, line)
        if key in texts:
            raise ConfigError(f"{path}, line {line}: the _id {key!r} is given twice; remove one")
        title = text_field(value, "title", path, line) if value.get("title") else ""
        texts[key] = f"{title} {text_field(value, 'text', path, line)}".strip()
    return texts


def read_beir_grades(path: Path) -> Grades:
    """Judgements of a tsv file with the header query-id, corpus-id, score; grades of 0 and less mean not relevant."""
    grades: Grades = {}
    for row in read_rows(path, "tsv", header=True, columns=("query-id", "corpus-id", "score")):
        query, document, grade = row.fields
        _add(grades, query, document, grade, f"{path}, line {row.line}")
    return grades


def read_cranfield_texts(path: Path) -> Texts:
    """What stands behind `.W` in every `.I` entry, keyed by the number of the entry in the file, counted from 1.

    The entries' own ids are not used: those of the queries have gaps, and judgements count by order. The text repeats
    the title. Two entries of the original collection are empty, and a few have stray marks within the text.
    """
    entries = re.split(r"^\.I\b.*$", read_text(path), flags=re.MULTILINE)[1:]
    if not entries:
        raise ConfigError(f"{path} has no line that begins with .I, so it is not in Cranfield's format")
    return {str(number): _cranfield_text(entry) for number, entry in enumerate(entries, start=1)}


def read_cranfield_grades(path: Path) -> Grades:
    """Judgements of lines `query document code`: a code above 0 means relevant, and all relevant documents weigh 1."""
    grades: Grades = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        fields = line.split()
        if not fields:
            continue
        where = f"{path}, line {number}"
        if len(fields) != 3:
            raise ConfigError(
                f"{where} holds {line.strip()!r}, the three numbers of query, document and code were expected"
            )
        query, document, code = fields
        _add(grades, query, document, code, where, binary=True)
    return grades


def _cranfield_text(entry: str) -> str:
    text = re.split(r"^\.W[ ]*$", entry, maxsplit=1, flags=re.MULTILINE)[-1] if "\n.W" in entry else ""
    return " ".join(re.sub(r"^\.[A-Z][ ]*$", "", text, flags=re.MULTILINE).split())


def _add(grades: Grades, query: str, document: str, grade: str, where: str, binary: bool = False) -> None:
    try:
        value = float(grade)
    except ValueError:
        raise ConfigError(f"{where}: the grade is {grade!r}, a number was expected") from None
    if value > 0:
        grades.setdefault(query, {})[document] = 1.0 if binary else value
