"""The students that stages start from: with random or fitted heads, and with a vision encoder before images."""

# Shape legend: N rows, H hidden size of the body, E size of the target.

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch
from ray.data import Dataset

from jasper_ray.assets import locate
from jasper_ray.cli import log_progress
from jasper_ray.corpus.shards import shards_covering
from jasper_ray.distill.heldout import by_prompt, target
from jasper_ray.distill.plan import RunPlan
from jasper_ray.encoders import load_student
from jasper_ray.models.folder import VISION, StudentCard, load_student_folder, save_student
from jasper_ray.models.loading import load_tokenizer
from jasper_ray.models.ridge import RidgeFit, set_heads
from jasper_ray.models.student import add_vision, build_student
from jasper_ray.ray_runtime import own_device
from jasper_ray.recipe import Recipe, RidgeHeads
from jasper_ray.run_folder import publish

logger = logging.getLogger(__name__)


def starting_student(plan: RunPlan) -> Path:
    """Write the student before training, unless it is there, and return its folder."""
    folder = plan.folder(0)
    if folder.is_done:
        return folder.student
    began = time.monotonic()
    random_heads = folder.path / "random_heads"
    with log_progress("writing the starting student"):
        write_start(plan.recipe, random_heads)
    heads = plan.recipe.heads_start
    if isinstance(heads, RidgeHeads):
        shards = shards_covering(plan.texts.shards, heads.rows)
        logger.info("fitting the heads to %d texts", sum(shard.rows for shard in shards))
        dataset = plan.texts.labeller().label_shards(shards)
        with log_progress("fitting the heads"):
            plan.call(fit_heads, random_heads, dataset, heads.regularisation, folder.student)
    else:
        publish(random_heads, folder.student)
    folder.mark_done()
    logger.info("start  %s heads, %.0f s", heads.type, time.monotonic() - began)
    return folder.student


def stage_start(plan: RunPlan, number: int, before: Path) -> Path:
    """Return the student that a stage starts from: `before`, or its copy with vision if the stage needs that first."""
    place = plan.folder(number).path / "start"
    if not plan.recipe.stages[number - 1].kind.needs_vision or (before / VISION).is_dir():
        return before
    if not place.is_dir():
        with log_progress("adding vision to the student"):
            plan.call(write_vision, before, place)
    return place


def write_start(recipe: Recipe, folder: Path) -> None:
    body = recipe.student.body
    tokenizer = load_tokenizer(locate(body.base, body.revision), body.revision)
    card = StudentCard(
        max_length=recipe.student.max_length, prompts=recipe.student.prompts, default_head=recipe.student.first_shown
    )
    save_student(build_student(recipe.student, recipe.seed), tokenizer, card, folder)


def write_vision(recipe: Recipe, before: Path, place: Path) -> None:
    """Write the student in `before` with a vision encoder to `place`."""
    assert recipe.student.vision
    student, tokenizer, card = load_student_folder(before)
    save_student(add_vision(student, tokenizer, recipe.student.vision, recipe.seed), tokenizer, card, place)


def fit_heads(recipe: Recipe, start: Path, dataset: Dataset, regularisation: float, destination: Path) -> None:
    """Fit the heads of the student in `start` to the labelled rows of `dataset`, and write it to `destination`.

    Raises:
        ConfigError: `start` is not a student folder.
    """
    torch.set_num_threads(recipe.stages[0].torch_threads)
    encoder = load_student(start, own_device())
    student = encoder.student
    fit = RidgeFit(student.body.config.hidden_size, student.dims[0])
    for batch in dataset.iter_batches(batch_size=None):
        target_NE = target(batch, recipe.teachers)
        for rows, prompt in by_prompt(batch):
            pooled_NH = encoder.pooled(batch["text"][rows].tolist(), prompt)
            fit.add(pooled_NH, target_NE[torch.from_numpy(rows)])
    set_heads(student.cpu(), fit, regularisation)
    save_student(student, encoder.tokenizer, encoder.card, destination)
