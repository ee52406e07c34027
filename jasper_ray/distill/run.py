"""The main job, step by step; each step is skipped if it is done already."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ray.data import Dataset

from jasper_ray.corpus.order import left_over, plan_visits
from jasper_ray.corpus.shards import Shard, shards_covering
from jasper_ray.distill.heldout import HeldOut, check_full_head, check_rows
from jasper_ray.distill.measuring import compares_ridge, measure, measure_baselines
from jasper_ray.distill.plan import RunPlan, prepare
from jasper_ray.distill.preflight import preflight, resolve
from jasper_ray.distill.students import stage_start, starting_student
from jasper_ray.evaluation import Scoreboard
from jasper_ray.labelling.labeller import Labeller
from jasper_ray.ray_runtime import ray_session
from jasper_ray.recipe import CachedTargets, Recipe, RidgeHeads
from jasper_ray.recipe.dry_run import least_resources
from jasper_ray.run_folder import RunFolder, publish
from jasper_ray.training.job import StageJob, latest_step
from jasper_ray.training.stage import run_stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """The result of a run."""

    student: Path
    """The finished student's folder."""
    table: str
    """All scores, for people."""


def distill(recipe: Recipe, folder: Path) -> Finished:
    """Run the recipe in `folder`, or continue the run there.

    Raises:
        ConfigError: the user has to fix something; nothing that was finished is lost.
    """
    run = RunFolder(folder.absolute())
    checked = preflight(recipe, run)
    with run.locked(), ray_session(*least_resources(checked.recipe)):
        plan = prepare(run, *resolve(checked, run))
        heldout = label_first(plan)
        board = Scoreboard(run.evaluation, checked.sets)
        score = partial(measure, plan, board, heldout)
        student = starting_student(plan)
        score("start", student)
        for number, stage in enumerate(recipe.stages, start=1):
            moment = f"{number}-{stage.name}"
            start = stage_start(plan, number, student)
            if start != student:
                score(f"{moment} start", start)
            student = train_stage(plan, number, start)
            score(moment, student)
        publish(student, run.student)
        measure_baselines(plan, board, heldout)
    return Finished(run.student, board.table())


def label_first(plan: RunPlan) -> list[HeldOut]:
    """Label the held-out texts and, if targets are cached, every training text that a later step needs.

    Each teacher is then loaded once, and none takes processors from training. Returns the held-out rows of every kind.
    """
    texts = plan.texts
    check_rows(texts.manifest.heldout)
    shards, labeller = list(texts.manifest.heldout), texts.labeller_with(plan.run.heldout)
    if isinstance(plan.recipe.targets, CachedTargets):
        shards, labeller = [*shards, *shards_to_come(plan)], texts.labeller()
    labeller.fill(shards, partial(check_full_head, plan.recipe.student.heads[0]))
    return [rows for data in plan.data.values() if (rows := data.heldout())]


def shards_to_come(plan: RunPlan) -> list[Shard]:
    """List the training shards whose vectors a step that is not done yet needs."""
    train, start, heads = plan.texts.shards, plan.folder(0), plan.recipe.heads_start
    if compares_ridge(plan) and not (start.path / "ridge").is_dir():
        return list(train)
    used = set()
    if isinstance(heads, RidgeHeads) and not start.is_done:
        used |= {shard.sha256 for shard in shards_covering(train, heads.rows)}
    for number, stage in enumerate(plan.recipe.stages, start=1):
        folder = plan.folder(number)
        if not stage.kind.own_targets and not folder.is_done:
            span = {"first_step": latest_step(folder.checkpoints), "last_step": plan.total_steps(stage)}
            visits = plan_visits(train, seed=plan.recipe.seed, batch_size=stage.batch_size, **span)
            used |= {visit.sha256 for visit in visits}
    return [shard for shard in train if shard.sha256 in used]


def train_stage(plan: RunPlan, number: int, start: Path) -> Path:
    """Train one stage to its end, unless it is done, and return its student."""
    stage, folder = plan.recipe.stages[number - 1], plan.folder(number)
    if folder.is_done:
        logger.info("%s  already done, skipping", stage.name)
        return folder.student
    began = time.monotonic()
    rows = plan.data[stage.data]
    job = StageJob(
        stage=stage,
        start=start,
        folder=folder,
        total_steps=plan.total_steps(stage),
        feed=rows.feed(),
        dropout=plan.recipe.student.dropout,
        seed=plan.recipe.seed,
    )
    logger.info(
        "%s  %d steps of %d %s, %d in all; a pass drops the last %d, too few for a batch",
        *(stage.name, job.total_steps, stage.batch_size, stage.data, job.total_steps * stage.batch_size),
        left_over(rows.shards, stage.batch_size),
    )
    run_stage(job, partial(stream_rows, rows.labeller(start), rows.shards, job))
    folder.mark_done()
    shutil.rmtree(folder.checkpoints, ignore_errors=True)  # several times the student, and no longer needed
    logger.info("%s  %d steps, %.0f s", stage.name, job.total_steps, time.monotonic() - began)
    return folder.student


def stream_rows(labeller: Labeller, shards: Sequence[Shard], job: StageJob, first_step: int) -> Dataset:
    """Stream the labelled rows of a stage from `first_step` on, in the blocks that its workers take in turn."""
    span = {"first_step": first_step, "last_step": job.total_steps}
    visits = plan_visits(shards, seed=job.seed, batch_size=job.stage.batch_size, **span)
    return labeller.stream(list(visits), job.stage.micro_rows)
