"""A stage that is ready to train, as the driver hands it to the workers, and its checkpoints on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jasper_ray.config import ConfigError
from jasper_ray.recipe import Stage
from jasper_ray.run_folder import StageFolder

if TYPE_CHECKING:  # torch takes seconds to import, and a worker imports it in an environment made for it
    from jasper_ray.training.batches import Feed


class StageStopped(ConfigError):
    """A stage failed for a reason that a restart cannot fix; the message is for the user."""


@dataclass(frozen=True)
class StageJob:
    """One stage, ready to train."""

    stage: Stage
    start: Path
    """The student folder that the stage starts from."""
    folder: StageFolder
    total_steps: int
    feed: Feed
    """Makes tokens or pixels, and targets, of the labelled rows."""
    dropout: float
    seed: int


def complete_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """List step and folder of every complete checkpoint, oldest first."""
    return sorted((int(path.parent.name.rpartition("-")[2]), path.parent) for path in folder.glob("step-*/state.json"))


def latest_step(folder: Path) -> int:
    """Return the steps done at the newest complete checkpoint; 0 without one."""
    complete = complete_checkpoints(folder)
    return complete[-1][0] if complete else 0
