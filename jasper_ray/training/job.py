"""What the driver hands to the workers of a stage."""

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
    """A stage cannot go on for a reason that starting it again would not mend; the message is for the user."""


@dataclass(frozen=True)
class StageJob:
    """One stage, ready to train."""

    stage: Stage
    start: Path
    """The student folder that the stage begins with."""
    folder: StageFolder
    total_steps: int
    feed: Feed
    """What its rows are, and what their vectors are compared with."""
    dropout: float
    seed: int


def complete_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Step and folder of every complete checkpoint, oldest first."""
    return sorted((int(path.parent.name.rpartition("-")[2]), path.parent) for path in folder.glob("step-*/state.json"))


def latest_step(folder: Path) -> int:
    """Steps that the newest complete checkpoint has behind it; 0 when there is none."""
    found = complete_checkpoints(folder)
    return found[-1][0] if found else 0
