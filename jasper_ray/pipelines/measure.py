"""Measuring students and teachers on the cluster: held-out agreement with the target, and the recipe's own sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from jasper_ray.encoders import load_student
from jasper_ray.encoders.precision import precise
from jasper_ray.evaluation import Record, SetData, evaluate, label
from jasper_ray.pipelines.heldout import HeldOut, measure_agreement
from jasper_ray.pipelines.heldout_pairs import HeldOutPairs, measure_recall
from jasper_ray.pipelines.session import own_device
from jasper_ray.teachers import Teacher, Together, open_teacher
from jasper_ray.vectors import Precision


def measure_student(
    moment: str,
    folder: Path,
    heldout: HeldOut | None,
    pairs: HeldOutPairs | None,
    sets: Sequence[SetData],
    precision: Precision,
    threads: int,
) -> list[Record]:
    """Every head of a student on everything, on images if it sees."""
    torch.set_num_threads(threads)
    device = own_device()
    encoder = load_student(folder, device, precise(precision, device))
    records = label(moment, evaluate(encoder, sets, dims=encoder.student.dims))
    records += label(moment, measure_agreement(encoder, heldout)) if heldout else []
    return records + (label(moment, measure_recall(encoder, pairs)) if pairs and encoder.sees else [])


def measure_teachers(teachers: Sequence[Teacher], sets: Sequence[SetData], threads: int) -> list[Record]:
    """Each teacher, and their fused vectors, on the recipe's sets."""
    torch.set_num_threads(threads)
    encoders = [open_teacher(teacher, own_device()) for teacher in teachers]
    records = [record for encoder in encoders for record in label(encoder.teacher.name, evaluate(encoder, sets))]
    if len(encoders) > 1:
        records += label("teachers together", evaluate(Together(encoders), sets))
    return records
