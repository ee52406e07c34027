"""One stage on Ray Train: workers, restarts, the stream of labelled rows, and what the driver shows meanwhile."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.actor import ActorHandle
from ray.data import Dataset, ExecutionOptions
from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from jasper_ray.atomic import write_text
from jasper_ray.config import ConfigError, config_message
from jasper_ray.training.job import StageJob, latest_step
from jasper_ray.training.metrics import telling_steps
from jasper_ray.training.prefetch import ahead

OpenStream = Callable[[int], Dataset]
"""The labelled rows of a stage from a step on."""


def run_stage(job: StageJob, open_stream: OpenStream) -> None:
    """Train a stage to its end; a lost worker group starts again at the last checkpoint.

    Raises:
        ConfigError: the stage stopped for a reason that the user has to mend.
    """
    job.folder.begin(job.stage, job.total_steps)
    reason = stop_file(job)
    reason.unlink(missing_ok=True)
    state = Path(tempfile.mkdtemp(prefix="jasper_ray-"))  # Ray Train's own notes; ours lie in the stage folder
    try:
        with telling_steps(job.folder.metrics, job.stage.name, job.stage.data, job.total_steps):
            trainer(job, open_stream, state).fit()
    except Exception as error:
        if reason.is_file():
            raise ConfigError(reason.read_text(encoding="utf-8")) from error
        raise
    finally:
        shutil.rmtree(state, ignore_errors=True)
    if reason.is_file():
        raise ConfigError(reason.read_text(encoding="utf-8"))


def trainer(job: StageJob, open_stream: OpenStream, state: Path) -> Trainer:
    """Ray Train's trainer for a stage."""
    stage = job.stage
    on_gpu = stage.gpus > 0
    resources = {"CPU": stage.cpus_per_worker} | ({"GPU": stage.gpus} if on_gpu else {})
    return Trainer(
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
        datasets={"train": Stream(job, open_stream)},
        dataset_config=DataConfig(execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False),
    )


class Trainer(TorchTrainer):
    """Ray Train's trainer, without its handler of Ctrl-C, which ends the program with exit code 0."""

    controller: ActorHandle | None = None

    def _register_sigint_handler(self, controller: ActorHandle) -> None:
        self.controller = controller

    def fit(self) -> Any:
        """Train; when it is interrupted, its workers end too."""
        try:
            return super().fit()
        except BaseException:
            if self.controller is not None:
                ray.kill(self.controller)
            raise


class Stream:
    """The stage's rows from its last checkpoint on; Ray Train calls it for every worker group that it starts."""

    def __init__(self, job: StageJob, open_stream: OpenStream) -> None:
        self.job = job
        self.open_stream = open_stream

    def __call__(self) -> Dataset:
        step = latest_step(self.job.folder.checkpoints)
        if step == self.job.total_steps:  # only the student is left to write; nobody reads these rows
            return ray.data.range(self.job.stage.workers)
        return self.open_stream(step)


def worker_environment(on_gpu: bool) -> dict[str, str]:
    """What a worker must find in its environment before it imports anything."""
    return {"TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cuda" if on_gpu else "cpu"}


def work(config: dict[str, Any]) -> None:
    """A worker's whole life; imports torch and DeepSpeed only here, in the environment made for it.

    Rows are asked for first: teachers that have to be loaded then load while the engine is built.
    """
    job: StageJob = config["job"]
    if stop_file(job).is_file():  # the group before this one met what no restart mends
        return
    rows = ahead(iter(ray.train.get_dataset_shard("train").iter_batches(batch_size=job.stage.micro_rows)))
    from jasper_ray.training.loop import train

    try:
        train(job, rows)
    except Exception as error:
        told = config_message(error)
        if told is None:
            raise
        write_text(stop_file(job), told)
        raise


def stop_file(job: StageJob) -> Path:
    """Where a worker writes why the stage must stop."""
    return job.folder.path / "stopped.txt"
