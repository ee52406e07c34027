"""A stage's checkpoints: folders named by step, each complete when its state.json is there.

They are written by the workers straight into the run folder, which every worker sees, so that a replaced worker, a
restarted driver and the data pipeline all read the same truth: the newest complete folder.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch.distributed as dist

from jasper_ray.atomic import write_text
from jasper_ray.run_folder import as_json
from jasper_ray.training.engine import Engine, load_engine, save_engine
from jasper_ray.training.job import complete_checkpoints

KEPT = 2
"""Checkpoints that stay: the newest, and one before it."""


def restore(engine: Engine, folder: Path) -> int:
    """Load the newest complete checkpoint into the engine, if any, and return its step; all ranks together."""
    found = complete_checkpoints(folder)
    if not found:
        return 0
    step, path = found[-1]
    load_engine(engine, path)
    return step


def save(engine: Engine, folder: Path, step: int) -> None:
    """Write the checkpoint of `step`, then remove those that are no longer `KEPT`; all ranks together."""
    path = folder / f"step-{step:08d}"
    save_engine(engine, path)
    dist.barrier()
    if dist.get_rank() == 0:
        write_text(path / "state.json", as_json({"step": step, "workers": dist.get_world_size()}))
        prune(folder)
    dist.barrier()


def prune(folder: Path) -> None:
    """Remove all complete checkpoints but the newest `KEPT`, and what was left incomplete."""
    complete = complete_checkpoints(folder)
    kept = {path for _, path in complete[-KEPT:]}
    for path in folder.glob("step-*"):
        if path not in kept:
            shutil.rmtree(path)
