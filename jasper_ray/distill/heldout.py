"""Held-out texts and pairs: their targets, and how well students, teachers and baselines agree with these."""

# Shape legend: N held-out rows, D size of a head's vectors, E size of the target.
# Shape legend: N held-out pairs, D size of a head's vectors.

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jasper_ray.config import ConfigError
from jasper_ray.corpus.settings import Images
from jasper_ray.corpus.shards import MANIFEST, CorpusManifest, PairManifest, Shard, load_manifest, read_shard
from jasper_ray.encoders import Encoder, StudentEncoder, load_student
from jasper_ray.encoders.precision import precise
from jasper_ray.evaluation import Score, ScoreRow, SetData, as_scores, evaluate, geometry_scores, recalls, with_moment
from jasper_ray.labelling.target_cache import TargetCache
from jasper_ray.labelling.tasks import Batch, read_rows, vector_column
from jasper_ray.ray_runtime import own_device
from jasper_ray.recipe import load_recipe
from jasper_ray.run_folder import RunFolder
from jasper_ray.teachers import Teacher, Together, fuse, open_teacher
from jasper_ray.vectors import Precision

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
    shards = load_manifest(run.corpus, CorpusManifest).heldout
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
    return [
        score for dim in dims for score in as_scores(HELD_OUT, dim, geometry_scores(vectors[dim], heldout.target_NE))
    ]


@dataclass(frozen=True)
class HeldOutPairs:
    """Held-out pairs, by column: id, text (the caption), prompt, image (the bytes of its file)."""

    batch: Batch
    pixel_limit: int


def read_heldout_pairs(folder: Path, shards: Sequence[Shard], images: Images) -> HeldOutPairs | None:
    """The pairs of these shards below `folder`; None when there are none."""
    if not shards:
        return None
    parts = [read_rows(read_shard(folder / shard.file)) for shard in shards]
    batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return HeldOutPairs(batch, images.pixel_limit)


def heldout_pairs_of(folder: Path) -> HeldOutPairs | None:
    """What a run folder holds out; None for a run without images. Needs no Ray."""
    pairs = RunFolder(folder.absolute()).pairs
    if not (pairs / MANIFEST).is_file():  # none, or not prepared to the end
        return None
    manifest = load_manifest(pairs, PairManifest)
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


def measure_student(
    moment: str,
    folder: Path,
    heldout: HeldOut | None,
    pairs: HeldOutPairs | None,
    sets: Sequence[SetData],
    precision: Precision,
    threads: int,
) -> list[ScoreRow]:
    """Every head of a student on everything, on images if it sees."""
    torch.set_num_threads(threads)
    device = own_device()
    encoder = load_student(folder, device, precise(precision, device))
    records = with_moment(moment, evaluate(encoder, sets, dims=encoder.student.dims))
    records += with_moment(moment, measure_agreement(encoder, heldout)) if heldout else []
    return records + (with_moment(moment, measure_recall(encoder, pairs)) if pairs and encoder.sees else [])


def measure_teachers(teachers: Sequence[Teacher], sets: Sequence[SetData], threads: int) -> list[ScoreRow]:
    """Each teacher, and their fused vectors, on the recipe's sets."""
    torch.set_num_threads(threads)
    encoders = [open_teacher(teacher, own_device()) for teacher in teachers]
    records = [record for encoder in encoders for record in with_moment(encoder.teacher.name, evaluate(encoder, sets))]
    if len(encoders) > 1:
        records += with_moment("teachers together", evaluate(Together(encoders), sets))
    return records


def by_prompt(batch: Batch) -> Iterator[tuple[np.ndarray, str | None]]:
    """Indices of the rows that share a prompt, prompt by prompt; None for rows without one."""
    for prompt in sorted(set(batch["prompt"])):
        yield np.flatnonzero(batch["prompt"] == prompt), prompt or None


def target(batch: Batch, teachers: Sequence[Teacher]) -> Tensor:
    """The fused target `[N, E]` of a labelled batch."""
    columns = [torch.from_numpy(np.array(batch[vector_column(teacher.name)])) for teacher in teachers]
    return fuse(columns, [teacher.weight for teacher in teachers])
