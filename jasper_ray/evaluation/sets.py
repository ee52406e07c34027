"""Evaluation sets as settings, and the YAML file that lists them.

    - {type: pairs, name: stsb, path: stsb.csv, format: csv, header: false, columns: {left: 0, right: 1, score: 2}}
    - {type: retrieval, name: cranfield, format: cranfield, documents: cran.all, queries: cran.qry, qrels: cranqrel}
    - {type: retrieval, name: nfcorpus, format: beir, documents: nfcorpus/corpus.jsonl,
       queries: nfcorpus/queries.jsonl, qrels: nfcorpus/qrels/test.tsv, query_prompt: s2p_query}
    - {type: classification, name: banking77, train: train.csv, test: test.csv, format: csv,
       columns: {text: text, label: category}, train_per_class: 20}

Relative paths count from the folder of the YAML file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PositiveInt, StrictInt, StrictStr, TypeAdapter, ValidationError, model_validator

from jasper_ray.config import ConfigError, Settings

TableFormat = Literal["csv", "tsv", "jsonl"]
Position = Annotated[StrictInt, Field(ge=0)]
Column = Position | StrictStr
Name = Annotated[str, Field(min_length=1)]


class PairColumns(Settings):
    """Where a row holds its two sentences and their score: column names, or positions counted from 0."""

    left: Column
    right: Column
    score: Column


class LabelColumns(Settings):
    """Where a row holds its text and its class: column names, or positions counted from 0."""

    text: Column
    label: Column


class _TableSet(Settings):
    """What sets that are read from rows have in common."""

    name: Name
    """Name in reports; unique among the sets."""
    format: TableFormat
    """csv (RFC 4180), tsv (no quoting), or jsonl (one object a line)."""
    header: bool = True
    """Whether the first row of a csv or tsv file names the columns."""
    prompt: str | None = None
    """Name of the prompt put before every text; a model that has no prompts at all gets the texts bare."""

    columns: PairColumns | LabelColumns
    """Which column holds what."""

    @model_validator(mode="after")
    def _columns_fit_the_format(self) -> _TableSet:
        named = [isinstance(column, str) for _, column in self.columns]
        if self.format == "jsonl" and not (self.header and all(named)):
            raise ValueError("the columns of a jsonl file are named, so `columns` takes names and `header` is left out")
        if not self.header and any(named):
            raise ValueError("a file without header has no column names, so `columns` takes positions counted from 0")
        return self


class PairSet(_TableSet):
    """Sentence pairs with a score: Spearman's rank correlation of the cosines with the scores, x100."""

    type: Literal["pairs"]
    path: Path
    """File of the pairs."""
    columns: PairColumns
    """Columns of the sentences and the score."""
    limit: PositiveInt | None = None
    """Number of pairs used, from the start of the file; all when left out."""


class RetrievalSet(Settings):
    """Documents, queries and relevance judgements: nDCG@10, x100."""

    type: Literal["retrieval"]
    name: Name
    """Name in reports; unique among the sets."""
    format: Literal["cranfield", "beir"]
    """cranfield: .I/.T/.W files, where the judgements count the queries from 1 in the order of their file, codes
    above 0 are relevant and gains are binary; beir: corpus.jsonl, queries.jsonl and a graded qrels tsv with header."""
    documents: Path
    """File of the documents."""
    queries: Path
    """File of the queries; those without a relevant document are left out."""
    qrels: Path
    """File of the relevance judgements."""
    query_prompt: str | None = None
    """Name of the prompt put before queries; a model that has no prompts at all gets them bare."""
    document_prompt: str | None = None
    """Name of the prompt put before documents; a model that has no prompts at all gets them bare."""


class ClassificationSet(_TableSet):
    """Labelled texts: accuracy of a logistic regression on the vectors, x100."""

    type: Literal["classification"]
    train: Path
    """File of the texts that the classifier learns from."""
    test: Path
    """File of the texts it is measured on."""
    columns: LabelColumns
    """Columns of the text and its class, in both files."""
    train_per_class: PositiveInt | None = None
    """Training texts used of each class, those with the smallest hashes; all when left out."""
    test_per_class: PositiveInt | None = None
    """Test texts used of each class, chosen in the same way; all when left out."""


EvaluationSet = Annotated[PairSet | RetrievalSet | ClassificationSet, Field(discriminator="type")]
_VARIANTS = {"pairs", "retrieval", "classification", "constrained-int", "str"}
"""What pydantic adds to a fault's place to say which member of a union it tried."""
_SETS: TypeAdapter[list[EvaluationSet]] = TypeAdapter(list[EvaluationSet])


def load_sets(path: str | Path) -> tuple[EvaluationSet, ...]:
    """The evaluation sets that the YAML file `path` lists, their paths resolved against its folder.

    Raises:
        ConfigError: no such file, not a YAML list, or an unknown type or field.
    """
    path = Path(path)
    entries = _read_yaml(path)
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path} holds {_shown(entries)} where a YAML list of evaluation sets was expected")
    try:
        sets = _SETS.validate_python(entries)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_fault(error)}") from error
    return resolve_paths(sets, path.parent.absolute())


def resolve_paths(sets: Sequence[EvaluationSet], folder: Path) -> tuple[EvaluationSet, ...]:
    """The same sets with their relative paths counted from `folder`."""
    return tuple(one.model_copy(update={key: folder / v for key, v in one if isinstance(v, Path)}) for one in sets)


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the list of evaluation sets {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def _first_fault(error: ValidationError) -> str:
    """The first thing that is wrong, as one clause: which set, which field, what was found, what was expected."""
    fault, count = error.errors()[0], error.error_count()
    number, *fields = fault["loc"]
    names = [str(field) for field in fields if field not in _VARIANTS]
    place = f"set {int(number) + 1}" + (f", field {'.'.join(names)}" if names else "")
    more = f" (and {count - 1} more)" if count > 1 else ""
    if fault["type"] == "value_error":
        return f"{place}: {fault['ctx']['error']}{more}"
    found = "" if isinstance(fault["input"], dict) else f"; found {_shown(fault['input'])}"
    return f"{place}: {fault['msg'][0].lower()}{fault['msg'][1:]}{found}{more}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
