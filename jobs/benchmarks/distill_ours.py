"""Our side of the distilling benchmark: a run's stages under Ray, and each part alone in a plain loop.

Each function of the benchmark runs in a fresh process and returns its timings.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial

import numpy as np

from benchmarks.distill_workload import Workload
from benchmarks.lone_trainer import WARM_UP_STEPS, lone_worker, run_steps
from jasper_ray.corpus.order import Visit, plan_visits
from jasper_ray.corpus.prepare import prepare as prepare_data
from jasper_ray.corpus.texts import TEXTS
from jasper_ray.distill.run import stream_rows
from jasper_ray.distill.students import write_start
from jasper_ray.labelling.labeller import Labeller, LabelShard
from jasper_ray.labelling.target_cache import TargetCache
from jasper_ray.labelling.tasks import Batch, ReadShard, ReadTargets, arrange, vector_column
from jasper_ray.models.folder import load_student_folder
from jasper_ray.ray_runtime import ray_session
from jasper_ray.recipe.dry_run import least_resources
from jasper_ray.run_folder import StageFolder
from jasper_ray.training.batches import TextFeed
from jasper_ray.training.job import StageJob
from jasper_ray.training.stage import run_stage

WARM_UP_ROWS = 64
"""Texts that a lone teacher labels before the clock starts."""


def prepare(workload: Workload) -> dict[str, float]:
    """Prepare the corpus and the student before training, for all sides; the time counts for none."""
    with ray_session(*least_resources(workload.recipe)):
        prepare_data(TEXTS, workload.recipe.corpus, workload.corpus, workload.recipe.seed)
    write_start(workload.recipe, workload.start)
    return {}


def train_live(workload: Workload, rows: int, passes: int) -> dict[str, float]:
    """Run a stage whose texts are labelled as it trains, without a file of vectors."""
    return train(workload, rows, passes, tuple(None for _ in workload.recipe.teachers))


def train_cached(workload: Workload, rows: int, passes: int) -> dict[str, float]:
    """Run the same stage with targets from the cache."""
    return train(workload, rows, passes, tuple(TargetCache(workload.targets(t.name)) for t in workload.recipe.teachers))


def train(workload: Workload, rows: int, passes: int, caches: tuple[TargetCache | None, ...]) -> dict[str, float]:
    """Run the stage from the start of Ray to the finished student; time the steps and the trainer's waiting."""
    job = stage_job(workload, rows * passes)
    labeller = Labeller(workload.recipe.teachers, caches, workload.corpus)
    with ray_session(*least_resources(workload.recipe)):
        run_stage(job, partial(stream_rows, labeller, workload.shards(rows), job))
    records = [json.loads(line) for line in job.folder.metrics.read_text(encoding="utf-8").splitlines()]
    seconds = sum(record["seconds"] for record in records)
    return {
        "stepping_s": seconds,
        "waiting_share": sum(record["wait_share"] * record["seconds"] for record in records) / seconds,
        "last_loss": records[-1]["total"],
    }


def stage_job(workload: Workload, rows: int) -> StageJob:
    """Describe the stage over `rows` rows, in a new folder."""
    return StageJob(
        stage=workload.stage,
        start=workload.start,
        folder=StageFolder(workload.folder / "stages" / uuid.uuid4().hex),
        total_steps=rows // workload.stage.batch_size,
        feed=TextFeed(tuple((teacher.name, teacher.weight) for teacher in workload.recipe.teachers)),
        dropout=workload.recipe.student.dropout,
        seed=workload.recipe.seed,
    )


def label_alone(workload: Workload, number: int, rows: int) -> dict[str, float]:
    """Label with one teacher and all threads; write the cache after the clock has stopped."""
    import torch

    began = time.perf_counter()
    teacher = workload.recipe.teachers[number]
    label = LabelShard(teacher, None)
    torch.set_num_threads(workload.threads)
    read = ReadShard(workload.corpus)
    whole = [Visit(shard.file, shard.sha256, shard.rows, 0, 0, shard.rows, 0) for shard in workload.shards(rows)]
    batches = [read(as_batch(visit)) for visit in whole]
    label({name: column[:WARM_UP_ROWS] for name, column in batches[0].items()})
    ready = time.perf_counter()
    labelled = [label(batch) for batch in batches]
    seconds = time.perf_counter() - ready
    cache = TargetCache(workload.targets(teacher.name))
    for batch in labelled:
        cache.write(str(batch["shard"][0]), batch["id"].tolist(), batch[vector_column(teacher.name)])
    return {"texts_per_s": rows / seconds, "start_up_s": ready - began}


def train_alone(workload: Workload, rows: int, passes: int) -> dict[str, float]:
    """Run the trainer's loop with all threads on targets in memory; texts are tokenised beside it."""
    import torch

    began = time.perf_counter()
    job = stage_job(workload, rows * passes)
    student, tokenizer, card = load_student_folder(job.start)
    plan = {"seed": job.seed, "batch_size": workload.stage.batch_size, "first_step": 0, "last_step": job.total_steps}
    batches = list(cached_batches(workload, plan_visits(workload.shards(rows), **plan)))
    warm_up = min(WARM_UP_STEPS, job.total_steps - 1)
    with lone_worker(job, student, torch.device("cpu"), workload.threads) as worker:
        from jasper_ray.training.loop import micro_batches

        stream = micro_batches(job, tokenizer, card, iter(batches))
        run_steps(worker, stream, 0, warm_up)
        ready = time.perf_counter()
        seconds = run_steps(worker, stream, warm_up, job.total_steps)
    texts = (job.total_steps - warm_up) * workload.stage.batch_size
    return {"texts_per_s": texts / seconds, "start_up_s": ready - began}


def cached_batches(workload: Workload, planned: Iterable[Visit]) -> Iterator[Batch]:
    """Read the visits as a stage's pipeline does, with targets from the cache, as whole micro-batches."""
    rows = workload.stage.micro_rows
    for visit in planned:
        batch = ReadShard(workload.corpus)(as_batch(visit))
        for teacher in workload.recipe.teachers:
            batch = ReadTargets(teacher.name, TargetCache(workload.targets(teacher.name)))(batch)
        batch = arrange(batch)
        for first in range(0, len(batch["id"]), rows):
            yield {name: column[first : first + rows] for name, column in batch.items()}


def as_batch(visit: Visit) -> Batch:
    """Write a visit in the form in which Ray Data passes it to `ReadShard`."""
    return {name: np.array([value]) for name, value in asdict(visit).items()}
