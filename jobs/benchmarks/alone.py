"""A trainer that has a process to itself: the worker of a stage without Ray around it, and how fast it steps."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from jasper_ray.models.student import Student
from jasper_ray.training.job import StageJob
from jasper_ray.training.stage import worker_environment

if TYPE_CHECKING:
    from jasper_ray.training.batches import MicroBatch
    from jasper_ray.training.loop import Worker

WARM_UP_STEPS = 2
"""Steps before the clock starts."""


@contextmanager
def lone_worker(job: StageJob, student: Student, device: torch.device, threads: int) -> Iterator[Worker]:
    """The stage's worker in a world of one; once in a process."""
    os.environ.update(worker_environment(on_gpu=device.type == "cuda"), **lone_rank())
    from jasper_ray.training.loop import Worker, choose_attention

    torch.set_num_threads(threads)
    choose_attention(device)
    worker = Worker(job, student, device)
    worker.engine.train()
    try:
        yield worker
    finally:
        torch.distributed.destroy_process_group()


def lone_rank() -> dict[str, str]:
    """What torch.distributed reads from the environment, for a world of one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def run_steps(worker: Worker, stream: Iterator[MicroBatch], first: int, last: int) -> float:
    """Seconds for the steps `first` to `last`, that one left out. A step ends with its losses on the processor, so
    nothing is under way when the clock stops."""
    began = time.perf_counter()
    for step in range(first, last):
        worker.step(step, stream)
    return time.perf_counter() - began
