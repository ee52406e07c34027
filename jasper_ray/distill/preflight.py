"""Checks before Ray starts (`preflight`), and the decisions on precision once it runs (`resolve`)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import ray
import torch

from jasper_ray.cli import log_progress
from jasper_ray.distill.plan import data_kinds
from jasper_ray.encoders.precision import bfloat16_speed, overridden_precision, worth_precision
from jasper_ray.evaluation import SetData, read_sets
from jasper_ray.ray_runtime import starts_ray
from jasper_ray.recipe import Recipe
from jasper_ray.recipe.checks import check_measuring, check_patterns
from jasper_ray.recipe.machine import (
    Measure,
    Measured,
    decide,
    gpus_in_words,
    in_words,
    parts,
    with_gpus,
    with_precisions,
)
from jasper_ray.run_folder import RunFolder
from jasper_ray.teachers import described
from jasper_ray.vectors import Dtype

logger = logging.getLogger(__name__)

SMALL_SHARE = 0.01
"""GPUs that a measurement reserves: any GPU will do."""


class Checked(NamedTuple):
    """A recipe that passed its checks, and the things that they read."""

    recipe: Recipe
    """The recipe with every number of GPUs decided."""
    sets: Sequence[SetData]
    weights: Sequence[str]
    """Identity of each teacher's weights."""
    is_local: bool
    """The run starts a Ray of its own on this machine."""


def preflight(recipe: Recipe, run: RunFolder) -> Checked:
    """Check everything that needs no Ray, then create the run folder.

    Raises:
        ConfigError: the first fault; nothing was written yet.
    """
    with log_progress("checking the recipe"):
        sets = read_sets(recipe.evaluation.sets)
        check_measuring(recipe, sets)
        for name, rows in data_kinds(recipe).items():
            rows.check_sources(recipe.rows_of(name))
        check_patterns(recipe)
        overridden_precision()
        weights = [teacher.weights() for teacher in recipe.teachers]
    is_local = starts_ray()
    gpus = torch.cuda.device_count() if is_local and torch.cuda.is_available() else 0
    recipe = with_gpus(recipe, gpus)
    if gpus:
        logger.info("%s", gpus_in_words(recipe, gpus))
    run.create()
    return Checked(recipe, sets, weights, is_local)


def resolve(checked: Checked, run: RunFolder) -> tuple[Recipe, list[dict[str, Any]]]:
    """Decide the precisions, in a Ray session, and pin the teachers to the commits that were found.

    Returns the resolved recipe and the entries of teachers.json.

    Raises:
        ConfigError: the run began with other teachers.
    """
    recipe = in_precisions(checked.recipe, run.precisions(), measuring(checked.is_local))
    pairs = list(zip(recipe.teachers, checked.weights, strict=True))
    teachers = [described(teacher, weights) for teacher, weights in pairs]
    run.check_teachers(teachers)
    pinned = tuple(teacher.at(weights) for teacher, weights in pairs)
    return recipe.model_copy(update={"teachers": pinned}), teachers


def in_precisions(recipe: Recipe, kept: Mapping[str, Dtype], measure: Measure) -> Recipe:
    """Return the recipe with every precision decided, and log each decision with its reason. See `decide`."""
    decisions = [decide(part, kept, measure) for part in parts(recipe)]
    for line in in_words([decision for decision in decisions if decision.slow]):
        logger.warning("%s", line)
    for line in in_words([decision for decision in decisions if not decision.slow]):
        logger.info("%s", line)
    return with_precisions(recipe, {decision.part.name: decision.precision for decision in decisions})


def measuring(is_local: bool) -> Measure:
    """Make a function that measures the devices of a session, each once.

    In a local session this process measures the processors. All else is measured in a task, whose process ends with it
    and frees a GPU's memory.
    """

    @cache
    def speeds(on_gpu: bool) -> tuple[float, float]:
        if is_local and not on_gpu:
            return measure_speeds(on_gpu)
        task = ray.remote(max_calls=1)(measure_speeds).options(num_gpus=SMALL_SHARE if on_gpu else 0)
        with log_progress("measuring a GPU" if on_gpu else "measuring a processor"):
            measured: tuple[float, float] = ray.get(task.remote(on_gpu))
        return measured

    def measure(on_gpu: bool, learns: bool) -> Measured:
        speed = speeds(on_gpu)[learns]
        return Measured(overridden_precision() or worth_precision(speed), speed)

    return measure


def measure_speeds(on_gpu: bool) -> tuple[float, float]:
    """Measure how many times as fast this process is in bfloat16 as in float32, forward alone and with gradients."""
    device = "cuda" if on_gpu else "cpu"
    return bfloat16_speed(device), bfloat16_speed(device, learning=True)
