"""Whether a recipe can be carried out, as far as its shapes, its sets and its data tell; nothing is started."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from jasper_ray.config import ConfigError
from jasper_ray.corpus.order import batches_in_pass
from jasper_ray.corpus.shards import Shard
from jasper_ray.evaluation import SetData, check_prompts, text_sets
from jasper_ray.models.student import Student, meta_student
from jasper_ray.recipe import Recipe, Stage


def check_patterns(recipe: Recipe) -> None:
    """Refuse a stage whose patterns match nothing, or that trains a head its losses do not reach, and heads that no
    stage trains.

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
        if stage.data == "texts":
            reached |= {dim for dim in stage.losses if f"heads.{dim}.weight" in names}
        named = {pattern for pattern in stage.train if pattern.startswith("heads.")}
        for dim in student.dims:
            explicit = any(fnmatch.fnmatch(f"heads.{dim}.weight", pattern) for pattern in named)
            if explicit and f"heads.{dim}.weight" in names and dim not in stage.losses:
                raise ConfigError(
                    f"stages.{number}.train: head {dim} is trained, but no loss of stage {stage.name!r} reaches it; "
                    "give it losses, or leave it out of train"
                )
    for dim in recipe.student.heads:
        if dim not in reached:
            raise ConfigError(
                f"stages: no stage both trains head {dim} and gives it losses, so it would stay as it starts; "
                f'add "heads.{dim}.*" to the train of a stage whose losses name it'
            )


def check_checkpointing(stage: Stage, student: Student) -> None:
    """Refuse gradient checkpointing for a model that does not know it."""
    parts = [student.body, *([student.vision.tower] if student.vision else [])]
    for part in parts:
        if stage.gradient_checkpointing and not part.supports_gradient_checkpointing:
            raise ConfigError(
                f"stage {stage.name!r}: {type(part).__name__} does not know gradient_checkpointing; set it to false"
            )


def students(recipe: Recipe) -> dict[str, Student]:
    """The student as stages load it, on the meta device, by what they see."""
    return {data: meta_student(recipe.student, sees=data == "images") for data in {s.data for s in recipe.stages}}


def check_measuring(recipe: Recipe, sets: Sequence[SetData]) -> None:
    """Refuse sets that ask for prompts which the student or a teacher does not have: days later is too late."""
    check_prompts(recipe.student.prompts, sets, "the student")
    of_images = [data.name for data in sets if data.needs_vision]
    if of_images and not recipe.student.vision:
        raise ConfigError(
            f"the evaluation sets {', '.join(of_images)} are of images, and no stage teaches the student to see; "
            "add student.vision, images and such a stage, or leave these sets out"
        )
    if recipe.evaluation.teachers:
        for teacher in recipe.teachers:
            check_prompts(teacher.prompts, text_sets(sets), f"teacher {teacher.name!r}")


def check_batches(recipe: Recipe, data: str, shards: Sequence[Shard]) -> None:
    """Refuse data too little for a batch, before a teacher is loaded."""
    for stage in recipe.stages:
        if stage.data == data:
            batches_in_pass(shards, stage.batch_size, stage.data)
