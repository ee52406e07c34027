"""Scores: what was measured, of whom, and the file that keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from jasper_ray.atomic import write_text
from jasper_ray.config import ConfigError, Settings

MetricName = Literal[
    "spearman",
    "ndcg@10",
    "accuracy",
    "i2t@1",
    "i2t@5",
    "i2t@10",
    "t2i@1",
    "t2i@5",
    "t2i@10",
    "cosine",
    "gram_error",
    "pair_order",
]


class Score(Settings):
    """What one head scored on one set."""

    set: str
    metric: MetricName
    dim: int
    value: float


class Record(Settings):
    """A score and whose it is: a moment of a run ("start", "after 1-fc1") or the name of a model."""

    moment: str
    dim: int
    metric: MetricName
    set: str
    value: float


_RECORDS: TypeAdapter[list[Record]] = TypeAdapter(list[Record])


def as_scores(name: str, dim: int, figures: Mapping[MetricName, float]) -> list[Score]:
    """What a head scored in several metrics on the set called `name`."""
    return [Score(set=name, metric=metric, dim=dim, value=value) for metric, value in figures.items()]


def label(moment: str, scores: Iterable[Score]) -> list[Record]:
    """The scores as records of the given moment."""
    return [Record(moment=moment, **score.model_dump()) for score in scores]


def save(records: Sequence[Record], path: str | Path) -> None:
    """Write the records to `path` as a JSON list, whole or not at all; its folder is made where it is missing."""
    write_text(Path(path), _RECORDS.dump_json(list(records), indent=2).decode() + "\n")


def load(path: str | Path) -> list[Record]:
    """The records that `save` wrote.

    Raises:
        ConfigError: no such file, or it does not hold such records.
    """
    try:
        return _RECORDS.validate_json(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"the scores in {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigError(f"{path} does not hold scores: {error.errors()[0]['msg']}") from error
