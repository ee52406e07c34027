"""A recipe on the machines at hand: what it leaves to `auto`, decided.

Nothing here measures or looks around: what was found is handed in, so that every decision can be tried without a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jasper_ray.recipe.schema import Recipe
from jasper_ray.resources import TeacherPool, decided_gpus
from jasper_ray.vectors import Dtype, Precision

LONG = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16"}
"""What the precisions of a stage are called everywhere else."""
SHORT = {long: short for short, long in LONG.items()}


class Part(NamedTuple):
    """Something in a recipe that computes."""

    name: str
    precision: Precision
    """As the recipe says it."""
    on_gpu: bool
    learns: bool


class Measured(NamedTuple):
    """What was found of a device."""

    fast: Dtype
    """The precision that `auto` takes there."""
    speed: float
    """How many times as fast as in float32 it computes in bfloat16."""


class Decision(NamedTuple):
    """The precision of a part, and why."""

    part: Part
    precision: Dtype
    reason: str
    """For people; empty where nothing need be said."""
    slow: bool = False
    """The recipe insists on what is slow here."""


def parts(recipe: Recipe) -> list[Part]:
    """Everything in a recipe that computes in a precision."""
    known = [(teacher, getattr(teacher, "dtype", None)) for teacher in recipe.teachers]  # one kind has no weights
    found = [Part(f"teacher {t.name}", dtype, t.pool.gpus_per_copy > 0, False) for t, dtype in known if dtype]
    if recipe.images:
        found.append(Part("captions", recipe.images.dtype, recipe.images.pool.gpus_per_copy > 0, False))
    found += [
        Part(f"stage {stage.name}", LONG[stage.precision], stage.gpus > 0, True)  # type: ignore[arg-type]
        for stage in recipe.stages
    ]
    return [*found, Part("measuring", recipe.evaluation.precision, recipe.stages[0].gpus > 0, False)]


def with_precisions(recipe: Recipe, chosen: Mapping[str, Dtype]) -> Recipe:
    """The recipe with the precision of each part, by its name."""
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
"""Looks at a GPU or at a processor, learning or not."""


def decide(part: Part, kept: Mapping[str, Dtype], measure: Measure) -> Decision:
    """The precision of a part: the recipe's; else the one that the run began with, wherever it goes on; else the one
    that its device is fast in. `kept` has what the run began with, by name."""
    if part.precision in ("float32", "float16"):
        return Decision(part, part.precision, "")
    here = measure(part.on_gpu, part.learns)
    slow = here.speed < 1
    times = f"takes {1 / here.speed:.3g} times as long" if slow else f"is {here.speed:.3g} times as fast"
    if part.precision != "auto":
        insists = f"the recipe insists on bfloat16, which {times} as float32 here; auto would take float32"
        return Decision(part, part.precision, insists if slow else "", slow)
    began = kept.get(part.name, here.fast)
    compared = f"bfloat16 {times} as float32 here"
    if began == here.fast:
        return Decision(part, began, f"{began}; {compared}")
    told = f"{began}, in which this run began; a new run would take {here.fast}, for {compared}"
    return Decision(part, began, told, slow and began == "bfloat16")


def in_words(decisions: Sequence[Decision]) -> list[str]:
    """A line for each reason, with all parts that it holds for."""
    reasons = dict.fromkeys(decision.reason for decision in decisions if decision.reason)
    return [f"{', '.join(d.part.name for d in decisions if d.reason == reason)}: {reason}" for reason in reasons]


def with_gpus(recipe: Recipe, gpus: int) -> Recipe:
    """The recipe with every `auto` number of GPUs decided, for a machine that has so many.

    A recipe that reserves GPUs somewhere has said all there is to say. In any other the workers of a stage share them
    with the copies of teachers that run beside it.
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
    """GPUs of a training worker and of a teacher's copy: one each where that suffices. A lone worker shares its own,
    several never do (NCCL refuses two on one GPU); what finds no room runs on processors."""
    if workers + copies <= gpus:
        return 1.0, 1.0
    if workers == 1 and gpus:
        share = fraction(math.ceil((1 + copies) / gpus))
        return share, share
    trainers = workers if workers <= gpus else 0
    left = gpus - trainers
    return float(trainers > 0), fraction(math.ceil(copies / left)) if left else 0.0


def gpus_in_words(recipe: Recipe, gpus: int) -> str:
    """Who takes how much of this machine's GPUs."""
    takes = {f"stage {stage.name}": stage.gpus for stage in recipe.stages}
    takes |= {f"teacher {teacher.name}": teacher.pool.gpus_per_copy for teacher in recipe.teachers}
    takes |= {"captions": recipe.images.pool.gpus_per_copy} if recipe.images else {}
    shared = dict.fromkeys(takes.values())
    listed = [f"{share:g} for {', '.join(n for n, s in takes.items() if s == share)}" for share in shared]
    return f"{gpus} GPUs here, of which a worker or a copy takes {'; '.join(listed)}"


def fraction(parts: int) -> float:
    """One of so many equal parts, rounded down to the ten-thousandth in which Ray counts."""
    return math.floor(10_000 / parts) / 10_000
