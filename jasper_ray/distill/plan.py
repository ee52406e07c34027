"""The plan of a run: its resolved recipe, the prepared rows of each data kind, its folders and fingerprints.

Nothing of it changes while the run works. A data kind is one subclass of StageData here, and a row of
`jasper_ray.recipe.stage.DATA_KINDS`.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import ray

from jasper_ray.assets import locate
from jasper_ray.cli import log_progress
from jasper_ray.corpus.images import IMAGES
from jasper_ray.corpus.kinds import DataKind
from jasper_ray.corpus.order import batches_in_pass
from jasper_ray.corpus.prepare import log_prepared
from jasper_ray.corpus.prepare import prepare as prepare_rows
from jasper_ray.corpus.shards import Shard
from jasper_ray.corpus.texts import TEXTS
from jasper_ray.distill.heldout import HeldOut, read_heldout_pairs, read_heldout_texts
from jasper_ray.labelling.labeller import Decoding, Labeller
from jasper_ray.labelling.target_cache import TargetCache
from jasper_ray.models.folder import VISION
from jasper_ray.models.identity import folder_digest
from jasper_ray.models.vision import read_preprocessing
from jasper_ray.recipe import Recipe, Stage
from jasper_ray.recipe.stage import DATA_KINDS
from jasper_ray.run_folder import RunFolder, StageFolder, stage_fingerprints
from jasper_ray.sources.checks import check_sources
from jasper_ray.sources.pairs import check_pair_sources
from jasper_ray.teachers import OWN, CaptionTeacher
from jasper_ray.training.batches import Feed, ImageFeed, TextFeed


@dataclass(frozen=True)
class StageData(ABC):
    """The prepared rows of one data kind: how they are checked, identified, labelled and batched."""

    kind: ClassVar[DataKind[Any, Any]]
    """Reads the sources and writes the shards."""

    recipe: Recipe
    run: RunFolder
    teachers: Sequence[dict[str, Any]]
    """Entries of teachers.json."""
    manifest: Any

    @property
    def shards(self) -> Sequence[Shard]:
        """Shards to train on."""
        shards: Sequence[Shard] = self.manifest.train
        return shards

    @staticmethod
    @abstractmethod
    def check_sources(settings: Any) -> None:
        """Raise `ConfigError` unless the sources can be read; needs no Ray."""

    def identity(self) -> dict[str, Any] | None:
        """Return what decides the result of a stage on these rows, beside the student and the stage's settings."""
        return None

    @abstractmethod
    def labeller(self, start: Path) -> Labeller:
        """Make the labeller of a stage that starts from the student in `start`."""

    @abstractmethod
    def feed(self) -> Feed:
        """Make the feed that turns labelled rows into tokens or pixels and targets."""

    @abstractmethod
    def heldout(self) -> HeldOut | None:
        """Read the held-out rows, with their labels; None without any."""


class TextData(StageData):
    """The texts of the corpus, labelled by the teachers."""

    kind = TEXTS

    @staticmethod
    def check_sources(settings: Any) -> None:
        check_sources(settings.sources)

    def labeller(self, start: Path | None = None) -> Labeller:
        return self.labeller_with(self.run.targets(self.recipe))

    def labeller_with(self, cache: Path | None) -> Labeller:
        """Make a labeller that stores vectors below `cache` or nowhere, but those of held-out texts in the run."""
        names = [f"{teacher['name']}-{teacher['identity']}" for teacher in self.teachers]
        heldout = [{shard.sha256: self.run.heldout / name for shard in self.manifest.heldout} for name in names]
        caches = [TargetCache(cache / n, apart) if cache else None for n, apart in zip(names, heldout, strict=True)]
        return Labeller(self.recipe.teachers, tuple(caches), self.run.corpus)

    def feed(self) -> TextFeed:
        return TextFeed(tuple((teacher.name, teacher.weight) for teacher in self.recipe.teachers))

    def heldout(self) -> HeldOut | None:
        return read_heldout_texts(self.run)


