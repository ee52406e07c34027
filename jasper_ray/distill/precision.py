"""Precisions of a run, measured on the devices that will compute."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cache

import ray

from jasper_ray.cli import log_progress
from jasper_ray.encoders.precision import bfloat16_speed, overridden_precision, worth_precision
from jasper_ray.recipe import Recipe
from jasper_ray.recipe.machine import Measure, Measured, decide, in_words, parts, with_precisions
from jasper_ray.vectors import Dtype

logger = logging.getLogger(__name__)

LITTLE = 0.01
"""GPUs that a measurement reserves: any GPU will do."""


def in_precisions(recipe: Recipe, kept: Mapping[str, Dtype], measure: Measure) -> Recipe:
    """The recipe with every precision decided; each decision is logged with its reason. See `decide`."""
    decisions = [decide(part, kept, measure) for part in parts(recipe)]
    for line in in_words([decision for decision in decisions if decision.slow]):
        logger.warning("%s", line)
    for line in in_words([decision for decision in decisions if not decision.slow]):
        logger.info("%s", line)
    return with_precisions(recipe, {decision.part.name: decision.precision for decision in decisions})


def starts_ray() -> bool:
    """Tell whether a session that begins now starts a Ray on this machine, instead of joining one."""
    return not ray.is_initialized() and not os.environ.get("RAY_ADDRESS")


def measuring(alone: bool) -> Measure:
    """A way to measure the devices of a session, each once. `alone`: the session is this machine's, so its processors
    are at hand. All else is measured in a task, whose process ends with it and frees a GPU's memory."""

    @cache
    def speeds(on_gpu: bool) -> tuple[float, float]:
        if alone and not on_gpu:
            return speeds_here(on_gpu)
        task = ray.remote(max_calls=1)(speeds_here).options(num_gpus=LITTLE if on_gpu else 0)
        with log_progress("measuring a GPU" if on_gpu else "measuring a processor"):
            found: tuple[float, float] = ray.get(task.remote(on_gpu))
        return found

    def measure(on_gpu: bool, learns: bool) -> Measured:
        speed = speeds(on_gpu)[learns]
        return Measured(overridden_precision() or worth_precision(speed), speed)

    return measure


def speeds_here(on_gpu: bool) -> tuple[float, float]:
    """Measure a device of this process: how many times as fast it is in bfloat16, forward alone and with gradients."""
    device = "cuda" if on_gpu else "cpu"
    return bfloat16_speed(device), bfloat16_speed(device, learning=True)
