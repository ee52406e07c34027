"""Labelling: a fold of teachers over a dataset of shards, each in its own pool of actors, each adding a column.

    visits ─▶ shards ─▶ teachers' vectors (from caches or pools) ─▶ rows in a stage's order ─▶ blocks ─decode─▶ pixels

A block of the dataset is one shard of the prepared data, from reading it to the last teacher. So a shard is the unit of
sorting by length, of the cache, and of the work that is repeated after a crash. Images are decoded last, a micro-batch
at a time: what waits in between is files, a tenth of the size of pixels.
"""

# Shape legend: N rows of a shard, D size of the teacher's vectors.

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy, Dataset, TaskPoolStrategy

from jasper_ray.cli import log_progress
from jasper_ray.corpus.order import Visit
from jasper_ray.corpus.shards import Shard
from jasper_ray.images import Preprocessing
from jasper_ray.labelling.target_cache import TargetCache
from jasper_ray.labelling.tasks import Batch, Decode, ReadShard, ReadTargets, arrange, summary, with_vectors
from jasper_ray.ray_runtime import configure_data, own_device, repartition_with
from jasper_ray.resources import Pool
from jasper_ray.teachers import CaptionEncoder, CaptionTeacher, Teacher, TeacherEncoder

logger = logging.getLogger(__name__)

LIGHT_TASK = {"num_cpus": 0.1, "compute": TaskPoolStrategy(2)}
"""Resources of reading a shard, which takes milliseconds: two processes keep up with any pool, and whole processors
would starve it."""

BLOCK_CPUS = 0.05
"""Processors for cutting rows into blocks; not those of a LIGHT_TASK, so that Ray never fuses the two: cutting bundles
rows, and what comes before it works on whole shards."""


@dataclass(frozen=True)
class Decoding:
    """Images of rows become pixels, in a pool of actors."""

    preprocessing: Preprocessing
    pixel_limit: int
    """Pixels of the largest image."""
    pool: Pool


@dataclass(frozen=True)
class Labeller:
    """Teachers, the caches of their vectors, and the prepared data they label."""

    teachers: tuple[Teacher | CaptionTeacher, ...]
    caches: tuple[TargetCache | None, ...]
    """A cache for each teacher; without one it labels a shard again every time."""
    folder: Path
    """Folder that shard files are relative to."""
    decoding: Decoding | None = None
    """Decoding of the rows' images; None for rows without images."""

    def label(self, visits: Sequence[Visit]) -> Dataset:
        """Return a dataset with a block for each visit: id, text, prompt (empty: none), position, image if there is
        one, and for each teacher its vectors and its seconds a row (0 from the cache). Nothing runs before it is
        consumed."""
        dataset = read_visits(visits, self.folder)
        for teacher, cache in zip(self.teachers, self.caches, strict=True):
            dataset = add_teacher(dataset, teacher, cache, {visit.sha256 for visit in visits})
        return dataset

    def label_shards(self, shards: Sequence[Shard]) -> Dataset:
        """Label whole shards, as `label` does, with pixels for images."""
        return self.decoded(self.label(whole_shards(shards)))

    def stream(self, visits: Sequence[Visit], block_rows: int) -> Dataset:
        """Label in the order of `position`, in blocks of exactly `block_rows`, with pixels for images."""
        arranged = self.label(visits).map_batches(arrange, batch_size=None, **LIGHT_TASK)
        return self.decoded(repartition_with(arranged, block_rows, BLOCK_CPUS, LIGHT_TASK["compute"]))

    def decoded(self, dataset: Dataset) -> Dataset:
        """Decode the dataset's images, if it has any, by actors: tasks would start a process for every block."""
        if self.decoding is None:
            return dataset
        pool = self.decoding.pool
        return dataset.map_batches(
            Decode,
            fn_constructor_args=(self.decoding.preprocessing, self.decoding.pixel_limit),
            batch_size=None,
            compute=pool_strategy(pool),
            num_cpus=pool.cpus,
        )

    def fill(self, shards: Sequence[Shard], check: Callable[[dict[str, int]], None]) -> None:
        """Label the shards that the caches lack, all in one go, so that each teacher is loaded once.

        `check` gets the size of each teacher's vectors, of the first shard that a cache holds and of every shard that
        is labelled; it may raise.
        """
        held = set[str].intersection(*(cache.held() if cache else set() for cache in self.caches))
        for shard in [shard for shard in shards if shard.sha256 in held][:1]:
            check({t.name: c.size(shard.sha256) for t, c in zip(self.teachers, self.caches, strict=True) if c})
        missing = [shard for shard in shards if shard.sha256 not in held]
        if not missing:
            return
        rows, done = sum(shard.rows for shard in missing), 0
        logger.info("labelling %d texts with %s", rows, ", ".join(teacher.name for teacher in self.teachers))
        labelled = self.label(whole_shards(missing)).map_batches(summary, batch_size=None, **LIGHT_TASK)
        with log_progress("labelling", lambda: f"{done:,} of {rows:,} texts"):
            for record in labelled.iter_rows():
                done += record.pop("rows")
                check(record)


def whole_shards(shards: Sequence[Shard]) -> list[Visit]:
    """Return visits that use all rows of the shards, as they are stored."""
    return [Visit(shard.file, shard.sha256, shard.rows, 0, 0, shard.rows, 0) for shard in shards]


def read_visits(visits: Sequence[Visit], folder: Path) -> Dataset:
    """Return a dataset with a block for each visit: its shard's rows."""
    items = [asdict(visit) for visit in visits]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    configure_data(dataset.context)  # stages make their datasets in a process of Ray Train's
    dataset.context.target_max_block_size = None  # a block must stay one shard, however wide its vectors are
    return dataset.map_batches(ReadShard(folder), batch_size=None, **LIGHT_TASK)


def add_teacher(
    dataset: Dataset, teacher: Teacher | CaptionTeacher, cache: TargetCache | None, shards: set[str]
) -> Dataset:
    """Add a teacher's columns to the dataset; no model is loaded if the cache holds every shard."""
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
    """Return Ray Data's strategy for a pool; each actor has a block in work and a block waiting."""
    return ActorPoolStrategy(min_size=pool.min_size, max_size=pool.max_size, max_tasks_in_flight_per_actor=2)


class LabelShard:
    """An actor that adds a teacher's vectors, from its cache or else from its model, and then into the cache."""

    def __init__(self, teacher: Teacher | CaptionTeacher, cache: TargetCache | None) -> None:
        self.teacher = teacher
        self.cache = cache
        # in a thread: all teachers of a run load side by side
        self.loading: Future[TeacherEncoder | CaptionEncoder]
        self.loading = ThreadPoolExecutor(1).submit(teacher.open, own_device())
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
