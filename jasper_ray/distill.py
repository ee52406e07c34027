"""The main job: corpus, targets, start, stages, student. Every step is skipped where it is finished already."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.data import Dataset

from jasper_ray.assets import locate
from jasper_ray.data import Manifest, Shard
from jasper_ray.data.checking import check_sources
from jasper_ray.data.order import batches_in_pass, plan_visits
from jasper_ray.dry_run import least_resources
from jasper_ray.evaluation import Record, SetData, load, read_sets, render, save
from jasper_ray.models.body import load_tokenizer
from jasper_ray.models.folder import StudentCard, save_student
from jasper_ray.models.student import build_student
from jasper_ray.pipelines.corpus import prepare_corpus
from jasper_ray.pipelines.heads import fit_heads
from jasper_ray.pipelines.label import Labeller
from jasper_ray.pipelines.measure import HeldOut, label_heldout, measure_student, measure_teachers
from jasper_ray.pipelines.session import ray_session
from jasper_ray.pipelines.targets import TargetCache
from jasper_ray.recipe import Recipe, RidgeHeads, Stage
from jasper_ray.runs import RunFolder, StageFolder, publish, stage_fingerprints
from jasper_ray.teachers import identity
from jasper_ray.training.job import StageJob
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
    sets = read_sets(recipe.evaluation.sets)
    check_sources(recipe.corpus)
    teachers = [{"name": t.name, "weight": t.weight, "identity": identity(t), **t.pinned()} for t in recipe.teachers]
    run.open(recipe, teachers)
    with ray_session(*least_resources(recipe)):
        return Distillation(recipe, run, teachers, sets).finish()


class Distillation:
    """One run inside a Ray session."""

    def __init__(self, recipe: Recipe, run: RunFolder, teachers: Sequence[dict[str, Any]], sets: Sequence[SetData]) -> None:
        self.recipe = recipe
        self.run = run
        self.manifest: Manifest = prepare_corpus(recipe.corpus, run.corpus, recipe.seed)
        self.prints = stage_fingerprints(recipe, teachers, self.manifest.fingerprint)
        self.labeller = self.labeller_in(run.targets(recipe), teachers)
        self.scoreboard = Scoreboard(run.evaluation, recipe, sets, self.manifest)
        tell_corpus(self.manifest)
        heldout = self.labeller_in(run.path / "heldout", teachers)
        self.heldout: HeldOut | None = label_heldout(heldout, self.manifest.heldout, recipe.student.heads[0])

    def labeller_in(self, cache: Path | None, teachers: Sequence[dict[str, Any]]) -> Labeller:
        """A labeller that keeps vectors below `cache`, or nowhere."""
        folders = [cache / f"{t['name']}-{t['identity']}" if cache else None for t in teachers]
        caches = tuple(TargetCache(folder) if folder else None for folder in folders)
        return Labeller(self.recipe.teachers, caches, self.run.corpus)

    def finish(self) -> Finished:
        """Every step that is not done yet, in order."""
        student = self.start()
        self.score("start", student)
        for number, stage in enumerate(self.recipe.stages, start=1):
            student = self.train(number, stage, student)
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
            write_start(self.recipe, plain)
            heads = self.recipe.heads_start
            if isinstance(heads, RidgeHeads):
                shards = first_rows(self.manifest.train, heads.rows)
                self.fit(plain, self.labeller.label_shards(shards), heads.regularisation, folder.student)
            else:
                publish(plain, folder.student)
            folder.mark_done()
            logger.info("start  %s heads, %.0f s", heads.type, time.monotonic() - began)
        return folder.student

    def train(self, number: int, stage: Stage, start: Path) -> Path:
        """One stage, to its end."""
        folder = self.run.stage(number, stage.name, self.prints[number])
        if folder.is_done:
            logger.info("%s  finished before", stage.name)
            return folder.student
        began = time.monotonic()
        job = self.job(stage, folder, start)
        run_stage(job, lambda step: self.stream(stage, step, job.total_steps))
        folder.mark_done()
        logger.info("%s  %d steps, %.0f s", stage.name, job.total_steps, time.monotonic() - began)
        return folder.student

    def job(self, stage: Stage, folder: StageFolder, start: Path) -> StageJob:
        return StageJob(
            stage=stage,
            start=start,
            folder=folder,
            total_steps=stage.total_steps(batches_in_pass(self.manifest.train, stage.batch_size)),
            target_parts=tuple((teacher.name, teacher.weight) for teacher in self.recipe.teachers),
            dropout=self.recipe.student.dropout,
            seed=self.recipe.seed,
        )

    def stream(self, stage: Stage, first_step: int, last_step: int) -> Dataset:
        """The labelled rows of a stage from `first_step` on, in the blocks that its workers take in turn."""
        visits = plan_visits(
            self.manifest.train,
            seed=self.recipe.seed,
            batch_size=stage.batch_size,
            first_step=first_step,
            last_step=last_step,
        )
        return self.labeller.stream(list(visits), stage.micro_rows)

    def score(self, moment: str, student: Path) -> None:
        """Measure a student, unless that was done."""
        if self.scoreboard.lacks(moment):
            threads = self.recipe.stages[0].torch_threads
            self.scoreboard.add(self.remote(measure_student, moment, student, self.heldout, self.scoreboard.sets, threads))

    def compare(self) -> None:
        """Measure what the student is compared with: the ridge fit on all texts, and the teachers."""
        if self.recipe.evaluation.ridge and self.heldout and self.scoreboard.lacks("ridge"):
            folder = self.run.stage(0, "start", self.prints[0]).path
            dataset = self.labeller.label_shards(self.manifest.train)
            self.fit(folder / "random_heads", dataset, RidgeHeads(type="ridge").regularisation, folder / "ridge")
            self.score("ridge", folder / "ridge")
        if self.recipe.evaluation.teachers and self.scoreboard.sets and self.scoreboard.lacks(self.recipe.teachers[0].name):
            threads = self.recipe.stages[0].torch_threads
            self.scoreboard.add(self.remote(measure_teachers, self.recipe.teachers, self.scoreboard.sets, threads))

    def fit(self, start: Path, dataset: Dataset, regularisation: float, destination: Path) -> None:
        self.remote(fit_heads, start, dataset, self.recipe.teachers, regularisation, destination)

    def remote(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function on the cluster, with what one training worker reserves."""
        stage = self.recipe.stages[0]
        task = ray.remote(function).options(num_cpus=stage.cpus_per_worker, num_gpus=stage.gpus_per_worker, max_retries=2)
        return ray.get(task.remote(*arguments))


