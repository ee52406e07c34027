"""Labelling: a fold of teachers over a dataset of shards, each in its own pool of actors, each adding a column.

A block of the dataset is one shard of the corpus, from reading it to the last teacher. That makes a shard the unit
of everything: of sorting by length, of the cache, of what is repeated after a crash.
"""

# Shape legend: N rows of a shard, D size of a teacher's vectors.

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy, Dataset, TaskPoolStrategy

from jasper_ray.cli import log_progress
from jasper_ray.corpus.order import Visit
from jasper_ray.corpus.shards import Shard
from jasper_ray.labelling.target_cache import TargetCache
from jasper_ray.labelling.tasks import Batch, ReadShard, ReadTargets, arrange, summary, with_vectors
from jasper_ray.ray_runtime import configure_data, own_device
from jasper_ray.resources import Pool
from jasper_ray.teachers import OwnEncoder, OwnTeacher, Teacher, TeacherEncoder, open_teacher

logger = logging.getLogger(__name__)

LIGHT_TASK = {"num_cpus": 0.1, "compute": TaskPoolStrategy(2)}
"""Reading a shard takes milliseconds: two processes keep up with any pool, and whole processors would starve it."""

CUT_CPUS = 0.05
"""For cutting rows into blocks; another reservation than a LIGHT_TASK's, so that Ray never fuses the two: cutting
bundles rows, and what comes before it works on whole shards."""


@dataclass(frozen=True)
class Labeller:
    """Who labels and where vectors are kept: the same for every dataset of a run."""

    teachers: tuple[Teacher, ...]
    caches: tuple[TargetCache | None, ...]
    """One for each teacher; None labels anew every time."""
    corpus: Path
    """The folder that shard files are relative to."""

    def label(self, visits: Sequence[Visit]) -> Dataset:
        """A dataset with a block for each visit: id, text, prompt (empty: none), position, and for each teacher its
        vectors and its seconds a row (0 where they came from the cache). Nothing runs before it is consumed."""
        dataset = read_visits(visits, ReadShard(self.corpus))
        for teacher, cache in zip(self.teachers, self.caches, strict=True):
            dataset = add_teacher(dataset, teacher, cache, {visit.sha256 for visit in visits})
        return dataset

    def label_shards(self, shards: Sequence[Shard]) -> Dataset:
        """`label` for whole shards."""
        return self.label(whole_shards(shards))

    def fill(self, shards: Sequence[Shard], check: Callable[[dict[str, int]], None]) -> None:
        """Label what the caches do not hold of the shards, all in one go: each teacher is loaded once. `check` is given
        the size of each teacher's vectors, of the first shard that is held or labelled and of all that follow; it may
        raise."""
        held = set[str].intersection(*(cache.held() if cache else set() for cache in self.caches))
        for shard in [shard for shard in shards if shard.sha256 in held][:1]:
            check({t.name: c.size(shard.sha256) for t, c in zip(self.teachers, self.caches, strict=True) if c})
        missing = [shard for shard in shards if shard.sha256 not in held]
        if missing:
            self.fill_with(missing, check)

    def fill_with(self, missing: Sequence[Shard], check: Callable[[dict[str, int]], None]) -> None:
        """Label shards into the caches; the vectors themselves are dropped."""
        rows, done = sum(shard.rows for shard in missing), 0
        logger.info("labelling %d texts with %s", rows, ", ".join(teacher.name for teacher in self.teachers))
        labelled = self.label_shards(missing).map_batches(summary, batch_size=None, **LIGHT_TASK)
        with log_progress("labelling", lambda: f"{done:,} of {rows:,} texts"):
            for record in labelled.iter_rows():
                done += record.pop("rows")
                check(record)

    def stream(self, visits: Sequence[Visit], block_rows: int) -> Dataset:
        """`label` in the order of `position`, in blocks of exactly `block_rows`: training workers take them in turn."""
        arranged = self.label(visits).map_batches(arrange, batch_size=None, **LIGHT_TASK)
        return repartition_lightly(arranged, block_rows)


