"""The rows of a run, one class for each data kind: how they are checked, prepared, identified, labelled and batched."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jasper_ray.assets import locate
from jasper_ray.cli import log_progress
from jasper_ray.corpus.images import IMAGES
from jasper_ray.corpus.prepare import log_prepared, prepare
from jasper_ray.corpus.shards import Shard
from jasper_ray.corpus.texts import TEXTS
from jasper_ray.distill.heldout import HeldOut, read_heldout_pairs, read_heldout_texts
from jasper_ray.labelling.labeller import Decoding, Labeller
from jasper_ray.labelling.target_cache import TargetCache
from jasper_ray.models.folder import VISION
from jasper_ray.models.identity import folder_digest
from jasper_ray.models.vision import read_preprocessing
from jasper_ray.recipe import Recipe
from jasper_ray.run_folder import RunFolder
from jasper_ray.sources.checks import check_sources
from jasper_ray.sources.pairs import check_pair_sources
from jasper_ray.teachers import OWN, CaptionTeacher
from jasper_ray.training.batches import Feed, ImageFeed, TextFeed


@dataclass(frozen=True)
class StageData(ABC):
    """The prepared rows of one data kind."""

    recipe: Recipe
    run: RunFolder
    teachers: Sequence[dict[str, Any]]
    """Entries of teachers.json."""
    manifest: Any

    @staticmethod
    @abstractmethod
    def check_sources(recipe: Recipe) -> None:
        """Raise `ConfigError` unless the sources can be read; needs no Ray."""

    @classmethod
    @abstractmethod
    def prepare(cls, recipe: Recipe, run: RunFolder, teachers: Sequence[dict[str, Any]]) -> StageData:
        """Write the rows in shards to the run folder, unless they are there."""

    @property
    def shards(self) -> Sequence[Shard]:
        """Shards to train on."""
        shards: Sequence[Shard] = self.manifest.train
        return shards

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

    @staticmethod
    def check_sources(recipe: Recipe) -> None:
        check_sources(recipe.corpus.sources)

    @classmethod
    def prepare(cls, recipe: Recipe, run: RunFolder, teachers: Sequence[dict[str, Any]]) -> TextData:
        with log_progress("preparing the corpus"):
            manifest = prepare(TEXTS, recipe.corpus, run.corpus, recipe.seed)
        log_prepared(TEXTS, manifest)
        return cls(recipe, run, teachers, manifest)

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

    @staticmethod
    def check_sources(recipe: Recipe) -> None:
        assert recipe.images is not None
        check_pair_sources(recipe.images.sources, recipe.images.pixel_limit)

    @classmethod
    def prepare(cls, recipe: Recipe, run: RunFolder, teachers: Sequence[dict[str, Any]]) -> ImageData:
        assert recipe.images is not None
        with log_progress("preparing the images"):
            manifest = prepare(IMAGES, recipe.images, run.pairs, recipe.seed)
        log_prepared(IMAGES, manifest)
        return cls(recipe, run, teachers, manifest)

    def identity(self) -> dict[str, Any]:
        images, vision = self.recipe.images, self.recipe.student.vision
        assert images is not None
        assert vision is not None
        return {
            "vision": vision.model_dump(mode="json"),
            "tower": base_identity(vision.base, vision.revision) if vision.base else None,
            "images": self.manifest.fingerprint,
            "captions": images.dtype,
        }

    def labeller(self, start: Path) -> Labeller:
        images, targets = self.recipe.images, self.run.targets(self.recipe)
        assert images is not None
        cache = TargetCache(targets / f"{OWN}-{folder_digest(start)[:12]}-{images.dtype}") if targets else None
        return Labeller(
            teachers=(CaptionTeacher(start, images.pool, images.dtype, images.batch_size),),
            caches=(cache,),
            folder=self.run.pairs,
            decoding=Decoding(read_preprocessing(start / VISION), images.pixel_limit, images.decoders),
        )

    def feed(self) -> ImageFeed:
        assert self.recipe.student.vision is not None
        return ImageFeed(self.recipe.student.vision.image_tokens, self.recipe.student.heads)

    def heldout(self) -> HeldOut | None:
        return read_heldout_pairs(self.run.pairs, self.manifest.heldout, self.manifest.images)


def base_identity(base: str, revision: str | None) -> str | None:
    """Identify pretrained weights that are a local folder, whose contents may change; None for any others."""
    location = Path(locate(base, revision))
    return folder_digest(location) if location.is_dir() else None
