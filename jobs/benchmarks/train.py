"""Training alone: the speed of a recipe's stages on this machine's device, and the share of the device they use.

One worker trains on whole micro-batches of full length with random targets: the speed does not depend on their
values. Engine, objective and step are those of a run. Weights are random where the recipe declares an architecture, so
nothing is downloaded. For a stage on images, one CPU also decodes photographs, which gives the number of CPUs that
decoding takes in a run.
"""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import torch
from PIL import Image
from pydantic import ValidationError

from benchmarks.device import check_tokens, peak_gib, product_tflops, reset_peak, without_download
from benchmarks.harness import PEAK, Benchmark, Option, Record, Records, in_fresh_process
from benchmarks.lone_trainer import WARM_UP_STEPS, full_images, full_texts, lone_worker, repeated, run_steps
from jasper_ray.config import ConfigError, first_fault
from jasper_ray.distill.preflight import in_precisions, measuring
from jasper_ray.images import decode
from jasper_ray.models.student import Student, StudentSettings, build_student
from jasper_ray.models.vision import build_vision
from jasper_ray.recipe import Recipe, Stage, load_recipe
from jasper_ray.recipe.dry_run import trained_parameters
from jasper_ray.run_folder import StageFolder
from jasper_ray.training.batches import MicroBatch, TextFeed
from jasper_ray.training.job import StageJob

PHOTOGRAPHS = 100
"""Photographs that are decoded to measure the speed."""


def benchmark_train(
    recipe: Recipe, batch: int | None, tokens: int | None, steps: int, threads: int, peak: float | None
) -> Records:
    """Measure each stage in a fresh process.

    Args:
        batch: rows of a step, in one forward pass; None: the stage's micro-batch.
        tokens: tokens of every text; None: the student's max_length. An image has its own number.
        peak: the vendor's peak in 10^12 operations/s; None: the speed of a large matrix product in the stage's
            precision.

    Raises:
        ConfigError: a stage needs a GPU and there is none, or a step cannot have these sizes.
    """
    if steps < 1:
        raise ConfigError(f"--steps is {steps}, but at least one step must be timed")
    recipe = in_precisions(recipe, {}, measuring(is_local=True))
    student = without_download(recipe.student)
    tokens = tokens or student.max_length
    stages = [on_one_worker(stage, batch or stage.micro_rows, steps) for stage in recipe.stages]
    return [
        {"stage": stage.name, **in_fresh_process(measure_stage, student, stage, tokens, threads, peak)}
        for stage in stages
    ]


def on_one_worker(stage: Stage, batch: int, steps: int) -> Stage:
    """Change the stage to one worker and one forward pass a step."""
    changed = {"workers": 1, "batch_size": batch, "micro_batch_size": batch, "passes": None}
    values = {**stage.model_dump(), **changed, "steps": WARM_UP_STEPS + steps}
    try:
        return Stage.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"stage {stage.name!r}: {first_fault(error, values, Stage)}") from error


def measure_stage(settings: StudentSettings, stage: Stage, tokens: int, threads: int, peak: float | None) -> Record:
    """Time steps after a warm-up: rows/s, operations/s, peak of memory."""
    device = device_of(stage)
    student = build_student(settings, seed=0)
    check_tokens(student, tokens)
    if stage.kind.needs_vision and settings.vision:
        student.vision = build_vision(settings.vision, student.body.config.hidden_size)
    learns = trained_parameters(student, stage)
    micro = full_images(student, stage) if stage.kind.needs_vision else full_texts(student, stage, tokens)
    operations = row_operations(student.to(device), stage, micro) * stage.batch_size
    steps = stage.steps or 0
    job = StageJob(stage, Path(), StageFolder(Path()), steps, TextFeed(()), settings.dropout, seed=0)
    with lone_worker(job, student, device, threads) as worker:
        peak = peak or product_tflops(device, stage.precision)
        stream = repeated(micro)
        reset_peak(device)
        run_steps(worker, stream, 0, WARM_UP_STEPS)
        seconds = run_steps(worker, stream, WARM_UP_STEPS, steps) / (steps - WARM_UP_STEPS)
        memory = peak_gib(device)
    reached = operations / seconds / 1e12
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "learns_m": learns / 1e6,
        "rows_per_s": stage.batch_size / seconds,
        "tokens_per_s": sum(group.mask_BT.numel() for group in micro.groups) / seconds,
        "tflops": reached,
        "peak_tflops": peak,
        "share_of_peak": reached / peak,
        "memory_gib": memory,
        **decoding(student, stage.batch_size / seconds),
    }


def decoding(student: Student, rows_per_s: float) -> dict[str, float]:
    """Measure the photographs/s that one CPU decodes for a student with vision, and the CPUs that keep up."""
    if student.vision is None:
        return {}
    files = photographs()
    began = time.perf_counter()
    for photograph in files:
        student.vision.preprocessing.pixels(decode(photograph))
    rate = len(files) / (time.perf_counter() - began)
    return {"decoded_per_s": rate, "decoding_cpus": rows_per_s / rate}


def photographs() -> list[bytes]:
    """Make JPEG files of 640 x 427 pixels from scikit-learn's photographs."""
    from sklearn.datasets import load_sample_images

    files = []
    for pixels in load_sample_images().images:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files * (PHOTOGRAPHS // len(files))


def device_of(stage: Stage) -> torch.device:
    """Choose the kind of device that the stage reserves.

    Raises:
        ConfigError: it reserves a GPU and there is none.
    """
    if not stage.gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"stage {stage.name!r} trains on a GPU (gpus_per_worker: {stage.gpus:g}), and torch sees none "
            "here; take a machine that has one, or a recipe for processors"
        )
    return torch.device("cuda")


def row_operations(student: Student, stage: Stage, micro: MicroBatch) -> float:
    """Count the floating-point operations of a row, forward and backward, with torch on one row of the batch.

    Operations that activation checkpointing repeats count once.
    """
    from torch.utils.flop_counter import FlopCounterMode

    student.freeze_all_but(stage.train)
    first = micro.groups[0].first(1)
    with FlopCounterMode(display=False) as counter:
        vectors = student([first.to(next(student.parameters()).device)], tuple(stage.losses))
        torch.cat(vectors, dim=1).sum().backward()
    student.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


BENCHMARK = Benchmark(
    "train",
    "a recipe's stages alone, and their share of the device",
    (
        Option("--recipe", "quickstart", "recipe with the student and the stages", resolve=load_recipe),
        Option("--batch", None, "rows of a step, in one pass; unset: the stage's micro-batch", type=int),
        Option("--tokens", None, "tokens of every text; unset: max_length; an image has its own number", type=int),
        Option("--steps", 10, "timed steps of a stage"),
        PEAK,
        Option("--threads", os.cpu_count() or 1, "torch's threads on a CPU"),
    ),
    benchmark_train,
    "stage device learns_m rows_per_s tokens_per_s tflops peak_tflops share_of_peak memory_gib decoded_per_s "
    "decoding_cpus",
)