def read_visits(visits: Sequence[Visit], read: ReadShard) -> Dataset:
    """A dataset with a block for each visit: its shard's rows."""
    items = [asdict(visit) for visit in visits]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    configure_data(dataset.context)  # stages make their datasets in a process of Ray Train's
    dataset.context.target_max_block_size = None  # a block must stay one shard, however wide its vectors are
    return dataset.map_batches(read, batch_size=None, **LIGHT_TASK)


def whole_shards(shards: Sequence[Shard]) -> list[Visit]:
    """Visits that use all rows of the shards, as they are stored."""
    return [Visit(shard.file, shard.sha256, shard.rows, 0, 0, shard.rows, 0) for shard in shards]


def repartition_lightly(dataset: Dataset, block_rows: int) -> Dataset:
    """`dataset` in blocks of exactly `block_rows`, in order, by few tasks that reserve next to nothing.

    Ray's own repartition reserves a whole processor a task, runs as many tasks as blocks wait, and offers no setting
    for either. On a machine that teachers and trainers fill, it would run only after the last teacher, and the stream
    would arrive all at once; were only the reservation lowered, a process would start for every block that waits.
    """
    blocks = dataset.repartition(target_num_rows_per_block=block_rows, strict=True)
    cut = blocks._logical_plan.dag
    cut.ray_remote_args["num_cpus"] = CUT_CPUS
    object.__setattr__(cut, "compute", LIGHT_TASK["compute"])  # a frozen dataclass
    return blocks


def add_teacher(
    dataset: Dataset, teacher: Teacher | OwnTeacher, cache: TargetCache | None, shards: set[str]
) -> Dataset:
    """`dataset` with one more teacher's column; no model is loaded when the cache holds every shard."""
    if cache is not None and all(cache.holds(sha256) for sha256 in shards):
        return dataset.map_batches(ReadTargets(teacher.name, cache), batch_size=None, **LIGHT_TASK)
    pool = teacher.pool
    return dataset.map_batches(
        LabelShard,
        fn_constructor_args=(teacher, cache),
        batch_size=None,
        compute=pool_strategy(pool),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus_per_copy or None,
    )


def pool_strategy(pool: Pool) -> ActorPoolStrategy:
    """So many copies of an actor, each with a block at work and a block waiting."""
    return ActorPoolStrategy(min_size=pool.min_size, max_size=pool.max_size, max_tasks_in_flight_per_actor=2)


class LabelShard:
    """Adds a teacher's vectors: from its cache where they are, else from its model, and then into the cache."""

    def __init__(self, teacher: Teacher | OwnTeacher, cache: TargetCache | None) -> None:
        self.teacher = teacher
        self.cache = cache
        self.loading = ThreadPoolExecutor(1).submit(load, teacher)  # all teachers of a run load at the same time
        torch.set_num_threads(teacher.pool.torch_threads)

    def __call__(self, batch: Batch) -> Batch:
        shard = str(batch["shard"][0])
        if self.cache is not None and self.cache.holds(shard):
            return ReadTargets(self.teacher.name, self.cache)(batch)
        model = self.loading.result()
        started = time.perf_counter()
        prompts = [name or None for name in batch["prompt"]]
        vectors_ND = model.encode_mixed(batch["text"].tolist(), prompts).astype(np.float16)
        seconds = time.perf_counter() - started
        if self.cache is not None:
            self.cache.write(shard, batch["id"].tolist(), vectors_ND)
        return with_vectors(batch, self.teacher.name, vectors_ND, seconds / len(vectors_ND))


def load(teacher: Teacher | OwnTeacher) -> TeacherEncoder | OwnEncoder:
    """Its model, with the guards at its door."""
    device = own_device()
    return teacher.open(device) if isinstance(teacher, OwnTeacher) else open_teacher(teacher, device)