class ImageData(StageData):
    """Image–caption pairs; the student, as the stage finds it, labels the captions."""

    kind = IMAGES

    @staticmethod
    def check_sources(settings: Any) -> None:
        check_pair_sources(settings.sources, settings.pixel_limit)

    def identity(self) -> dict[str, Any]:
        images, vision = self.recipe.images, self.recipe.student.vision
        assert images
        assert vision
        tower = base_identity(vision.base, vision.revision) if vision.base else None
        rows = {"images": self.manifest.fingerprint, "captions": images.dtype}
        return {"vision": vision.model_dump(mode="json"), "tower": tower, **rows}

    def labeller(self, start: Path) -> Labeller:
        images, targets = self.recipe.images, self.run.targets(self.recipe)
        assert images
        teacher = CaptionTeacher(start, images.pool, images.dtype, images.batch_size)
        cache = TargetCache(targets / f"{OWN}-{folder_digest(start)[:12]}-{images.dtype}") if targets else None
        decoding = Decoding(read_preprocessing(start / VISION), images.pixel_limit, images.decoders)
        return Labeller((teacher,), (cache,), self.run.pairs, decoding)

    def feed(self) -> ImageFeed:
        assert self.recipe.student.vision
        return ImageFeed(self.recipe.student.vision.image_tokens, self.recipe.student.heads)

    def heldout(self) -> HeldOut | None:
        return read_heldout_pairs(self.run.pairs, self.manifest.heldout, self.manifest.images)


@dataclass(frozen=True)
class RunPlan:
    """A run inside a Ray session."""

    recipe: Recipe
    run: RunFolder
    data: Mapping[str, StageData]
    """Prepared rows by their kind."""
    fingerprints: Sequence[str]
    """One for the student before training, then one for each stage."""

    @property
    def texts(self) -> TextData:
        """The corpus, which every run has."""
        return cast(TextData, self.data["texts"])

    def folder(self, number: int) -> StageFolder:
        """Return the folder of a stage, counted from 1; number 0 is the student before training."""
        name = self.recipe.stages[number - 1].name if number else "start"
        return self.run.stage(number, name, self.fingerprints[number])

    def total_steps(self, stage: Stage) -> int:
        return stage.total_steps(batches_in_pass(self.data[stage.data].shards, stage.batch_size))

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function on the cluster, with the recipe first, and the reservation of one training worker."""
        stage = self.recipe.stages[0]
        calls = 1 if stage.gpus else 0  # a process that lives on would keep the GPU's memory
        task = ray.remote(max_calls=calls)(function).options(
            num_cpus=stage.cpus_per_worker, num_gpus=stage.gpus, max_retries=2
        )
        return ray.get(task.remote(self.recipe, *arguments))


def data_kinds(recipe: Recipe) -> dict[str, type[StageData]]:
    """Import the class of every kind of rows that the recipe has, by the name of the kind."""
    return {name: pkgutil.resolve_name(kind.work) for name, kind in DATA_KINDS.items() if recipe.rows_of(name)}


def prepare(run: RunFolder, recipe: Recipe, teachers: Sequence[dict[str, Any]]) -> RunPlan:
    """Prepare the rows of every kind, unless they are there, and write the recipe and the teachers to the run folder.

    Raises:
        ConfigError: a source is unusable, or the rows of a kind are too few for a batch.
    """
    data: dict[str, StageData] = {}
    for name, rows in data_kinds(recipe).items():
        with log_progress(f"preparing the {name}"):
            folder = run.path / DATA_KINDS[name].folder
            manifest = prepare_rows(rows.kind, recipe.rows_of(name), folder, recipe.seed)
        log_prepared(rows.kind, manifest)
        data[name] = rows(recipe, run, teachers, manifest)
        for stage in recipe.stages:
            if stage.data == name:  # before the next kind, which may take hours
                batches_in_pass(data[name].shards, stage.batch_size, name)
    run.keep(recipe, teachers)
    body = recipe.student.body
    base = None if body.random_weights else base_identity(body.base, body.revision)
    identities = {name: rows.identity() for name, rows in data.items()}
    corpus = data["texts"].manifest.fingerprint
    return RunPlan(recipe, run, data, stage_fingerprints(recipe, teachers, corpus, base, identities))


def base_identity(base: str, revision: str | None) -> str | None:
    """Identify pretrained weights that are a local folder, whose contents may change; None for any others."""
    location = Path(locate(base, revision))
    return folder_digest(location) if location.is_dir() else None
