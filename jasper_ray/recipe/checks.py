"""Checks of a recipe against the student's shape, its evaluation sets and its data; nothing is started."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from jasper_ray.config import ConfigError
from jasper_ray.evaluation import SetData, check_prompts, text_sets
from jasper_ray.models.student import Student, meta_student
from jasper_ray.recipe import Recipe, Stage


def check_patterns(recipe: Recipe) -> None:
    """Refuse patterns that match nothing, a trained head without losses, and a head that no stage trains.

    Raises:
        ConfigError: names the stage and the pattern or head.
    """
    reached: set[int] = set()
    shapes = students(recipe)
    for number, stage in enumerate(recipe.stages):
        student = shapes[stage.data]
        try:
            names = student.trainable_names(stage.train)
        except ConfigError as error:
            raise ConfigError(f"stages.{number}.{error}") from error
        check_checkpointing(stage, student)
        if not stage.kind.own_targets:
            reached |= {dim for dim in stage.losses if f"heads.{dim}.weight" in names}
        named = {pattern for pattern in stage.train if pattern.startswith("heads.")}
        for dim in student.dims:
            explicit = any(fnmatch.fnmatch(f"heads.{dim}.weight", pattern) for pattern in named)
            if explicit and f"heads.{dim}.weight" in names and dim not in stage.losses:
                raise ConfigError(
                    f"stages.{number}.train: head {dim} is trained, but stage {stage.name!r} has no loss for it; "
                    "give it losses, or remove it from train"
                )
    for dim in recipe.student.heads:
        if dim not in reached:
            raise ConfigError(
                f"stages: no stage both trains head {dim} and gives it losses, so it would never learn; "
                f'add "heads.{dim}.*" to the train of a stage whose losses name it'
            )


def check_checkpointing(stage: Stage, student: Student) -> None:
    """Refuse gradient checkpointing for a model that does not support it."""
    parts = [student.body, *([student.vision.tower] if student.vision else [])]
    for part in parts:
        if stage.gradient_checkpointing and not part.supports_gradient_checkpointing:
            raise ConfigError(
                f"stage {stage.name!r}: {type(part).__name__} does not support gradient_checkpointing; set it to false"
            )


def students(recipe: Recipe) -> dict[str, Student]:
    """Build the student as stages load it, on the meta device, by the stages' data."""
    return {stage.data: meta_student(recipe.student, vision=stage.kind.needs_vision) for stage in recipe.stages}


def check_measuring(recipe: Recipe, sets: Sequence[SetData]) -> None:
    """Refuse sets that need prompts or vision which the student or a teacher lacks: days later is too late."""
    check_prompts(recipe.student.prompts, sets, "the student")
    of_images = [data.name for data in sets if data.needs_vision]
    if of_images and not recipe.student.vision:
        raise ConfigError(
            f"the evaluation sets {', '.join(of_images)} are of images, and the student has no vision; "
            "add student.vision, images and a stage on images, or remove these sets"
        )
    if recipe.evaluation.teachers:
        for teacher in recipe.teachers:
            check_prompts(teacher.prompts, text_sets(sets), f"teacher {teacher.name!r}")
