"""A run's scores, in the order they were taken, each kept so that nothing is measured twice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from jasper_ray.evaluation.report import render
from jasper_ray.evaluation.scores import Record, load, save
from jasper_ray.evaluation.set_data import SetData, contents
from jasper_ray.waiting import telling

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
            with telling(f"measuring {what}"):
                save(measure(), kept)
        self.records += load(kept)
        save(self.records, self.path)

    def table(self) -> str:
        """Everything measured."""
        return render(self.records)
