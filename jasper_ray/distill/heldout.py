"""Held-out texts and pairs: their targets, and the scores of students, teachers and baselines on them."""

# Shape legend: N held-out rows, D size of a head's vectors, E size of the target.

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from jasper_ray.config import ConfigError
from jasper_ray.corpus.settings import Images
from jasper_ray.corpus.shards import MANIFEST, CorpusManifest, PairManifest, Shard, load_manifest, read_shard
from jasper_ray.encoders import Encoder, image_encoder, load_student
from jasper_ray.encoders.precision import precise
from jasper_ray.evaluation import Score, ScoreRow, SetData, as_scores, evaluate, geometry_scores, recalls, with_moment
from jasper_ray.labelling.target_cache import TargetCache
from jasper_ray.labelling.tasks import Batch, read_rows, vector_column
from jasper_ray.ray_runtime import own_device
from jasper_ray.recipe import Recipe, load_recipe
from jasper_ray.run_folder import RunFolder
from jasper_ray.teachers import Ensemble, Teacher, fuse

HELD_OUT = "held-out"
LEAST_ROWS = 3
"""Fewer texts have no two pairs to put in order."""


class HeldOut:
    """Held-out rows of a run, on which encoders are measured."""

    needs_vision: ClassVar[bool] = False

    def scores(self, encoder: Encoder, dims: Sequence[int] | None = None) -> list[Score]:
        """Measure heads of an encoder, from large to small, all by default; none if it lacks the vision."""
        raise NotImplementedError


@dataclass(frozen=True)
class HeldOutTexts(HeldOut):
    """Held-out texts with their target, which the vectors of a head should agree with."""

    batch: Batch
    target_NE: np.ndarray

    def scores(self, encoder: Encoder, dims: Sequence[int] | None = None) -> list[Score]:
        prompted = any(encoder.prompts.values())  # a model that was trained without prompts is used without them
        vectors = encode_texts(encoder, self.batch, prompted)
        dims = sorted(dims or encoder.dims, reverse=True)
        return [s for dim in dims for s in as_scores(HELD_OUT, dim, geometry_scores(vectors[dim], self.target_NE))]


@dataclass(frozen=True)
class HeldOutPairs(HeldOut):
    """Held-out pairs: images should find their captions, and captions their images."""

    needs_vision = True
    batch: Batch
    """Columns id, text (the caption), prompt, and image (the bytes of its file)."""
    pixel_limit: int

    def scores(self, encoder: Encoder, dims: Sequence[int] | None = None) -> list[Score]:
        if not encoder.accepts_images:
            return []
        of_images = image_encoder(encoder)
        of_images.pixel_limit = self.pixel_limit
        images, captions = of_images.encode_images(self.batch["image"].tolist()), encode_texts(encoder, self.batch)
        return [s for dim in sorted(dims or encoder.dims, reverse=True) for s in self.recall(images, captions, dim)]

    def recall(self, images: Mapping[int, np.ndarray], captions: Mapping[int, np.ndarray], dim: int) -> list[Score]:
        """Measure one head from its vectors."""
        figures = recalls(images[dim], captions[dim], self.batch["text"].tolist(), self.batch["image"].tolist())
        return as_scores(HELD_OUT, dim, figures)


def encode_texts(encoder: Encoder, batch: Batch, prompted: bool = True) -> dict[int, np.ndarray]:
    """Encode the texts of a batch, each with its prompt, as vectors `[N, D]` of every head."""
    vectors = {dim: np.empty((len(batch["text"]), dim), np.float32) for dim in encoder.dims}
    for rows, prompt in by_prompt(batch):
        parts = encoder.encode_heads(batch["text"][rows].tolist(), prompt if prompted else None)
        for dim in encoder.dims:
            vectors[dim][rows] = parts[dim]
    return vectors


