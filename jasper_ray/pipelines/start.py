"""The student before training."""

from __future__ import annotations

from pathlib import Path

from jasper_ray.assets import locate
from jasper_ray.assets.identity import folder_digest
from jasper_ray.models.folder import StudentCard, save_student
from jasper_ray.models.loading import load_tokenizer
from jasper_ray.models.student import build_student
from jasper_ray.recipe import Recipe


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
