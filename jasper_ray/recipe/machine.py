"""GPUs and precisions that a recipe leaves to `auto`, decided for the machines of a run.

Nothing here measures a machine: measurements are arguments, so that every decision can be tested without a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jasper_ray.recipe.schema import Recipe
from jasper_ray.resources import TeacherPool, decided_gpus
from jasper_ray.vectors import Dtype, Precision

LONG: dict[str, Precision] = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16"}
"""Names that the precisions of a stage have everywhere else."""
SHORT: dict[str, str] = {long: short for short, long in LONG.items()}


class Part(NamedTuple):
    """A part of a recipe that computes."""

    name: str
    precision: Precision
    """The recipe's setting."""
    on_gpu: bool
    learns: bool


class Measured(NamedTuple):
    """A measured device."""

    fast: Dtype
    """The precision that `auto` chooses there."""
    speed: float
    """Speed in bfloat16, as a multiple of that in float32."""


class Decision(NamedTuple):
    """The precision of a part, and the reason."""

    part: Part
    precision: Dtype
    reason: str
    """A sentence for the log; empty when there is nothing to log."""
    slow: bool = False
    """The precision is slow here, but the recipe or the run requires it."""


def parts(recipe: Recipe) -> list[Part]:
    """List the parts of a recipe that compute in a precision."""
    encoders: dict[str, Any] = {
        f"teacher {teacher.name}": teacher for teacher in recipe.teachers if hasattr(teacher, "dtype")
    }
    encoders |= {"captions": recipe.images} if recipe.images else {}
    return [
        *(Part(name, each.dtype, each.pool.gpus_per_copy > 0, False) for name, each in encoders.items()),
        *(Part(f"stage {s.name}", LONG[s.precision], s.gpus > 0, True) for s in recipe.stages),
        Part("measuring", recipe.evaluation.precision, recipe.stages[0].gpus > 0, False),
    ]


def with_precisions(recipe: Recipe, chosen: Mapping[str, Dtype]) -> Recipe:
    teachers = [
        teacher.model_copy(update={"dtype": chosen[name]} if (name := f"teacher {teacher.name}") in chosen else {})
        for teacher in recipe.teachers
    ]
    stages = [s.model_copy(update={"precision": SHORT[chosen[f"stage {s.name}"]]}) for s in recipe.stages]
    images = recipe.images and recipe.images.model_copy(update={"dtype": chosen["captions"]})
    evaluation = recipe.evaluation.model_copy(update={"precision": chosen["measuring"]})
    changes = {"teachers": tuple(teachers), "stages": tuple(stages), "images": images, "evaluation": evaluation}
    return recipe.model_copy(update=changes)


Measure = Callable[[bool, bool], Measured]
"""Measures a GPU or a processor, learning or not."""


def decide(part: Part, kept: Mapping[str, Dtype], measure: Measure) -> Decision:
    """Decide the precision of a part: the recipe's, else the one the run began with, else the device's faster one.

    `kept` holds the precisions that the run began with, by the names of the parts.
    """
    if part.precision in ("float32", "float16"):
        return Decision(part, part.precision, "")
    here = measure(part.on_gpu, part.learns)
    slow = here.speed < 1
    times = f"takes {1 / here.speed:.3g} times as long" if slow else f"is {here.speed:.3g} times as fast"
    if part.precision != "auto":
        reason = f"the recipe sets bfloat16, which {times} as float32 here; auto would choose float32"
        return Decision(part, part.precision, reason if slow else "", slow)
    began = kept.get(part.name, here.fast)
    compared = f"bfloat16 {times} as float32 here"
    if began == here.fast:
        return Decision(part, began, f"{began}; {compared}")
    reason = f"{began}, in which this run began; a new run would choose {here.fast}, for {compared}"
    return Decision(part, began, reason, slow and began == "bfloat16")


def in_words(decisions: Sequence[Decision]) -> list[str]:
    """Write a line for each reason, with the names of its parts."""
    reasons = dict.fromkeys(decision.reason for decision in decisions if decision.reason)
    return [f"{', '.join(d.part.name for d in decisions if d.reason == reason)}: {reason}" for reason in reasons]


def with_gpus(recipe: Recipe, gpus: int) -> Recipe:
    """Return the recipe with every `auto` number of GPUs decided, for a machine that has so many.

    In a recipe that reserves GPUs somewhere, `auto` means none. In any other the workers of a stage share the GPUs with
    the copies of teachers that run beside it.
    """
    pools = [teacher.pool for teacher in recipe.teachers]
    captions = [recipe.images.pool] if recipe.images else []
    asked = [stage.gpus for stage in recipe.stages] + [pool.gpus_per_copy for pool in (*pools, *captions)]
    workers = max(stage.workers for stage in recipe.stages)
    copies = max(sum(pool.max_size for pool in beside) for beside in (pools, captions))
    worker, copy = (0.0, 0.0) if any(asked) else shares(gpus, workers, copies)

    def pooled(part: Any) -> Any:
        pool: TeacherPool = part.pool
        return part.model_copy(update={"pool": pool.model_copy(update={"gpus": decided_gpus(pool.gpus, copy)})})

    stages = [s.model_copy(update={"gpus_per_worker": decided_gpus(s.gpus_per_worker, worker)}) for s in recipe.stages]
    changes = {"teachers": tuple(map(pooled, recipe.teachers)), "stages": tuple(stages)}
    return recipe.model_copy(update={**changes, "images": recipe.images and pooled(recipe.images)})


def shares(gpus: int, workers: int, copies: int) -> tuple[float, float]:
    """Divide the GPUs among training workers and teachers' copies: one each if there are enough.

    A single worker shares its GPU, several never do (NCCL refuses two on one GPU); the rest runs on processors.
    """
    if workers + copies <= gpus:
        return 1.0, 1.0
    if workers == 1 and gpus:
        share = fraction(math.ceil((1 + copies) / gpus))
        return share, share
    trainers = workers if workers <= gpus else 0
    left = gpus - trainers
    return float(trainers > 0), fraction(math.ceil(copies / left)) if left else 0.0


def gpus_in_words(recipe: Recipe, gpus: int) -> str:
    takes = {f"stage {stage.name}": stage.gpus for stage in recipe.stages}
    takes |= {f"teacher {teacher.name}": teacher.pool.gpus_per_copy for teacher in recipe.teachers}
    takes |= {"captions": recipe.images.pool.gpus_per_copy} if recipe.images else {}
    shared = dict.fromkeys(takes.values())
    listed = [f"{share:g} for {', '.join(n for n, s in takes.items() if s == share)}" for share in shared]
    return f"{gpus} GPUs here; each worker or copy reserves {'; '.join(listed)}"


def fraction(parts: int) -> float:
    """Divide one GPU into equal parts, rounded down to the ten-thousandth in which Ray counts."""
    return math.floor(10_000 / parts) / 10_000