def read_heldout(folder: Path) -> list[HeldOut]:
    """Read everything that a run holds out, from its folder. Needs no Ray.

    Raises:
        ConfigError: the folder is no run that labelled its held-out texts.
    """
    run = RunFolder(folder.absolute())
    manifest = load_manifest(run.pairs, PairManifest) if (run.pairs / MANIFEST).is_file() else None
    pairs = manifest and read_heldout_pairs(run.pairs, manifest.heldout, manifest.images)
    return [rows for rows in (read_heldout_texts(run), pairs) if rows]


def read_heldout_texts(run: RunFolder) -> HeldOutTexts | None:
    """Read the held-out texts of a run with their target; None when the run holds none out.

    Raises:
        ConfigError: the folder is no run that labelled its held-out texts.
    """
    if not run.pinned_teachers.is_file():
        raise ConfigError(f"{str(run.path)!r} is no run folder: it has no teachers.json; give one that distil wrote")
    shards = load_manifest(run.corpus, CorpusManifest).heldout
    if not shards:
        return None
    batch, rows = read_batch(run.corpus, shards)
    for teacher in json.loads(run.pinned_teachers.read_text(encoding="utf-8")):
        cache = TargetCache(run.heldout / f"{teacher['name']}-{teacher['identity']}")
        vectors = [cache.read(shard.sha256, ids) for shard, ids in zip(shards, rows, strict=True)]
        batch[vector_column(teacher["name"])] = np.concatenate(vectors)
    return HeldOutTexts(batch, target(batch, load_recipe(str(run.recipe_file)).teachers).numpy())


def read_heldout_pairs(folder: Path, shards: Sequence[Shard], images: Images) -> HeldOutPairs | None:
    """Read the pairs of shards below `folder`; None without shards."""
    return HeldOutPairs(read_batch(folder, shards)[0], images.pixel_limit) if shards else None


def read_batch(folder: Path, shards: Sequence[Shard]) -> tuple[Batch, list[list[str]]]:
    """Read the rows of shards as one batch, and the ids of each shard."""
    parts = [read_rows(read_shard(folder / shard.file)) for shard in shards]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, [
        p["id"].tolist() for p in parts
    ]


def check_rows(shards: Sequence[Shard]) -> None:
    """Refuse too few held-out texts to measure anything on them."""
    rows = sum(shard.rows for shard in shards)
    if 0 < rows < LEAST_ROWS:
        raise ConfigError(
            f"corpus.holdout leaves {rows} held-out texts, and measuring needs at least {LEAST_ROWS}; "
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


def measure_student(
    recipe: Recipe, moment: str, folder: Path, heldout: Sequence[HeldOut], sets: Sequence[SetData]
) -> list[ScoreRow]:
    """Measure every head of a student on the sets and the held-out rows; without vision on texts only."""
    torch.set_num_threads(recipe.stages[0].torch_threads)
    device = own_device()
    encoder = load_student(folder, device, precise(recipe.evaluation.precision, device))
    scores = evaluate(encoder, sets, dims=encoder.student.dims)
    for rows in heldout:
        scores += rows.scores(encoder)
    return with_moment(moment, scores)


def measure_teachers(recipe: Recipe, sets: Sequence[SetData]) -> list[ScoreRow]:
    """Measure each teacher, and the ensemble of all, on the sets."""
    torch.set_num_threads(recipe.stages[0].torch_threads)
    encoders = [teacher.open(own_device()) for teacher in recipe.teachers]
    records = [record for encoder in encoders for record in with_moment(encoder.teacher.name, evaluate(encoder, sets))]
    if len(encoders) > 1:
        records += with_moment("teachers together", evaluate(Ensemble(encoders), sets))
    return records


def by_prompt(batch: Batch) -> Iterator[tuple[np.ndarray, str | None]]:
    """Yield the indices of the rows that share a prompt, and the prompt; None for rows without one."""
    for prompt in sorted(set(batch["prompt"])):
        yield np.flatnonzero(batch["prompt"] == prompt), prompt or None


def target(batch: Batch, teachers: Sequence[Teacher]) -> Tensor:
    """Make the fused target `[N, E]` of a labelled batch."""
    columns = [torch.from_numpy(np.array(batch[vector_column(teacher.name)])) for teacher in teachers]
    return fuse(columns, [teacher.weight for teacher in teachers])
