"""Held-out images and captions: read from a run's pairs, and how well a student, or a ridge fit, matches them."""

# Shape legend: N held-out pairs, D size of a head's vectors.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jasper_ray.data import Images, Shard, load_pair_manifest, read_pair_shard
from jasper_ray.data.shards import MANIFEST
from jasper_ray.encoders import StudentEncoder
from jasper_ray.evaluation import Score, as_scores, recalls
from jasper_ray.pipelines.heads import by_prompt
from jasper_ray.pipelines.heldout import HELD_OUT
from jasper_ray.pipelines.shards import Batch, read_rows
from jasper_ray.runs import RunFolder


@dataclass(frozen=True)
class HeldOutPairs:
    """Held-out pairs, by column: id, text (the caption), prompt, image (the bytes of its file)."""

    batch: Batch
    pixel_limit: int


def read_heldout_pairs(folder: Path, shards: Sequence[Shard], images: Images) -> HeldOutPairs | None:
    """The pairs of these shards below `folder`; None when there are none."""
    if not shards:
        return None
    parts = [read_rows(read_pair_shard(folder / shard.file)) for shard in shards]
    batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return HeldOutPairs(batch, images.pixel_limit)


def heldout_pairs_of(folder: Path) -> HeldOutPairs | None:
    """What a run folder holds out; None for a run without images. Needs no Ray."""
    pairs = RunFolder(folder.absolute()).pairs
    if not (pairs / MANIFEST).is_file():  # none, or not prepared to the end
        return None
    manifest = load_pair_manifest(pairs)
    return read_heldout_pairs(pairs, manifest.heldout, manifest.images)


def measure_recall(encoder: StudentEncoder, pairs: HeldOutPairs, dims: Sequence[int] | None = None) -> list[Score]:
    """How often images find their captions and captions their images, all heads from large to small when `dims` is
    None."""
    encoder.pixel_limit = pairs.pixel_limit
    images = encoder.encode_heads(images=pairs.batch["image"].tolist())
    captions = encode_captions(encoder, pairs)
    return [
        score for dim in sorted(dims or encoder.dims, reverse=True) for score in compare(images, captions, pairs, dim)
    ]


def encode_captions(encoder: StudentEncoder, pairs: HeldOutPairs) -> dict[int, np.ndarray]:
    """The captions' vectors `[N, D]` of every head."""
    vectors = {dim: np.empty((len(pairs.batch["text"]), dim), np.float32) for dim in encoder.dims}
    for found, prompt in by_prompt(pairs.batch):
        parts = encoder.encode_heads(pairs.batch["text"][found].tolist(), prompt)
        for dim in encoder.dims:
            vectors[dim][found] = parts[dim]
    return vectors


def compare(
    images: Mapping[int, np.ndarray], captions: Mapping[int, np.ndarray], pairs: HeldOutPairs, dim: int
) -> list[Score]:
    """The recalls of one head."""
    figures = recalls(images[dim], captions[dim], pairs.batch["text"].tolist(), pairs.batch["image"].tolist())
    return as_scores(HELD_OUT, dim, figures)
