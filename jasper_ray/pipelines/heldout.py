"""Held-out texts and their target: labelled for a run, read again from its folder, agreed with or not."""

# Shape legend: N held-out rows, D size of a head's vectors, E size of the target.

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jasper_ray.config import ConfigError
from jasper_ray.data import Shard, load_manifest, read_shard
from jasper_ray.data.columns import vector_column
from jasper_ray.encoders import Encoder
from jasper_ray.evaluation import Score, agreement
from jasper_ray.pipelines.heads import by_prompt, target
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


def check_rows(shards: Sequence[Shard]) -> None:
    """Refuse so few held-out texts that nothing could be measured on them."""
    rows = sum(shard.rows for shard in shards)
    if 0 < rows < LEAST_ROWS:
        raise ConfigError(
            f"corpus.holdout leaves {rows} held-out texts, and agreement needs at least {LEAST_ROWS}; "
            "raise it, or set it to 0"
        )


def check_full_head(full_head: int, sizes: Mapping[str, int]) -> None:
    """Refuse teachers whose vectors, `sizes` by name, do not add up to the full head."""
    together = sum(sizes.values())
    if together != full_head:
        raise ConfigError(
            f"student.heads: the full head has size {full_head}, but the teachers' vectors have {dict(sizes)}, "
            f"{together} together; change the first head"
        )


def read_heldout(folder: Path) -> HeldOut | None:
    """The held-out texts of a run folder in which they are labelled; None when the run holds none out. Needs no Ray.

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
