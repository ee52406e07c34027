"""DeepSpeed, and nothing else of the project knows it: building the engine, its checkpoints, the weights it trained."""

from __future__ import annotations

import math
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

from jasper_ray.models.student import Student
from jasper_ray.recipe import Stage

Engine = Any
"""`deepspeed.DeepSpeedEngine`; the library ships no types."""


def build_engine(student: Student, stage: Stage, total_steps: int, device: torch.device) -> Engine:
    """The student in training: optimiser over what learns, schedule, ZeRO, precision, clipping.

    torch.distributed must be up already, with one rank a worker.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    # Only tensor-parallel inference uses this operator; compiling it takes minutes and a C++ compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
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


def parameter_groups(student: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """What learns, in two groups: matrices decay, biases and norms do not."""
    learning = [parameter for parameter in student.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in learning if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def learning_rate_share(step: int, total_steps: int, stage: Stage) -> float:
    """Share of the peak learning rate that step `step` (from 0) takes: a linear rise, then the stage's schedule."""
    rise = int(stage.warmup * total_steps)
    if step < rise:
        return (step + 1) / (rise + 1)
    done = min(1.0, (step - rise) / max(1, total_steps - rise))
    if stage.schedule == "constant":
        return 1.0
    return 1.0 - done if stage.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def engine_config(stage: Stage, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's configuration for a stage."""
    assert stage.precision != "auto", "which precision a stage trains in is decided before it begins"
    in_bf16 = stage.precision == "bf16"
    # From ZeRO 1 on DeepSpeed keeps fp32 weights and gradients beside bf16 ones; the arithmetic of 0 and 1 is the same.
    zero = max(stage.zero, 1) if in_bf16 else stage.zero
    config: dict[str, Any] = {
        "train_batch_size": stage.batch_size,
        "train_micro_batch_size_per_gpu": stage.micro_rows,
        "gradient_accumulation_steps": stage.accumulation,
        "gradient_clipping": stage.gradient_clipping or 0.0,
        "zero_optimization": {"stage": zero, "overlap_comm": device.type == "cuda"},
        "zero_allow_untested_optimizer": True,  # torch's AdamW is meant, not a mistake
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 62,  # progress is ours to print
    }
    if in_bf16:
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return config


def update(engine: Engine) -> float | None:
    """Step the optimiser when this micro-batch completes a batch, and return the norm of the batch's gradients before
    clipping; None when it does not. From a norm that is not finite nothing was learned that a checkpoint holds."""
    due = engine.is_gradient_accumulation_boundary()
    without_zero = engine.zero_optimization_stage() == 0  # there DeepSpeed clips, and forgets the norm
    norm = gradient_norm(engine) if due and without_zero else None
    engine.step()
    if due and not without_zero:
        norm = math.nan if engine.skipped_steps else float(engine.get_global_grad_norm())
    return norm


def gradient_norm(engine: Engine) -> float:
    """The norm of all gradients together, which are the same on every rank."""
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def save_engine(engine: Engine, folder: Path) -> None:
    """Write every rank's share of the training state into `folder`; all ranks call it together."""
    engine.save_checkpoint(str(folder), tag="engine", save_latest=False, exclude_frozen_parameters=True)


def load_engine(engine: Engine, folder: Path) -> None:
    """Continue from what `save_engine` wrote, with the same number of workers; all ranks call it together."""
    engine.load_checkpoint(str(folder), tag="engine", load_module_strict=False)


def trained_weights(engine: Engine) -> Mapping[str, Tensor]:
    """The fp32 weights of every parameter that learned, by name, on the processor of rank 0; none on other ranks.

    All ranks call it together: each weight is gathered from all of them.
    """
    weights: dict[str, Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            master = safe_get_full_fp32_param(parameter)  # None where ZeRO is off and the parameter is the master
            if dist.get_rank() == 0:
                weights[name] = (parameter if master is None else master).detach().float().cpu().clone()
    return weights
