"""A stage's trainer alone in a process, without Ray: its worker, its steps, and unlabelled micro-batches for it."""

# Shape legend: B rows, T tokens, S side of an image in pixels, E size of the target.

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from jasper_ray.models.student import Student
from jasper_ray.models.tokens import TokenGroup
from jasper_ray.recipe import Stage
from jasper_ray.training.batches import MicroBatch
from jasper_ray.training.job import StageJob
from jasper_ray.training.stage import worker_environment

if TYPE_CHECKING:
    from jasper_ray.training.loop import Worker

WARM_UP_STEPS = 2
"""Steps before the clock starts."""


@contextmanager
def lone_worker(job: StageJob, student: Student, device: torch.device, threads: int) -> Iterator[Worker]:
    """Enter the stage's worker as a world of one; once in a process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(worker_environment(on_gpu=device.type == "cuda"), **world)
    from jasper_ray.training.loop import Worker, choose_attention, start_engine

    torch.set_num_threads(threads)
    choose_attention(device)
    worker = Worker(job, start_engine(student, job, device), device)
    worker.engine.train()
    try:
        yield worker
    finally:
        torch.distributed.destroy_process_group()


def run_steps(worker: Worker, stream: Iterator[MicroBatch], first: int, last: int) -> float:
    """Return the seconds of the steps from `first` up to, but not including, `last`.

    A step ends with its losses on the CPU, so nothing is under way when the clock stops.
    """
    began = time.perf_counter()
    for step in range(first, last):
        worker.step(step, stream)
    return time.perf_counter() - began


def full_texts(student: Student, stage: Stage, tokens: int) -> MicroBatch:
    """Make a micro-batch of texts without padding, in the stage's groups."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = student.body.config.vocab_size
    ids_BT = torch.randint(vocabulary, (stage.batch_size, tokens), generator=generator)
    groups = [TokenGroup(ids, torch.ones_like(ids)) for ids in ids_BT.split(stage.group_rows)]
    target_BE = F.normalize(torch.randn(stage.batch_size, student.dims[0], generator=generator))
    return as_micro_batch(groups, dict.fromkeys(stage.losses, target_BE))


def full_images(student: Student, stage: Stage) -> MicroBatch:
    """Make a micro-batch of images in the stage's groups; image marks and the text's own tokens take four more."""
    vision = student.vision
    assert vision is not None, "a recipe with such a stage has student.vision"
    generator = torch.Generator().manual_seed(0)
    size, tokens = vision.preprocessing.size, vision.image_tokens + 4
    pixels_B3SS = torch.randint(256, (stage.batch_size, 3, size, size), generator=generator, dtype=torch.uint8)
    places_T = (torch.arange(tokens) >= 2) & (torch.arange(tokens) < tokens - 2)
    groups = []
    for pixels in pixels_B3SS.split(stage.group_rows):
        ids_BT = torch.zeros(len(pixels), tokens, dtype=torch.long)
        groups.append(TokenGroup(ids_BT, torch.ones_like(ids_BT), pixels, places_T.expand(len(pixels), tokens)))
    targets = {dim: F.normalize(torch.randn(stage.batch_size, dim, generator=generator)) for dim in stage.losses}
    return as_micro_batch(groups, targets)


def as_micro_batch(groups: list[TokenGroup], targets: dict[int, Tensor]) -> MicroBatch:
    """Number the rows of the groups."""
    rows = sum(len(group.ids_BT) for group in groups)
    return MicroBatch([str(row) for row in range(rows)], 0, groups, targets, {})


def repeated(micro: MicroBatch) -> Iterator[MicroBatch]:
    """Repeat the same rows at the positions that a stage expects."""
    return (replace(micro, position=round_ * micro.rows) for round_ in itertools.count())
