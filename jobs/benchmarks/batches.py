"""Micro-batches that nobody labelled, for timing stages: texts and images of full length, and photographs to decode."""

# Shape legend: B rows, T tokens, S side of an image in pixels, E size of the target.

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from jasper_ray.models.student import Student
from jasper_ray.models.tokens import TokenGroup
from jasper_ray.recipe import Stage
from jasper_ray.training.batches import MicroBatch

PHOTOGRAPHS = 100
"""Photographs that are decoded to see how long it takes."""


def full_texts(student: Student, stage: Stage, tokens: int) -> MicroBatch:
    """A micro-batch of texts without padding, in the stage's groups."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = student.body.config.vocab_size
    ids_BT = torch.randint(vocabulary, (stage.batch_size, tokens), generator=generator)
    groups = [TokenGroup(ids, torch.ones_like(ids)) for ids in ids_BT.split(stage.group_rows)]
    target_BE = F.normalize(torch.randn(stage.batch_size, student.dims[0], generator=generator))
    return as_micro_batch(groups, dict.fromkeys(stage.losses, target_BE))


def full_images(student: Student, stage: Stage) -> MicroBatch:
    """A micro-batch of images, in the stage's groups; the marks around an image and the text's own take four tokens."""
    vision = student.vision
    assert vision is not None, "a recipe with such a stage has student.vision"
    generator = torch.Generator().manual_seed(0)
    size, tokens = vision.preprocessing.size, vision.image_tokens + 4
    pixels_B3SS = torch.randint(256, (stage.batch_size, 3, size, size), generator=generator, dtype=torch.uint8)
    places_T = (torch.arange(tokens) >= 2) & (torch.arange(tokens) < tokens - 2)
    groups = []
    for pixels in pixels_B3SS.split(stage.group_rows):
        ids_BT = torch.zeros(len(pixels), tokens, dtype=torch.long)
        groups.append(TokenGroup(ids_BT, torch.ones_like(ids_BT), pixels, places_T.expand(len(pixels), tokens)))
    targets = {dim: F.normalize(torch.randn(stage.batch_size, dim, generator=generator)) for dim in stage.losses}
    return as_micro_batch(groups, targets)


def as_micro_batch(groups: list[TokenGroup], targets: dict[int, Tensor]) -> MicroBatch:
    rows = sum(len(group.ids_BT) for group in groups)
    return MicroBatch([str(row) for row in range(rows)], 0, groups, targets, {})


def in_turn(micro: MicroBatch) -> Iterator[MicroBatch]:
    """The same rows again and again, at the places where a stage expects them."""
    return (replace(micro, position=round_ * micro.rows) for round_ in itertools.count())


def photographs() -> list[bytes]:
    """JPEG files of 640 x 427 pixels, which scikit-learn brings."""
    from sklearn.datasets import load_sample_images

    files = []
    for pixels in load_sample_images().images:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files * (PHOTOGRAPHS // len(files))
