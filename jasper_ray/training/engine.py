"""DeepSpeed: build the engine, step it, write and restore its checkpoints, read the trained weights.

Checkpoints are folders of the run folder named by step, each complete when its state.json is there. Every worker sees
them, so a replaced worker, a restarted driver and the data pipeline all continue from the newest complete one.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from jasper_ray.atomic import write_text
from jasper_ray.models.student import Student
from jasper_ray.recipe import Stage
from jasper_ray.run_folder import as_json
from jasper_ray.training.job import complete_checkpoints

Engine = Any
"""`deepspeed.DeepSpeedEngine`; the library ships no types."""
KEPT = 2
"""Checkpoints that stay: the newest, and one before it."""


def build_engine(student: Student, stage: Stage, total_steps: int, device: torch.device) -> Engine:
    """Build the engine of a student: optimiser, schedule, ZeRO, precision, clipping.

    torch.distributed must be initialised, with one rank a worker.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    skip_shared_memory_operator()
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    optimiser = torch.optim.AdamW(
        parameter_groups(student, stage.weight_decay),
        lr=stage.learning_rate,
        betas=stage.betas,
        fused=True,
    )
    schedule = LambdaLR(optimiser, lambda step: learning_rate_share(step, total_steps, stage))
    engine, _, _, _ = deepspeed.initialize(
        model=student, optimizer=optimiser, lr_scheduler=schedule, config=engine_config(stage, device)
    )
    return engine


def skip_shared_memory_operator() -> None:
    """Keep DeepSpeed from compiling an operator for minutes that only tensor-parallel inference uses."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def parameter_groups(student: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the parameters that learn into two groups: matrices decay, biases and norms do not."""
    learning = [parameter for parameter in student.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in learning if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def learning_rate_share(step: int, total_steps: int, stage: Stage) -> float:
    """Compute the share of the peak learning rate at `step` (from 0): a linear rise, then the stage's schedule."""
    rise = int(stage.warmup * total_steps)
    if step < rise:
        return (step + 1) / (rise + 1)
    done = min(1.0, (step - rise) / max(1, total_steps - rise))
    if stage.schedule == "constant":
        return 1.0
    return 1.0 - done if stage.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def engine_config(stage: Stage, device: torch.device) -> dict[str, Any]:
    assert stage.precision != "auto", "a stage's precision is decided before it starts"
    in_bf16 = stage.precision == "bf16"
    # From ZeRO 1 on DeepSpeed keeps fp32 weights and gradients beside bf16 ones; the arithmetic of 0 and 1 is the same.
    zero = max(stage.zero, 1) if in_bf16 else stage.zero
    config: dict[str, Any] = {
        "train_batch_size": stage.batch_size,
        "train_micro_batch_size_per_gpu": stage.micro_rows,
        "gradient_accumulation_steps": stage.accumulation,
        "gradient_clipping": stage.gradient_clipping or 0.0,
        "zero_optimization": {"stage": zero, "overlap_comm": device.type == "cuda"},
        "zero_allow_untested_optimizer": True,  # torch's AdamW is intended
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 62,  # jasper_ray prints progress
    }
    if in_bf16:
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return config


def update(engine: Engine) -> float | None:
    """Step the optimiser if this micro-batch completes a batch.

    Returns the norm of the batch's gradients before clipping; None if the batch is not complete. After a norm that is
    not finite no checkpoint holds what was learned.
    """
    due = engine.is_gradient_accumulation_boundary()
    without_zero = engine.zero_optimization_stage() == 0  # DeepSpeed then clips and forgets the norm
    norm = gradient_norm(engine) if due and without_zero else None
    engine.step()
    if due and not without_zero:
        norm = math.nan if engine.skipped_steps else float(engine.get_global_grad_norm())
    return norm


def gradient_norm(engine: Engine) -> float:
    """Compute the norm of all gradients together, which are the same on every rank."""
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def restore_checkpoint(engine: Engine, folder: Path) -> int:
    """Load the newest complete checkpoint in `folder` and return its step, or 0 without one; all ranks call it.

    The number of workers must be the one that wrote it.
    """
    complete = complete_checkpoints(folder)
    if not complete:
        return 0
    step, path = complete[-1]
    engine.load_checkpoint(str(path), tag="engine", load_module_strict=False)
    return step


def save_checkpoint(engine: Engine, folder: Path, step: int) -> None:
    """Write every rank's share of the training state at `step`, then remove old ones; all ranks call it together."""
    path = folder / f"step-{step:08d}"
    engine.save_checkpoint(str(path), tag="engine", save_latest=False, exclude_frozen_parameters=True)
    dist.barrier()
    if dist.get_rank() == 0:
        write_text(path / "state.json", as_json({"step": step, "workers": dist.get_world_size()}))
        prune_checkpoints(folder)
    dist.barrier()


def prune_checkpoints(folder: Path) -> None:
    """Remove all complete checkpoints except the newest `KEPT`, and the incomplete ones."""
    kept = {path for _, path in complete_checkpoints(folder)[-KEPT:]}
    for path in folder.glob("step-*"):
        if path not in kept:
            shutil.rmtree(path)


def trained_weights(engine: Engine) -> Mapping[str, Tensor]:
    """Gather the fp32 weights of every parameter that learned, by name, on the processor of rank 0.

    Other ranks get none. All ranks call it together: each weight is gathered from all of them.
    """
    weights: dict[str, Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            master = safe_get_full_fp32_param(parameter)  # None if ZeRO is off: the parameter is the master
            if dist.get_rank() == 0:
                weights[name] = (parameter if master is None else master).detach().float().cpu().clone()
    return weights
