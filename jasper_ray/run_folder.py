"""The run folder: what lies where, what each stage is identified by, and what is finished.

runs/<name>/
  recipe.yaml                       the resolved recipe
  teachers.json                     the identity of the target
  corpus/                           the prepared texts, in shards
  pairs/                            the prepared image–caption pairs, if a stage is on images
  heldout/                          the held-out texts' teacher vectors
  targets/                          cached teacher vectors, if the recipe keeps them
  stages/1-<name>-<fingerprint>/    stage.json, metrics.jsonl, student/, DONE; checkpoints/ until then
  evaluation.json                   every score
  student/                          the finished student
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from jasper_ray.atomic import atomic_folder, locked_folder, write_text
from jasper_ray.config import ConfigError, fingerprint
from jasper_ray.recipe import CachedTargets, Recipe, Stage, dump_recipe, parse_recipe, read_yaml
from jasper_ray.recipe.machine import parts
from jasper_ray.vectors import Dtype

KEEPS_RESULT = {
    *("checkpoint_every", "max_restarts", "cpus_per_worker", "gpus_per_worker", "threads"),
    *("group_rows", "gradient_checkpointing"),
}
"""Settings of a stage that change how it runs and not what it makes."""


@dataclass(frozen=True)
class StageFolder:
    """One stage's folder."""

    path: Path

    @property
    def student(self) -> Path:
        return self.path / "student"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def is_done(self) -> bool:
        return (self.path / "DONE").is_file()

    def mark_done(self) -> None:
        write_text(self.path / "DONE", "")

    def begin(self, stage: Stage, steps: int) -> None:
        """Make the folder and write down what runs in it."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "stage.json", as_json({"steps": steps, **stage.model_dump(mode="json")}))


@dataclass(frozen=True)
class RunFolder:
    """A run's folder; every process of the run must see it under the same path."""

    path: Path

    @property
    def corpus(self) -> Path:
        return self.path / "corpus"

    @property
    def pairs(self) -> Path:
        return self.path / "pairs"

    @property
    def heldout(self) -> Path:
        """The held-out texts' teacher vectors."""
        return self.path / "heldout"

    @property
    def student(self) -> Path:
        return self.path / "student"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    def targets(self, recipe: Recipe) -> Path | None:
        """Where teacher vectors are kept; None when they are not."""
        if not isinstance(recipe.targets, CachedTargets):
            return None
        return Path(recipe.targets.path).absolute() if recipe.targets.path else self.path / "targets"

    def stage(self, number: int, name: str, print_: str) -> StageFolder:
        """The folder of the stage with that fingerprint; number 0 is the student before training."""
        return StageFolder(self.path / "stages" / f"{number}-{name}-{print_}")

    def open(self) -> None:
        """Make the folder, or continue in it.

        Raises:
            ConfigError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=self.path).close()
        except OSError as error:
            raise ConfigError(
                f"the run folder {str(self.path)!r} cannot be written ({error.strerror}); choose another with --run"
            ) from error

    def keep(self, recipe: Recipe, teachers: Sequence[dict[str, Any]]) -> None:
        """Write down what runs here, once nothing speaks against it."""
        write_text(self.recipe_file, dump_recipe(recipe))  # first: it has the precisions of the teachers' identities
        write_text(self.pinned_teachers, as_json(list(teachers)))

    def precisions(self) -> dict[str, Dtype]:
        """The precision of each part by name, as this run's recipe.yaml has it; nothing for a new run.

        Raises:
            ConfigError: its recipe.yaml cannot be read.
        """
        if not self.recipe_file.is_file():
            return {}
        kept = parts(parse_recipe(read_yaml(self.recipe_file), str(self.recipe_file)))
        return {part.name: part.precision for part in kept if part.precision != "auto"}

    def locked(self) -> AbstractContextManager[None]:
        """Keep every other process out of an open folder; raises `ConfigError` where one works here."""
        return locked_folder(
            self.path,
            f"another process is working in the run folder {str(self.path)!r}; wait for it, end it, or choose "
            "another folder with --run",
        )

    @property
    def recipe_file(self) -> Path:
        """The recipe as this run carries it out: nothing in it is left open."""
        return self.path / "recipe.yaml"

    @property
    def pinned_teachers(self) -> Path:
        return self.path / "teachers.json"

    def check_teachers(self, teachers: Sequence[dict[str, Any]]) -> None:
        """Refuse to continue a run that was begun with other teachers.

        Raises:
            ConfigError: it names the first difference.
        """
        place = self.pinned_teachers
        if not place.is_file():
            return
        pinned = json.loads(place.read_text(encoding="utf-8"))
        if [decisive(t) for t in pinned] != [decisive(t) for t in teachers]:
            raise ConfigError(
                f"{str(place)!r} says this run's targets come from {difference(pinned, teachers)}; "
                "choose another run folder with --run, or restore the recipe's teachers"
            )


def decisive(teacher: dict[str, Any]) -> dict[str, Any]:
    """What must not change of a teacher; its size follows from the rest, whether the recipe tells it or not."""
    return {key: value for key, value in teacher.items() if key != "dim"}


def difference(pinned: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> str:
    """The first thing in which two lists of teachers differ, in words."""
    if [t["name"] for t in pinned] != [t["name"] for t in now]:
        return f"{', '.join(t['name'] for t in pinned)}, but the recipe now names {', '.join(t['name'] for t in now)}"
    for before, after in zip(pinned, now, strict=True):
        # the identity comes last: it says that they differ, and not in what
        keys = [key for key in decisive({**before, **after}) if key != "identity"]
        for key in [*keys, "identity"]:
            if before.get(key) != after.get(key):
                return f"{before['name']} with {key} {before.get(key)!r}, but the recipe now gives {after.get(key)!r}"
    raise AssertionError("the two lists are equal")


def stage_fingerprints(
    recipe: Recipe,
    teachers: Sequence[dict[str, Any]],
    corpus: str,
    base: str | None = None,
    sight: Mapping[str, Any] | None = None,
) -> list[str]:
    """One fingerprint for the student before training and one for each stage; each covers all that came before it.

    `corpus` identifies the texts, `base` the weights that the student's body starts with where they lie in a folder,
    `sight` the images and the tower: only stages on images depend on these, so a student that finished its texts can
    be taught to see.
    """
    prints = [
        fingerprint(
            {
                "student": recipe.student.model_dump(mode="json", exclude={"vision"}),
                "heads_start": recipe.heads_start.model_dump(mode="json"),
                "seed": recipe.seed,
                "teachers": [decisive(teacher) for teacher in teachers],
                "corpus": corpus,
                "base": base,
            }
        )
    ]
    for stage in recipe.stages:
        settings = stage.model_dump(mode="json", exclude=KEEPS_RESULT)
        prints.append(fingerprint([prints[-1], settings, *([sight] if stage.data == "images" else [])]))
    return prints


def publish(source: Path, destination: Path) -> None:
    """Copy a finished student to where users look for it, whole or not at all."""
    with atomic_folder(destination) as staging:
        shutil.copytree(source, staging, dirs_exist_ok=True)


def as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
