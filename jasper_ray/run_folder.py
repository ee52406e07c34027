"""The run folder: paths, fingerprints of the stages, and marks of the finished ones.

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
from types import MappingProxyType
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
"""Settings of a stage that do not change its student."""


class Inside:
    """A file or folder of a fixed name in a folder that has a `path`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: Any, _: type) -> Path:
        path: Path = folder.path
        return path / self.name


@dataclass(frozen=True)
class StageFolder:
    """One stage's folder."""

    path: Path

    student = Inside("student")
    checkpoints = Inside("checkpoints")
    metrics = Inside("metrics.jsonl")

    @property
    def is_done(self) -> bool:
        return (self.path / "DONE").is_file()

    def mark_done(self) -> None:
        write_text(self.path / "DONE", "")

    def create(self, stage: Stage, steps: int) -> None:
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "stage.json", as_json({"steps": steps, **stage.model_dump(mode="json")}))


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, which every process of the run must see under the same path."""

    path: Path

    recipe_file = Inside("recipe.yaml")
    pinned_teachers = Inside("teachers.json")
    corpus = Inside("corpus")
    pairs = Inside("pairs")
    heldout = Inside("heldout")
    evaluation = Inside("evaluation.json")
    student = Inside("student")

    def targets(self, recipe: Recipe) -> Path | None:
        """Return the folder of cached teacher vectors; None if the recipe does not cache them."""
        if not isinstance(recipe.targets, CachedTargets):
            return None
        return Path(recipe.targets.path).absolute() if recipe.targets.path else self.path / "targets"

    def stage(self, number: int, name: str, print_: str) -> StageFolder:
        """Return the folder of a stage by its fingerprint; number 0 is the student before training."""
        return StageFolder(self.path / "stages" / f"{number}-{name}-{print_}")

    def create(self) -> None:
        """Make the folder unless it exists.

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
        """Write the recipe and the teachers of the run."""
        write_text(self.recipe_file, dump_recipe(recipe))  # first: the teachers' identities depend on its precisions
        write_text(self.pinned_teachers, as_json(list(teachers)))

    def precisions(self) -> dict[str, Dtype]:
        """Read the precision of each part by name from the run's recipe.yaml; a new run has none.

        Raises:
            ConfigError: its recipe.yaml cannot be read.
        """
        if not self.recipe_file.is_file():
            return {}
        kept = parts(parse_recipe(read_yaml(self.recipe_file), str(self.recipe_file)))
        return {part.name: part.precision for part in kept if part.precision != "auto"}

    def locked(self) -> AbstractContextManager[None]:
        """Lock the folder against other processes.

        Raises:
            ConfigError: another process works in it.
        """
        return locked_folder(
            self.path,
            f"another process is working in the run folder {str(self.path)!r}; wait for it, end it, or choose "
            "another folder with --run",
        )

    def check_teachers(self, teachers: Sequence[dict[str, Any]]) -> None:
        """Refuse to continue a run that began with other teachers.

        Raises:
            ConfigError: names the first difference.
        """
        if not self.pinned_teachers.is_file():
            return
        pinned = json.loads(self.pinned_teachers.read_text(encoding="utf-8"))
        if [decisive(t) for t in pinned] != [decisive(t) for t in teachers]:
            raise ConfigError(
                f"{str(self.pinned_teachers)!r} says this run's targets come from {difference(pinned, teachers)}; "
                "choose another run folder with --run, or restore the recipe's teachers"
            )


def decisive(teacher: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a teacher that must not change; its size follows from the others."""
    return {key: value for key, value in teacher.items() if key != "dim"}


def difference(pinned: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> str:
    if [t["name"] for t in pinned] != [t["name"] for t in now]:
        return f"{', '.join(t['name'] for t in pinned)}, but the recipe now names {', '.join(t['name'] for t in now)}"
    for before, after in zip(pinned, now, strict=True):
        # the identity comes last: it shows that they differ, but not in what
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
    identities: Mapping[str, Mapping[str, Any] | None] = MappingProxyType({}),
) -> list[str]:
    """Compute a fingerprint for the student before training and one for each stage; each covers all before it.

    `corpus` identifies the texts and `base` the body's pretrained weights if they are a folder. `identities` holds, by
    data kind, what only stages on such rows depend on: the images and the tower, so that a student that finished its
    texts can learn images later.
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
        identity = identities.get(stage.data)
        prints.append(fingerprint([prints[-1], settings, *([identity] if identity else [])]))
    return prints


def publish(source: Path, destination: Path) -> None:
    """Copy a finished student to `destination`, atomically."""
    with atomic_folder(destination) as staging:
        shutil.copytree(source, staging, dirs_exist_ok=True)


def as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
