"""The scoreboard of a run, and scores as a table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from jasper_ray.cli import log_progress
from jasper_ray.evaluation.scores import MetricName, Record, load, save
from jasper_ray.evaluation.set_data import SetData, contents

GAP = "  "
ABSENT = "-"


class Style(NamedTuple):
    """How a metric is printed, and which end of it is the good one."""

    decimals: int
    best: Literal["largest", "smallest"]


STYLES: dict[MetricName, Style] = {
    "spearman": Style(1, "largest"),
    "ndcg@10": Style(1, "largest"),
    "accuracy": Style(1, "largest"),
    "i2t@1": Style(1, "largest"),
    "i2t@5": Style(1, "largest"),
    "i2t@10": Style(1, "largest"),
    "t2i@1": Style(1, "largest"),
    "t2i@5": Style(1, "largest"),
    "t2i@10": Style(1, "largest"),
    "cosine": Style(3, "largest"),
    "gram_error": Style(4, "smallest"),
    "pair_order": Style(3, "largest"),
}


Key = tuple[str, MetricName]
"""A set and a metric: a column."""
Values = Mapping[tuple[str, int, str, MetricName], float]
"""Figures by moment, dim, set and metric."""


@dataclass(frozen=True)
class Column:
    """Cells of equal width: the two rows of the head, then the body."""

    head: tuple[str, str]
    body: tuple[str, ...]

    @property
    def width(self) -> int:
        return max(map(len, (*self.head, *self.body)))

    def cells(self, align: str) -> list[str]:
        return [f"{cell:{align}{self.width}}" for cell in (*self.head, *self.body)]


def render(records: Sequence[Record], width: int = 140) -> str:
    """The records as text: a line for each moment and head, a column for each set and metric.

    The best figures of a column, as printed, have a star where there is something to compare. Of a record that is
    given twice the later one counts. What is wider than `width` characters goes into a further table below, as does a
    column of which most moments have no figure; a table leaves out the moments that it has nothing to say of.
    """
    values = {(record.moment, record.dim, record.set, record.metric): record.value for record in records}
    return "\n\n".join(table for keys in _groups(values) for table in _tables(values, keys, width))


def _groups(values: Values) -> list[list[Key]]:
    """Sets and metrics in groups whose moments are the same for the most part: images are measured at few of them."""
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
    """The lines that have a figure in one of these columns; several tables where one would be too wide."""
    lines = _by_moment([(moment, dim) for moment, dim, *key in values if tuple(key) in keys])
    columns = [_figures(*key, [values.get((*line, *key)) for line in lines]) for key in keys]
    labels = _labels(lines)
    return [_table(labels, part) for part in _fit(columns, width - len(labels[0]))]


def _by_moment(lines: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Each line once; the heads of a moment together, otherwise in the order of first appearance."""
    moments = list(dict.fromkeys(moment for moment, _ in lines))
    return sorted(dict.fromkeys(lines), key=lambda line: moments.index(line[0]))


def _labels(lines: Sequence[tuple[str, int]]) -> list[str]:
    """The left edge of the table; a moment's name stands at its first head alone."""
    before = [None, *(moment for moment, _ in lines)]
    moments = Column(
        ("", "moment"),
        tuple("" if moment == last else moment for (moment, _), last in zip(lines, before, strict=False)),
    )
    dims = Column(("", "dim"), tuple(str(dim) for _, dim in lines))
    return [left + GAP + right for left, right in zip(moments.cells("<"), dims.cells(">"), strict=True)]


def _figures(name: str, metric: MetricName, values: Sequence[float | None]) -> Column:
    decimals, best = STYLES[metric]
    texts = [ABSENT if value is None else f"{value:.{decimals}f}" for value in values]
    known = [float(text) for text, value in zip(texts, values, strict=True) if value is not None]
    winner = (max if best == "largest" else min)(known) if len(set(known)) > 1 else None
    starred = [f"{text}{'*' if text != ABSENT and float(text) == winner else ' '}" for text in texts]
    return Column((f"{name} ", f"{metric} "), tuple(starred))


def _fit(columns: Iterable[Column], width: int) -> list[list[Column]]:
    """The columns in groups that are each at most `width` wide, or a single column."""
    groups: list[list[Column]] = [[]]
    used = 0
    for column in columns:
        needed = len(GAP) + column.width
        if groups[-1] and used + needed > width:
            groups.append([])
            used = 0
        groups[-1].append(column)
        used += needed
    return groups


def _table(labels: Sequence[str], columns: Sequence[Column]) -> str:
    rows = [GAP.join(row).rstrip() for row in zip(labels, *(column.cells(">") for column in columns), strict=True)]
    return "\n".join([*rows[:2], "-" * max(map(len, rows)), *rows[2:]])


logger = logging.getLogger(__name__)


class Scoreboard:
    """The scores of everything that a run measures."""

    def __init__(self, path: Path, sets: Sequence[SetData]) -> None:
        self.path = path
        """The file that holds all of them."""
        self.sets = sets
        self.contents = contents(sets)
        self.records: list[Record] = []

    def take(self, what: str, beside: Path, measure: Callable[[], list[Record]]) -> None:
        """Take in the scores of what lies at `beside`, kept in a file next to it; measure first where that is missing.

        The file is named by the contents of the sets: with other sets, or other texts in them, all is measured anew.
        """
        kept = beside.with_name(f"{beside.name}-scores-{self.contents}.json")
        if not kept.is_file():
            logger.info("measuring %s", what)
            with log_progress(f"measuring {what}"):
                save(measure(), kept)
        self.records += load(kept)
        save(self.records, self.path)

    def table(self) -> str:
        """Everything measured."""
        return render(self.records)
