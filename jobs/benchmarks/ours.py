"""Our side of the distilling benchmark: stages under Ray as a run has them, and each part alone in a plain loop.

Every function here is called in a process of its own, and answers with what it timed inside.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial

import numpy as np

from benchmarks.alone import WARM_UP_STEPS, lone_worker, run_steps
from benchmarks.work import Work
from jasper_ray.corpus.order import Visit, plan_visits
from jasper_ray.corpus.prepare import prepare_corpus
from jasper_ray.corpus.shards import Shard
from jasper_ray.distill.run import stream_rows
from jasper_ray.distill.students import write_start
from jasper_ray.labelling.columns import vector_column
from jasper_ray.labelling.labeller import Labeller, LabelShard
from jasper_ray.labelling.target_cache import TargetCache
from jasper_ray.labelling.tasks import Batch, ReadShard, ReadTargets, arrange
from jasper_ray.models.folder import load_student_folder
from jasper_ray.ray_runtime import ray_session
from jasper_ray.recipe.dry_run import least_resources
from jasper_ray.run_folder import StageFolder
from jasper_ray.training.batches import TextFeed
from jasper_ray.training.job import StageJob
from jasper_ray.training.stage import run_stage

WARM_UP_ROWS = 64
"""Texts a lone teacher labels before its clock starts."""


def prepare(work: Work) -> dict[str, float]:
    """The corpus and the student before training, for all sides; no side's time."""
    with ray_session(*least_resources(work.recipe)):
        prepare_corpus(work.recipe.corpus, work.corpus, work.recipe.seed)
    write_start(work.recipe, work.start)
    return {}


def train_live(work: Work, rows: int, passes: int) -> dict[str, float]:
    """A stage whose texts are labelled as it goes, no vector touching a disk."""
    return train(work, rows, passes, tuple(None for _ in work.recipe.teachers))


def train_cached(work: Work, rows: int, passes: int) -> dict[str, float]:
    """The same stage with targets from the cache."""
    return train(work, rows, passes, tuple(TargetCache(work.targets(t.name)) for t in work.recipe.teachers))


def train(work: Work, rows: int, passes: int, caches: tuple[TargetCache | None, ...]) -> dict[str, float]:
    """The stage, from starting Ray to the finished student; the share of its time that the trainer waited for texts."""
    job = stage_job(work, rows * passes)
    labeller = Labeller(work.recipe.teachers, caches, work.corpus)
    with ray_session(*least_resources(work.recipe)):
        run_stage(job, partial(stream_rows, labeller, work.shards(rows), job))
    records = [json.loads(line) for line in job.folder.metrics.read_text(encoding="utf-8").splitlines()]
    seconds = sum(record["seconds"] for record in records)
    return {
        "stepping_s": seconds,
        "waiting_share": sum(record["wait_share"] * record["seconds"] for record in records) / seconds,
        "last_loss": records[-1]["total"],
    }


def stage_job(work: Work, rows: int) -> StageJob:
    """The stage over `rows` rows, in a folder of its own."""
    return StageJob(
        stage=work.stage,
        start=work.start,
        folder=StageFolder(work.folder / "stages" / uuid.uuid4().hex),
        total_steps=rows // work.stage.batch_size,
        feed=TextFeed(tuple((teacher.name, teacher.weight) for teacher in work.recipe.teachers)),
        dropout=work.recipe.student.dropout,
        seed=work.recipe.seed,
    )


def label_alone(work: Work, number: int, rows: int) -> dict[str, float]:
    """One teacher with all threads; its vectors go into the cache once the clock has stopped."""
    import torch

    began = time.perf_counter()
    teacher = work.recipe.teachers[number]
    label = LabelShard(teacher, None)
    torch.set_num_threads(work.threads)
    read = ReadShard(work.corpus)
    batches = [read(as_batch(whole(shard))) for shard in work.shards(rows)]
    label({name: column[:WARM_UP_ROWS] for name, column in batches[0].items()})
    ready = time.perf_counter()
    labelled = [label(batch) for batch in batches]
    seconds = time.perf_counter() - ready
    cache = TargetCache(work.targets(teacher.name))
    for batch in labelled:
        cache.write(str(batch["shard"][0]), batch["id"].tolist(), batch[vector_column(teacher.name)])
    return {"texts_per_s": rows / seconds, "start_up_s": ready - began}


def train_alone(work: Work, rows: int, passes: int) -> dict[str, float]:
    """The trainer's own loop with all threads, on targets that lie in memory; texts are tokenised beside it."""
    import torch

    began = time.perf_counter()
    job = stage_job(work, rows * passes)
    student, tokenizer, card = load_student_folder(job.start)
    plan = {"seed": job.seed, "batch_size": work.stage.batch_size, "first_step": 0, "last_step": job.total_steps}
    blocks = cached_blocks(work, plan_visits(work.shards(rows), **plan))
    warm_up = min(WARM_UP_STEPS, job.total_steps - 1)
    with lone_worker(job, student, torch.device("cpu"), work.threads) as worker:
        from jasper_ray.training.loop import micro_batches

        stream = micro_batches(job, tokenizer, card, iter(blocks))
        run_steps(worker, stream, 0, warm_up)
        ready = time.perf_counter()
        seconds = run_steps(worker, stream, warm_up, job.total_steps)
    texts = (job.total_steps - warm_up) * work.stage.batch_size
    return {"texts_per_s": texts / seconds, "start_up_s": ready - began}


def cached_blocks(work: Work, planned: Iterable[Visit]) -> list[Batch]:
    """The labelled rows of the visits, in training order, a micro-batch each; shards hold whole micro-batches."""
    rows = work.stage.micro_rows
    blocks = [labelled_rows(work, visit) for visit in planned]
    return [
        {name: column[first : first + rows] for name, column in block.items()}
        for block in blocks
        for first in range(0, len(block["id"]), rows)
    ]


def labelled_rows(work: Work, visit: Visit) -> Batch:
    """What a stage's pipeline makes of a visit, targets from the cache."""
    batch = ReadShard(work.corpus)(as_batch(visit))
    for teacher in work.recipe.teachers:
        batch = ReadTargets(teacher.name, TargetCache(work.targets(teacher.name)))(batch)
    return arrange(batch)


def whole(shard: Shard) -> Visit:
    return Visit(shard.file, shard.sha256, shard.rows, 0, 0, shard.rows, 0)


def as_batch(visit: Visit) -> Batch:
    """A visit as Ray Data hands it to `ReadShard`."""
    return {name: np.array([value]) for name, value in asdict(visit).items()}
