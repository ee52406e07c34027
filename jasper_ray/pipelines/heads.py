"""The ridge fit of a student's heads over a labelled dataset."""

# Shape legend: N rows, E size of the target.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from ray.data import Dataset
from torch import Tensor

from jasper_ray.data.columns import vector_column
from jasper_ray.encoders import load_student
from jasper_ray.models.folder import save_student
from jasper_ray.models.ridge import RidgeFit, set_heads
from jasper_ray.pipelines.session import own_device
from jasper_ray.pipelines.shards import Batch
from jasper_ray.teachers import Teacher, fuse


def fit_heads(
    start: Path,
    dataset: Dataset,
    teachers: Sequence[Teacher],
    regularisation: float,
    destination: Path,
    threads: int,
) -> None:
    """Write to `destination` the student of `start` with heads fitted to the labelled rows of `dataset`.

    Raises:
        ConfigError: `start` is not a student folder.
    """
    torch.set_num_threads(threads)
    encoder = load_student(start, own_device())
    student = encoder.student
    fit = RidgeFit(student.body.config.hidden_size, student.dims[0])
    for batch in dataset.iter_batches(batch_size=None):
        target_NE = target(batch, teachers)
        for rows, prompt in by_prompt(batch):
            pooled_NH = encoder.pooled(batch["text"][rows].tolist(), prompt)
            fit.add(pooled_NH, target_NE[torch.from_numpy(rows)])
    set_heads(student.cpu(), fit, regularisation)
    save_student(student, encoder.tokenizer, encoder.card, destination)


def by_prompt(batch: Batch) -> Iterator[tuple[np.ndarray, str | None]]:
    """Indices of the rows that share a prompt, prompt by prompt; None for rows without one."""
    for prompt in sorted(set(batch["prompt"])):
        yield np.flatnonzero(batch["prompt"] == prompt), prompt or None


def target(batch: Batch, teachers: Sequence[Teacher]) -> Tensor:
    """The fused target `[N, E]` of a labelled batch."""
    columns = [torch.from_numpy(np.array(batch[vector_column(teacher.name)])) for teacher in teachers]
    return fuse(columns, [teacher.weight for teacher in teachers])
