"""Scores of models and moments: the file that stores them, the scoreboard of a run, and the table for people."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError, field_validator

from jasper_ray.atomic import write_text
from jasper_ray.cli import log_progress
from jasper_ray.config import ConfigError, Settings
from jasper_ray.evaluation.base import Score, SetData
from jasper_ray.evaluation.sets import contents, metric_styles

logger = logging.getLogger(__name__)

GAP = "  "
ABSENT = "-"

Key = tuple[str, str]
"""The set and metric of a column."""
Values = Mapping[tuple[str, int, str, str], float]
"""Values by moment, dim, set and metric."""


# Storing


class ScoreRow(Settings):
    """A score and its owner."""

    moment: str
    """A moment of a run ("start", "after 1-fc1"), or the name of a model."""
    dim: int
    metric: str
    set: str
    value: float

    @field_validator("metric")
    @classmethod
    def _is_known(cls, metric: str) -> str:
        if metric not in metric_styles():
            raise ConfigError(f"metric {metric!r} is unknown; expected one of {', '.join(metric_styles())}")
        return metric


ROWS: TypeAdapter[list[ScoreRow]] = TypeAdapter(list[ScoreRow])


def with_moment(moment: str, scores: Iterable[Score]) -> list[ScoreRow]:
    """Return the scores as rows of a moment."""
    return [ScoreRow(moment=moment, **score.model_dump()) for score in scores]


def write_scores(rows: Sequence[ScoreRow], path: str | Path) -> None:
    """Write the rows to `path` as a JSON list, atomically; a missing folder is made."""
    write_text(Path(path), ROWS.dump_json(list(rows), indent=2).decode() + "\n")


def read_scores(path: str | Path) -> list[ScoreRow]:
    """Read the rows that `write_scores` wrote.

    Raises:
        ConfigError: no such file, or it does not hold such rows.
    """
    try:
        return ROWS.validate_json(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"the scores in {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigError(f"{path} does not hold scores: {error.errors()[0]['msg']}") from error


class Scoreboard:
    """All scores of a run."""

    def __init__(self, path: Path, sets: Sequence[SetData]) -> None:
        self.path = path
        """The file that stores all of them."""
        self.sets = sets
        self.contents = contents(sets)
        self.rows: list[ScoreRow] = []

    def take(self, name: str, beside: Path, measure: Callable[[], list[ScoreRow]]) -> None:
        """Add the scores of the model at `beside` from a file next to it; measure them first if it is missing.

        The name of the file includes a hash of the sets, so other sets, or other texts in them, are measured again.
        """
        kept = beside.with_name(f"{beside.name}-scores-{self.contents}.json")
        if not kept.is_file():
            logger.info("measuring %s", name)
            with log_progress(f"measuring {name}"):
                write_scores(measure(), kept)
        self.rows += read_scores(kept)
        write_scores(self.rows, self.path)

    def table(self) -> str:
        """Return all scores as text."""
        return render(self.rows)


# The table


def render(rows: Sequence[ScoreRow], width: int = 140) -> str:
    """Return the rows as text: a line for each moment and head, a column for each set and metric.

    The best values of a column, as printed, have a star, if they differ. Of a row that is given twice the later one
    counts. Columns beyond `width` characters go into a further table below, as does a column in which most moments have
    no value; a table skips the moments that have no value in it.
    """
    values = {(row.moment, row.dim, row.set, row.metric): row.value for row in rows}
    return "\n\n".join(table for keys in _groups(values) for table in _tables(values, keys, width))


def _groups(values: Values) -> list[list[Key]]:
    """Group the columns that share most of their moments: images are measured at few of them."""
    moments: dict[Key, set[str]] = {}
    for moment, _, name, metric in values:
        moments.setdefault((name, metric), set()).add(moment)
    groups: list[tuple[list[Key], set[str]]] = []
    for key, own in moments.items():
        fitting = [group for group in groups if 3 * len(own & group[1]) >= len(own | group[1])]
        if not fitting:
            fitting = [([], set())]
            groups += fitting
        keys, covered = fitting[0]
        keys.append(key)
        covered |= own
    return [keys for keys, _ in groups]


def _tables(values: Values, keys: Sequence[Key], width: int) -> list[str]:
    """Return the lines that have a value in one of these columns; several tables if one would be too wide."""
    measured = dict.fromkeys((moment, dim) for moment, dim, *key in values if tuple(key) in keys)
    moments = list(dict.fromkeys(moment for moment, _ in measured))
    lines = sorted(measured, key=lambda line: moments.index(line[0]))  # the heads of a moment together
    first = [
        moment if number == 0 or lines[number - 1][0] != moment else "" for number, (moment, _) in enumerate(lines)
    ]
    labels = [_padded(["", "moment", *first], "<"), _padded(["", "dim", *(str(dim) for _, dim in lines)])]
    columns = [_padded(_cells(*key, [values.get((*line, *key)) for line in lines])) for key in keys]
    used = sum(len(GAP) + len(label[0]) for label in labels) - len(GAP)
    return [_table([*labels, *part]) for part in _fit(columns, width - used)]


def _cells(name: str, metric: str, values: Sequence[float | None]) -> list[str]:
    """Return the two rows of a column's head, and its values as text."""
    decimals, best = metric_styles()[metric]
    texts = [ABSENT if value is None else f"{value:.{decimals}f}" for value in values]
    known = {float(text) for text in texts if text != ABSENT}
    winner = (max if best == "largest" else min)(known) if len(known) > 1 else None
    starred = [f"{text}{'*' if text != ABSENT and float(text) == winner else ' '}" for text in texts]
    return [f"{name} ", f"{metric} ", *starred]


def _padded(cells: Sequence[str], align: str = ">") -> list[str]:
    width = max(map(len, cells))
    return [f"{cell:{align}{width}}" for cell in cells]


def _fit(columns: Iterable[list[str]], width: int) -> list[list[list[str]]]:
    """Return the columns in groups that are each at most `width` wide, or a single column."""
    groups: list[list[list[str]]] = [[]]
    for column in columns:
        if groups[-1] and sum(len(GAP) + len(each[0]) for each in [*groups[-1], column]) > width:
            groups.append([])
        groups[-1].append(column)
    return groups


def _table(columns: Sequence[Sequence[str]]) -> str:
    rows = [GAP.join(row).rstrip() for row in zip(*columns, strict=True)]
    return "\n".join([*rows[:2], "-" * max(map(len, rows)), *rows[2:]])
