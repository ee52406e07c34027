"""In which precisions a run computes: what its devices are fast in is measured, where they are."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cache

import ray

from jasper_ray.encoders.precision import bfloat16_speed, fast_precision
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
    """Whether a session that begins now starts a Ray on this machine, instead of joining one."""
    return not ray.is_initialized() and not os.environ.get("RAY_ADDRESS")


@cache
def measured(alone: bool, on_gpu: bool, learns: bool) -> Measured:
    """What a device of the session is fast in. `alone`: the session is this machine's, so its processors are at hand;
    all else is measured in a task, whose process ends with it and frees a GPU's memory."""
    if alone and not on_gpu:
        return here(on_gpu, learns)
    task = ray.remote(max_calls=1)(here).options(num_gpus=LITTLE if on_gpu else 0)
    found: Measured = ray.get(task.remote(on_gpu, learns))
    return found


def here(on_gpu: bool, learns: bool) -> Measured:
    """What a device of this process is fast in."""
    device = "cuda" if on_gpu else "cpu"
    return Measured(fast_precision(device, learns), bfloat16_speed(device, learns))
