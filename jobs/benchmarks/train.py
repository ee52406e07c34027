"""Training alone: how fast a recipe's stages step on this machine's device, and how much of the device that uses.

One worker, whole micro-batches of full length, vectors that nobody labelled: what is measured does not depend on what
the rows mean. The engine, the objective and the step are those of a run. Where the recipe declares an architecture its
weights are random, so that nothing is downloaded. For a stage on images one processor also decodes photographs: how
many such processors would keep up is the share of a run that decoding costs.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from benchmarks.alone import WARM_UP_STEPS, lone_worker, run_steps
from benchmarks.batches import full_images, full_texts, in_turn, photographs
from benchmarks.process import forget_peak, in_fresh_process, resident
from benchmarks.table import table
from jasper_ray.config import ConfigError, first_fault
from jasper_ray.distill.precision import in_precisions, measuring
from jasper_ray.images import decode
from jasper_ray.models.student import Student, StudentSettings, build_student
from jasper_ray.models.vision import build_vision
from jasper_ray.recipe import Recipe, Stage
from jasper_ray.recipe.dry_run import trained_parameters
from jasper_ray.run_folder import StageFolder
from jasper_ray.training.batches import MicroBatch, TextFeed
from jasper_ray.training.job import StageJob

MATRIX = {"cuda": 8192, "cpu": 2048}
"""Rows and columns of the matrices whose product shows what a device can do."""
PRODUCTS = 20
COLUMNS = (
    "stage",
    "device",
    "learns_m",
    "rows_per_s",
    "tokens_per_s",
    "tflops",
    "peak_tflops",
    "share_of_peak",
    "memory_gib",
    "decoded_per_s",
    "decoding_cpus",
)


def benchmark_train(
    recipe: Recipe, batch: int | None, tokens: int | None, steps: int, threads: int, peak_tflops: float | None
) -> list[dict[str, Any]]:
    """One record a stage, each in a process of its own.

    Args:
        batch: rows in a step, in one forward pass; the stage's micro-batch when None.
        tokens: tokens of every text; the student's max_length when None. An image has its own number.
        peak_tflops: what the device's maker promises, in 10^12 operations a second; when None, what one large matrix
            product reaches in the stage's precision.

    Raises:
        ConfigError: no GPU for a stage that wants one, or sizes that no step can have.
    """
    if steps < 1:
        raise ConfigError(f"--steps is {steps}, but at least one step must be timed")
    recipe = in_precisions(recipe, {}, measuring(alone=True))
    student = without_download(recipe.student)
    tokens = tokens or student.max_length
    stages = [alone(stage, batch or stage.micro_rows, steps) for stage in recipe.stages]
    return [
        {"stage": stage.name, **in_fresh_process(step_alone, student, stage, tokens, threads, peak_tflops)}
        for stage in stages
    ]


def without_download(settings: StudentSettings) -> StudentSettings:
    """The same student, its body's and its tower's weights random where the recipe says what to draw."""
    body, vision = settings.body, settings.vision
    changed = {"body": body.model_copy(update={"random_weights": body.architecture is not None})}
    if vision and vision.architecture and vision.preprocessing:
        return settings.model_copy(update={**changed, "vision": vision.model_copy(update={"base": None})})
    return settings.model_copy(update=changed)


def alone(stage: Stage, batch: int, steps: int) -> Stage:
    """The stage on one worker, a batch in one forward pass."""
    changed = {"workers": 1, "batch_size": batch, "micro_batch_size": batch, "passes": None}
    values = {**stage.model_dump(), **changed, "steps": WARM_UP_STEPS + steps}
    try:
        return Stage.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"stage {stage.name!r}: {first_fault(error, values, Stage)}") from error


def step_alone(
    settings: StudentSettings, stage: Stage, tokens: int, threads: int, peak_tflops: float | None
) -> dict[str, Any]:
    """Steps of one stage after a warm-up: rows a second, operations a second, memory at the peak."""
    device = device_of(stage)
    student = build_student(settings, seed=0)
    check_tokens(student, tokens)
    if stage.data == "images" and settings.vision:
        student.vision = build_vision(settings.vision, student.body.config.hidden_size)
    learns = trained_parameters(student, stage)
    micro = full_images(student, stage) if stage.data == "images" else full_texts(student, stage, tokens)
    operations = row_operations(student.to(device), stage, micro) * stage.batch_size
    steps = stage.steps or 0
    job = StageJob(stage, Path(), StageFolder(Path()), steps, TextFeed(()), settings.dropout, seed=0)
    with lone_worker(job, student, device, threads) as worker:
        promised = peak_tflops or product_tflops(device, stage.precision)
        stream = in_turn(micro)
        forget(device)
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
        "peak_tflops": promised,
        "share_of_peak": reached / promised,
        "memory_gib": memory,
        **decoding(student, stage.batch_size / seconds),
    }


def decoding(student: Student, rows_per_s: float) -> dict[str, float]:
    """For a student that sees: photographs that one processor decodes in a second, and processors that keep up."""
    if student.vision is None:
        return {}
    files = photographs()
    began = time.perf_counter()
    for photograph in files:
        student.vision.preprocessing.pixels(decode(photograph))
    rate = len(files) / (time.perf_counter() - began)
    return {"decoded_per_s": rate, "decoding_cpus": rows_per_s / rate}


def device_of(stage: Stage) -> torch.device:
    """The kind of device that the stage asks for.

    Raises:
        ConfigError: a GPU, and there is none.
    """
    if not stage.gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"stage {stage.name!r} trains on a GPU (gpus_per_worker: {stage.gpus:g}), and torch sees none "
            "here; take a machine that has one, or a recipe for processors"
        )
    return torch.device("cuda")


def check_tokens(student: Student, tokens: int) -> None:
    """Refuse texts longer than the body has positions for."""
    most = getattr(student.body.config, "max_position_embeddings", tokens)
    if not 0 < tokens <= most:
        raise ConfigError(f"--tokens is {tokens}, but the body takes 1 to {most}; change it")


def forget(device: torch.device) -> None:
    """Let `peak_gib` count from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        forget_peak()


def peak_gib(device: torch.device) -> float:
    """The most memory that was taken: of the GPU, or of this process."""
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else resident("VmHWM") / 2**20


def row_operations(student: Student, stage: Stage, micro: MicroBatch) -> float:
    """Floating-point operations that the method asks for a row, forward and backward, as torch counts them in one
    row of the batch: what checkpointing computes twice counts once."""
    from torch.utils.flop_counter import FlopCounterMode

    student.freeze_all_but(stage.train)
    first = micro.groups[0].first(1)
    with FlopCounterMode(display=False) as counter:
        vectors = student([first.to(next(student.parameters()).device)], tuple(stage.losses))
        torch.cat(vectors, dim=1).sum().backward()
    student.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


def product_tflops(device: torch.device, precision: str) -> float:
    """10^12 operations a second of a product of two square matrices."""
    size = MATRIX[device.type]
    one = torch.ones(size, size, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    best = 0.0
    for _ in range(PRODUCTS):
        began = time.perf_counter()
        product = one @ one
        product[0, 0].item()  # waits for the device
        best = max(best, 2 * size**3 / (time.perf_counter() - began) / 1e12)
    return best


def render(records: list[dict[str, Any]]) -> str:
    """The records as a table."""
    return table(records, COLUMNS)
