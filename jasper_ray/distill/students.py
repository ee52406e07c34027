"""The student before training, and before a stage on images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jasper_ray.assets import locate
from jasper_ray.corpus.images import IMAGES
from jasper_ray.corpus.prepare import log_prepared, prepare
from jasper_ray.corpus.settings import Images
from jasper_ray.corpus.shards import PairManifest
from jasper_ray.distill.heldout import HeldOutPairs, read_heldout_pairs
from jasper_ray.labelling.labeller import Decoding, Labeller
from jasper_ray.labelling.target_cache import TargetCache
from jasper_ray.models.folder import VISION, StudentCard, load_student_folder, save_student
from jasper_ray.models.identity import folder_digest
from jasper_ray.models.loading import load_tokenizer
from jasper_ray.models.student import build_student, give_sight
from jasper_ray.models.vision import VisionSettings, read_preprocessing
from jasper_ray.recipe import Recipe
from jasper_ray.run_folder import RunFolder
from jasper_ray.teachers import OWN, OwnTeacher


def write_start(recipe: Recipe, folder: Path) -> None:
    """The student with random heads."""
    body = recipe.student.body
    tokenizer = load_tokenizer(locate(body.base, body.revision), body.revision)
    card = StudentCard(
        max_length=recipe.student.max_length, prompts=recipe.student.prompts, default_head=recipe.student.first_shown
    )
    save_student(build_student(recipe.student, recipe.seed), tokenizer, card, folder)


def base_weights(recipe: Recipe) -> str | None:
    """What identifies the weights that the body starts with where they lie in a folder, whose contents may change."""
    body = recipe.student.body
    location = Path(locate(body.base, body.revision))
    return folder_digest(location) if location.is_dir() and not body.random_weights else None


class Sight:
    """The images of a run, and the vision encoder that its student gets."""

    def __init__(self, recipe: Recipe, images: Images, vision: VisionSettings, run: RunFolder) -> None:
        self.recipe = recipe
        self.images = images
        self.vision = vision
        self.run = run
        self.manifest: PairManifest = prepare(IMAGES, images, run.pairs, recipe.seed)
        self.heldout: HeldOutPairs | None = read_heldout_pairs(run.pairs, self.manifest.heldout, images)
        log_prepared(IMAGES, self.manifest)

    def identity(self) -> dict[str, Any]:
        """What decides, beside the student and the stage, what a stage on images makes."""
        return {
            "vision": self.vision.model_dump(mode="json"),
            "tower": tower_weights(self.vision),
            "images": self.manifest.fingerprint,
            "captions": self.images.dtype,
        }

    def student(self, before: Path, place: Path, remote: Callable[..., Any]) -> Path:
        """The student that a stage on images begins with: `before`, or that with vision, written to `place`."""
        if (before / VISION).is_dir():
            return before
        if not place.is_dir():
            remote(write_sight, before, self.vision, self.recipe.seed, place)
        return place

    def labeller(self, start: Path) -> Labeller:
        """What makes pixels and captions' vectors for a stage that begins with the student in `start`."""
        targets = self.run.targets(self.recipe)
        cache = TargetCache(targets / f"{OWN}-{folder_digest(start)[:12]}-{self.images.dtype}") if targets else None
        return Labeller(
            teachers=(OwnTeacher(start, self.images.pool, self.images.dtype, self.images.batch_size),),
            caches=(cache,),
            folder=self.run.pairs,
            decoding=Decoding(read_preprocessing(start / VISION), self.images.pixel_limit, self.images.decoders),
        )


def open_sight(recipe: Recipe, run: RunFolder) -> Sight | None:
    """The images of the recipe; None when it has none."""
    if recipe.images is None or recipe.student.vision is None:
        return None
    return Sight(recipe, recipe.images, recipe.student.vision, run)


def write_sight(before: Path, vision: VisionSettings, seed: int, place: Path) -> None:
    """Write the student of `before` with vision."""
    student, tokenizer, card = load_student_folder(before)
    save_student(give_sight(student, tokenizer, vision, seed), tokenizer, card, place)


def tower_weights(vision: VisionSettings) -> str | None:
    """What identifies the weights that the tower starts with where they lie in a folder, whose contents may change."""
    if vision.base is None:
        return None
    location = Path(locate(vision.base, vision.revision))
    return folder_digest(location) if location.is_dir() else None
