"""Held-out texts and their target: labelled for a run, read again from its folder, agreed with or not."""

# Shape legend: N held-out rows, D size of a head's vectors, E size of the target.

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jasper_ray.config import ConfigError
from jasper_ray.data import Shard, load_manifest, read_shard
from jasper_ray.data.columns import vector_column
from jasper_ray.encoders import Encoder
from jasper_ray.evaluation import Score, agreement
from jasper_ray.pipelines.heads import by_prompt, target
from jasper_ray.pipelines.label import Labeller, collect
from jasper_ray.pipelines.shards import Batch, read_rows
from jasper_ray.pipelines.targets import TargetCache
from jasper_ray.recipe import load_recipe
from jasper_ray.runs import RunFolder

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


def read_heldout(folder: Path) -> HeldOut | None:
    """What `label_heldout` left in a run folder; None when the run holds no texts out. Needs no Ray.

    Raises:
        ConfigError: the folder is no run that labelled its held-out texts.
    """
    run = RunFolder(folder.absolute())
    if not run.pinned_teachers.is_file():
        raise ConfigError(f"{str(folder)!r} is no run folder: it has no teachers.json; give one that distil wrote")
    shards = load_manifest(run.corpus).heldout
    if not shards:
        return None
    columns = [read_rows(read_shard(run.corpus / shard.file)) for shard in shards]
    batch = {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}
    for teacher in json.loads(run.pinned_teachers.read_text(encoding="utf-8")):
        cache = TargetCache(run.heldout / f"{teacher['name']}-{teacher['identity']}")
        vectors = [cache.read(shard.sha256, part["id"].tolist()) for shard, part in zip(shards, columns, strict=True)]
        batch[vector_column(teacher["name"])] = np.concatenate(vectors)
    return HeldOut(batch, target(batch, load_recipe(str(run.path / "recipe.yaml")).teachers).numpy())


def measure_agreement(encoder: Encoder, heldout: HeldOut, dims: Sequence[int] | None = None) -> list[Score]:
    """The agreement of heads with the target on held-out texts, all heads from large to small when `dims` is None."""
    dims = sorted(dims or encoder.dims, reverse=True)
    vectors = {dim: np.empty((len(heldout.target_NE), dim), np.float32) for dim in dims}
    prompted = any(encoder.prompts.values())  # a model that was trained without any is asked without
    for found, prompt in by_prompt(heldout.batch):
        parts = encoder.encode_heads(heldout.batch["text"][found].tolist(), prompt if prompted else None)
        for dim in dims:
            vectors[dim][found] = parts[dim]
    return [score for dim in dims for score in agreement(vectors[dim], heldout.target_NE).scores(HELD_OUT, dim)]
