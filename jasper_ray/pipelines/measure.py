"""Measuring students and teachers on the cluster: held-out agreement with the target, and the recipe's own sets."""

# Shape legend: N held-out rows, D size of a head's vectors, E size of the target.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from jasper_ray.config import ConfigError
from jasper_ray.data import Shard
from jasper_ray.data.columns import vector_column
from jasper_ray.encoders import Encoder, load_student
from jasper_ray.evaluation import Record, SetData, agreement, evaluate, label
from jasper_ray.pipelines.heads import by_prompt, target
from jasper_ray.pipelines.label import Labeller, collect
from jasper_ray.pipelines.shards import Batch
from jasper_ray.teachers import Teacher, TeacherEncoder, Together

HELD_OUT = "held-out"
LEAST_ROWS = 3
"""Fewer texts have no two pairs to put in order."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out texts with their target."""

    batch: Batch
    target_NE: np.ndarray


def label_heldout(labeller: Labeller, shards: Sequence[Shard], full_head: int) -> HeldOut | None:
    """The corpus' held-out texts, labelled; None when the recipe holds none out.

    Raises:
        ConfigError: the teachers' vectors do not add up to the full head.
    """
    rows = sum(shard.rows for shard in shards)
    if not rows:
        return None
    if rows < LEAST_ROWS:
        raise ConfigError(
            f"corpus.holdout leaves {rows} held-out texts, and agreement needs at least {LEAST_ROWS}; "
            "raise it, or set it to 0"
        )
    columns = ["text", "prompt", *(vector_column(teacher.name) for teacher in labeller.teachers)]
    batch = collect(labeller.label_shards(shards), columns)
    target_NE = target(batch, labeller.teachers).numpy()
    if target_NE.shape[1] != full_head:
        sizes = {teacher.name: batch[vector_column(teacher.name)].shape[1] for teacher in labeller.teachers}
        raise ConfigError(
            f"student.heads: the full head has size {full_head}, but the teachers' vectors have {sizes}, "
            f"{target_NE.shape[1]} together; change the first head"
        )
    return HeldOut(batch, target_NE)


def measure_student(
    moment: str, folder: Path, heldout: HeldOut | None, sets: Sequence[SetData], threads: int
) -> list[Record]:
    """Every head of a student on everything."""
    torch.set_num_threads(threads)
    encoder = load_student(folder)
    records = label(moment, evaluate(encoder, sets, dims=encoder.student.dims))
    return records + (measure_agreement(moment, encoder, heldout) if heldout else [])


def measure_agreement(moment: str, encoder: Encoder, heldout: HeldOut) -> list[Record]:
    """Every head's agreement with the target on held-out texts."""
    rows = len(heldout.target_NE)
    vectors = {dim: np.empty((rows, dim), np.float32) for dim in encoder.dims}
    for found, prompt in by_prompt(heldout.batch):
        for dim, part_ND in encoder.encode_heads(heldout.batch["text"][found].tolist(), prompt).items():
            vectors[dim][found] = part_ND
    scores = [
        score
        for dim in sorted(vectors, reverse=True)
        for score in agreement(vectors[dim], heldout.target_NE).scores(HELD_OUT, dim)
    ]
    return label(moment, scores)


def measure_teachers(teachers: Sequence[Teacher], sets: Sequence[SetData], threads: int) -> list[Record]:
    """Each teacher, and their fused vectors, on the recipe's sets."""
    torch.set_num_threads(threads)
    encoders = [TeacherEncoder(teacher, teacher.load()) for teacher in teachers]
    records = [record for encoder in encoders for record in label(encoder.teacher.name, evaluate(encoder, sets))]
    if len(encoders) > 1:
        records += label("teachers together", evaluate(Together(encoders), sets))
    return records
