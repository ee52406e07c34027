"""The main job: corpus, targets, start, stages, student. Every step is skipped where it is finished already."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray.data import Dataset

from jasper_ray.cli import log_progress
from jasper_ray.corpus.order import batches_in_pass, left_over, plan_visits
from jasper_ray.corpus.prepare import log_prepared, prepare
from jasper_ray.corpus.shards import CorpusManifest, Shard, shards_covering
from jasper_ray.corpus.texts import TEXTS
from jasper_ray.distill.baselines import fit_heads, measure_tower_ridge
from jasper_ray.distill.heldout import (
    HeldOut,
    HeldOutPairs,
    check_full_head,
    check_rows,
    measure_student,
    measure_teachers,
    read_heldout,
)
from jasper_ray.distill.precision import in_precisions, measuring, starts_ray
from jasper_ray.distill.students import Sight, base_weights, open_sight, write_start
from jasper_ray.encoders.precision import overridden_precision
from jasper_ray.evaluation import Scoreboard, SetData, read_sets, text_sets
from jasper_ray.labelling.labeller import Labeller
from jasper_ray.labelling.target_cache import TargetCache
from jasper_ray.ray_runtime import ray_session
from jasper_ray.recipe import CachedTargets, Recipe, RidgeHeads, Stage
from jasper_ray.recipe.checks import check_batches, check_measuring, check_patterns
from jasper_ray.recipe.dry_run import least_resources
from jasper_ray.recipe.machine import gpus_in_words, with_gpus
from jasper_ray.run_folder import RunFolder, publish, stage_fingerprints
from jasper_ray.sources.checks import check_sources
from jasper_ray.sources.pairs import check_pair_sources
from jasper_ray.teachers import described
from jasper_ray.training.batches import Feed, ImageFeed, TextFeed
from jasper_ray.training.job import StageJob, latest_step
from jasper_ray.training.stage import run_stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """What a run ends with."""

    student: Path
    """The finished student's folder."""
    table: str
    """Every score, for people."""


def distill(recipe: Recipe, folder: Path) -> Finished:
    """Run the recipe in `folder`, or finish what was begun there.

    Raises:
        ConfigError: something that the user has to mend; nothing that was finished is lost.
    """
    run = RunFolder(folder.absolute())
    with log_progress("checking the recipe"):
        sets = read_sets(recipe.evaluation.sets)
        check_measuring(recipe, sets)
        check_sources(recipe.corpus.sources)
        if recipe.images:
            check_pair_sources(recipe.images.sources, recipe.images.pixel_limit)
        check_patterns(recipe)
        overridden_precision()
        weights = [teacher.weights() for teacher in recipe.teachers]
    alone = starts_ray()
    recipe = on_gpus(recipe, torch.cuda.device_count() if alone and torch.cuda.is_available() else 0)
    run.open()
    with run.locked(), ray_session(*least_resources(recipe)):
        recipe = in_precisions(recipe, run.precisions(), measuring(alone))
        teachers = [described(*pair) for pair in zip(recipe.teachers, weights, strict=True)]
        run.check_teachers(teachers)
        return Distillation(pinned(recipe, teachers), run, teachers, sets).finish()


def on_gpus(recipe: Recipe, gpus: int) -> Recipe:
    """The recipe with every number of GPUs decided for this machine's; it is logged who takes how much of them."""
    recipe = with_gpus(recipe, gpus)
    if gpus:
        logger.info("%s", gpus_in_words(recipe, gpus))
    return recipe


def pinned(recipe: Recipe, teachers: Sequence[dict[str, Any]]) -> Recipe:
    """The recipe with its teachers at the commits that were found."""
    at_commits = (teacher.at(found["weights"]) for teacher, found in zip(recipe.teachers, teachers, strict=True))
    return recipe.model_copy(update={"teachers": tuple(at_commits)})


@dataclass(frozen=True)
class StageRows:
    """What a stage sees."""

    labeller: Labeller
    shards: Sequence[Shard]
    feed: Feed