@dataclass
class Scoreboard:
    """The run's scores: kept as JSON, so that a moment is measured once."""

    path: Path
    recipe: Recipe
    sets: Sequence[SetData]
    manifest: Manifest

    def __post_init__(self) -> None:
        self.records: list[Record] = load(self.path) if self.path.is_file() else []

    def lacks(self, moment: str) -> bool:
        """Whether a moment has not been measured on every set."""
        measured = {record.set for record in self.records if record.moment == moment}
        return not measured >= {data.name for data in self.sets} or not measured

    def add(self, records: Sequence[Record]) -> None:
        """Take in and keep the scores of a moment, in place of older ones."""
        moments = {record.moment for record in records}
        self.records = [record for record in self.records if record.moment not in moments] + list(records)
        save(self.records, self.path)

    def table(self) -> str:
        """Everything measured, in the order of the run."""
        order = ["start", "ridge", *(f"{n}-{stage.name}" for n, stage in enumerate(self.recipe.stages, start=1))]
        ranked = sorted(self.records, key=lambda record: order.index(record.moment) if record.moment in order else len(order))
        return render(ranked)


def write_start(recipe: Recipe, folder: Path) -> None:
    """The student with random heads."""
    body = recipe.student.body
    tokenizer = load_tokenizer(locate(body.base, body.revision), body.revision, body.trust_remote_code)
    card = StudentCard(
        max_length=recipe.student.max_length, prompts=recipe.student.prompts, default_head=recipe.student.first_shown
    )
    save_student(build_student(recipe.student, recipe.seed), tokenizer, card, folder)


def first_rows(shards: Sequence[Shard], rows: int) -> list[Shard]:
    """The first shards that together hold at least `rows` texts; all when there are fewer."""
    taken: list[Shard] = []
    for shard in shards:
        if sum(each.rows for each in taken) >= rows:
            break
        taken.append(shard)
    return taken


def tell_corpus(manifest: Manifest) -> None:
    """Say how many texts there are."""
    train = sum(shard.rows for shard in manifest.train)
    heldout = sum(shard.rows for shard in manifest.heldout)
    logger.info("corpus  %d training texts in %d shards, %d held out", train, len(manifest.train), heldout)
