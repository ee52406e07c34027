"""One stage on Ray Train: workers, restarts, the stream of labelled rows, and the driver's progress lines."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.train
from ray.data import Dataset, ExecutionOptions
from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from jasper_ray.atomic import write_text
from jasper_ray.config import ConfigError, config_message
from jasper_ray.ray_runtime import fit_trainer
from jasper_ray.training.job import StageJob, latest_step
from jasper_ray.training.metrics import log_steps

OpenStream = Callable[[int], Dataset]
"""Makes the labelled rows of a stage from a step on."""
Item = TypeVar("Item")


def run_stage(job: StageJob, open_stream: OpenStream) -> None:
    """Train a stage to its end; a lost worker group starts again at the last checkpoint.

    Raises:
        ConfigError: the stage stopped for a reason that the user has to fix.
    """
    job.folder.create(job.stage, job.total_steps)
    reason = stop_file(job)
    reason.unlink(missing_ok=True)
    state = Path(tempfile.mkdtemp(prefix="jasper_ray-"))  # Ray Train's own state; ours is in the stage folder
    try:
        with log_steps(job.folder.metrics, job.stage.name, job.stage.data, job.total_steps):
            fit_trainer(make_trainer(job, open_stream, state))
    except Exception as error:
        if reason.is_file():
            raise ConfigError(reason.read_text(encoding="utf-8")) from error
        raise
    finally:
        shutil.rmtree(state, ignore_errors=True)
    if reason.is_file():
        raise ConfigError(reason.read_text(encoding="utf-8"))


def make_trainer(job: StageJob, open_stream: OpenStream, state: Path) -> TorchTrainer:
    """Make Ray Train's trainer for a stage."""
    stage = job.stage
    on_gpu = stage.gpus > 0
    resources = {"CPU": stage.cpus_per_worker} | ({"GPU": stage.gpus} if on_gpu else {})
    return TorchTrainer(
        work,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=stage.workers, use_gpu=on_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=stage.name,
            storage_path=str(state),
            failure_config=FailureConfig(max_failures=stage.max_restarts),
            worker_runtime_env={"env_vars": worker_environment(on_gpu)},
        ),
        datasets={"train": partial(rows_to_come, job, open_stream)},
        dataset_config=DataConfig(execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False),
    )


def rows_to_come(job: StageJob, open_stream: OpenStream) -> Dataset:
    """Open the stage's rows from its last checkpoint on; Ray Train calls this for every worker group that it starts."""
    step = latest_step(job.folder.checkpoints)
    if step == job.total_steps:  # only the student is left to write; nobody reads these rows
        return ray.data.range(job.stage.workers)
    return open_stream(step)


def worker_environment(on_gpu: bool) -> dict[str, str]:
    """Return the environment variables that a worker needs before it imports anything."""
    return {"TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cuda" if on_gpu else "cpu"}


def work(config: dict[str, Any]) -> None:
    """Run a worker of a stage; torch and DeepSpeed are imported only here, in the environment made for them.

    Rows are requested first: teachers that have to be loaded then load while the engine is built.
    """
    job: StageJob = config["job"]
    if stop_file(job).is_file():  # the previous worker group met an error that a restart cannot fix
        return
    rows = prefetch(iter(ray.train.get_dataset_shard("train").iter_batches(batch_size=job.stage.micro_rows)))
    from jasper_ray.training.loop import train

    try:
        train(job, rows)
    except Exception as error:
        message = config_message(error)
        if message is None:
            raise
        write_text(stop_file(job), message)
        raise


def stop_file(job: StageJob) -> Path:
    """Return the file in which a worker writes why the stage must stop."""
    return job.folder.path / "stopped.txt"


def prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """Make each next item in a background thread while the last one is used.

    The first is requested at once. An error in the thread is raised in the place of its item.
    """
    thread = ThreadPoolExecutor(1)
    done = object()
    coming = thread.submit(next, items, done)

    def drain() -> Iterator[Item]:
        nonlocal coming
        while (item := coming.result()) is not done:
            coming = thread.submit(next, items, done)
            yield item  # type: ignore[misc]
        thread.shutdown()

    return drain()