class Distillation:
    """One run inside a Ray session."""

    def __init__(
        self, recipe: Recipe, run: RunFolder, teachers: Sequence[dict[str, Any]], sets: Sequence[SetData]
    ) -> None:
        self.recipe = recipe
        self.run = run
        with log_progress("preparing the corpus"):
            self.manifest: CorpusManifest = prepare(TEXTS, recipe.corpus, run.corpus, recipe.seed)
        check_batches(recipe, "texts", self.manifest.train)
        with log_progress("preparing the images"):
            self.sight: Sight | None = open_sight(recipe, run)
        if self.sight:
            check_batches(recipe, "images", self.sight.manifest.train)
        run.keep(recipe, teachers)
        sight = self.sight.identity() if self.sight else None
        self.prints = stage_fingerprints(recipe, teachers, self.manifest.fingerprint, base_weights(recipe), sight)
        self.labeller = self.labeller_in(run.targets(recipe), teachers)
        self.scoreboard = Scoreboard(run.evaluation, sets)
        log_prepared(TEXTS, self.manifest)
        self.heldout: HeldOut | None = self.label_first(teachers)

    def labeller_in(self, cache: Path | None, teachers: Sequence[dict[str, Any]]) -> Labeller:
        """A labeller that keeps vectors below `cache`, or nowhere; those of held-out texts it keeps in the run."""
        names = [f"{teacher['name']}-{teacher['identity']}" for teacher in teachers]
        heldout = [{shard.sha256: self.run.heldout / name for shard in self.manifest.heldout} for name in names]
        caches = [TargetCache(cache / n, apart) if cache else None for n, apart in zip(names, heldout, strict=True)]
        return Labeller(self.recipe.teachers, tuple(caches), self.run.corpus)

    def label_first(self, teachers: Sequence[dict[str, Any]]) -> HeldOut | None:
        """Label the held-out texts, and where vectors are kept every training text that a step to come will ask for:
        each teacher is then loaded once, and none takes processors from training."""
        check_rows(self.manifest.heldout)
        shards, labeller = list(self.manifest.heldout), self.labeller_in(self.run.heldout, teachers)
        if isinstance(self.recipe.targets, CachedTargets):
            shards, labeller = [*shards, *self.shards_to_come()], self.labeller
        labeller.fill(shards, partial(check_full_head, self.recipe.student.heads[0]))
        return read_heldout(self.run.path)

    def shards_to_come(self) -> list[Shard]:
        """The training shards whose vectors steps that are not done yet ask for."""
        train, start = self.manifest.train, self.run.stage(0, "start", self.prints[0])
        if self.compares_ridge and not (start.path / "ridge").is_dir():
            return list(train)
        used = set()
        if isinstance(self.recipe.heads_start, RidgeHeads) and not start.is_done:
            used |= {shard.sha256 for shard in shards_covering(train, self.recipe.heads_start.rows)}
        for number, stage in enumerate(self.recipe.stages, start=1):
            folder = self.run.stage(number, stage.name, self.prints[number])
            if stage.data == "texts" and not folder.is_done:
                steps = stage.total_steps(batches_in_pass(train, stage.batch_size))
                span = {"first_step": latest_step(folder.checkpoints), "last_step": steps}
                visits = plan_visits(train, seed=self.recipe.seed, batch_size=stage.batch_size, **span)
                used |= {visit.sha256 for visit in visits}
        return [shard for shard in train if shard.sha256 in used]

    def finish(self) -> Finished:
        """Every step that is not done yet, in order."""
        student = self.start()
        self.score("start", student)
        for number, stage in enumerate(self.recipe.stages, start=1):
            student = self.train(number, stage, self.begin(number, stage, student))
            self.score(f"{number}-{stage.name}", student)
        publish(student, self.run.student)
        self.compare()
        return Finished(self.run.student, self.scoreboard.table())

    def start(self) -> Path:
        """The student before training."""
        folder = self.run.stage(0, "start", self.prints[0])
        if not folder.is_done:
            began = time.monotonic()
            plain = folder.path / "random_heads"
            with log_progress("writing the student to start with"):
                write_start(self.recipe, plain)
            heads = self.recipe.heads_start
            if isinstance(heads, RidgeHeads):
                shards = shards_covering(self.manifest.train, heads.rows)
                logger.info("fitting the heads to %d texts", sum(shard.rows for shard in shards))
                self.fit(plain, self.labeller.label_shards(shards), heads.regularisation, folder.student)
            else:
                publish(plain, folder.student)
            folder.mark_done()
            logger.info("start  %s heads, %.0f s", heads.type, time.monotonic() - began)
        return folder.student

    def begin(self, number: int, stage: Stage, before: Path) -> Path:
        """The student that a stage begins with; one without vision gets it before a stage on images, and is measured
        with it."""
        if stage.data == "texts" or self.sight is None:
            return before
        place = self.run.stage(number, stage.name, self.prints[number]).path / "start"
        with log_progress("giving the student its vision"):
            start = self.sight.student(before, place, self.remote)
        if start != before:
            self.score(f"{number}-{stage.name} start", start)
        return start

    def train(self, number: int, stage: Stage, start: Path) -> Path:
        """One stage, to its end."""
        folder = self.run.stage(number, stage.name, self.prints[number])
        if folder.is_done:
            logger.info("%s  finished before", stage.name)
            return folder.student
        began = time.monotonic()
        rows = self.texts() if stage.data == "texts" else self.images(start)
        job = StageJob(
            stage=stage,
            start=start,
            folder=folder,
            total_steps=stage.total_steps(batches_in_pass(rows.shards, stage.batch_size)),
            feed=rows.feed,
            dropout=self.recipe.student.dropout,
            seed=self.recipe.seed,
        )
        tell_steps(stage, job.total_steps, rows.shards)
        run_stage(job, partial(stream_rows, rows.labeller, rows.shards, job))
        folder.mark_done()
        shutil.rmtree(folder.checkpoints, ignore_errors=True)  # several times the student, and done with
        logger.info("%s  %d steps, %.0f s", stage.name, job.total_steps, time.monotonic() - began)
        return folder.student

    def texts(self) -> StageRows:
        """What a stage on texts sees."""
        parts = tuple((teacher.name, teacher.weight) for teacher in self.recipe.teachers)
        return StageRows(self.labeller, self.manifest.train, TextFeed(parts))

    def images(self, start: Path) -> StageRows:
        """What a stage on images sees that begins with the student in `start`."""
        assert self.sight is not None, "a recipe with such a stage has images"
        feed = ImageFeed(self.sight.vision.image_tokens, self.recipe.student.heads)
        return StageRows(self.sight.labeller(start), self.sight.manifest.train, feed)

    def score(self, moment: str, student: Path) -> None:
        """Measure a student; its scores are kept beside it."""
        pairs = self.sight.heldout if self.sight else None
        given = self.heldout, pairs, self.scoreboard.sets, self.recipe.evaluation.precision, self.threads
        self.scoreboard.take(moment, student, lambda: self.remote(measure_student, moment, student, *given))

    def compare(self) -> None:
        """Measure what the student is compared with: the ridge fit on all texts, and the teachers."""
        if self.compares_ridge:
            self.score("ridge", self.ridge())
        if self.recipe.evaluation.ridge and self.sight and self.sight.heldout:
            self.compare_tower(self.sight, self.sight.heldout)
        sets = text_sets(self.scoreboard.sets)
        if self.recipe.evaluation.teachers and sets:
            beside = self.run.path / "teachers"
            self.scoreboard.take(
                "the teachers",
                beside,
                lambda: self.remote(measure_teachers, self.recipe.teachers, sets, self.threads),
            )

    def compare_tower(self, sight: Sight, pairs: HeldOutPairs) -> None:
        """Measure a ridge fit from the tower, as the first stage on images found it, to the captions' vectors."""
        number = next(n for n, stage in enumerate(self.recipe.stages, start=1) if stage.data == "images")
        start = self.run.stage(number, self.recipe.stages[number - 1].name, self.prints[number]).path / "start"
        dataset = sight.labeller(start).label_shards(sight.manifest.train)
        moment = "tower ridge"
        self.scoreboard.take(
            moment,
            start.with_name("tower-ridge"),
            lambda: self.remote(
                measure_tower_ridge, moment, start, dataset, pairs, self.recipe.evaluation.precision, self.threads
            ),
        )

    @property
    def compares_ridge(self) -> bool:
        """Whether a ridge fit on all texts is measured."""
        return self.recipe.evaluation.ridge and bool(self.manifest.heldout)

    @property
    def threads(self) -> int:
        """Torch's threads for what runs instead of a training worker."""
        return self.recipe.stages[0].torch_threads

    def ridge(self) -> Path:
        """The student before training with heads fitted to all training texts."""
        folder = self.run.stage(0, "start", self.prints[0]).path
        if not (folder / "ridge").is_dir():
            logger.info("fitting heads to all training texts, to compare with")
            dataset = self.labeller.label_shards(self.manifest.train)
            regularisation = RidgeHeads(type="ridge").regularisation  # for many texts, however few the start was given
            self.fit(folder / "random_heads", dataset, regularisation, folder / "ridge")
        return folder / "ridge"

    def fit(self, start: Path, dataset: Dataset, regularisation: float, destination: Path) -> None:
        with log_progress("fitting the heads"):
            self.remote(fit_heads, start, dataset, self.recipe.teachers, regularisation, destination, self.threads)

    def remote(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function on the cluster, with what one training worker reserves."""
        stage = self.recipe.stages[0]
        calls = 1 if stage.gpus else 0  # a process that lives on would keep the GPU's memory
        task = ray.remote(max_calls=calls)(function).options(
            num_cpus=stage.cpus_per_worker, num_gpus=stage.gpus, max_retries=2
        )
        return ray.get(task.remote(*arguments))


def stream_rows(labeller: Labeller, shards: Sequence[Shard], job: StageJob, first_step: int) -> Dataset:
    """The labelled rows of a stage from `first_step` on, in the blocks that its workers take in turn."""
    span = {"first_step": first_step, "last_step": job.total_steps}
    visits = plan_visits(shards, seed=job.seed, batch_size=job.stage.batch_size, **span)
    return labeller.stream(list(visits), job.stage.micro_rows)


def tell_steps(stage: Stage, steps: int, shards: Sequence[Shard]) -> None:
    """Say how much a stage will see, and what a pass leaves out."""
    rows, dropped = steps * stage.batch_size, left_over(shards, stage.batch_size)
    logger.info(
        "%s  %d steps of %d %s: %d in all; a pass leaves out the last %d, which fill no batch",
        *(stage.name, steps, stage.batch_size, stage.data, rows, dropped),
    )
