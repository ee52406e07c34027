"""Baselines to compare a student with: ridge fits of its heads, and of the untrained vision tower."""

# Shape legend: N rows, E size of the target.
# Shape legend: N rows, C width of the tower's tokens, E sizes of all heads together.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ray.data import Dataset
from torch import Tensor

from jasper_ray.distill.heldout import HeldOutPairs, by_prompt, compare, encode_captions, target
from jasper_ray.encoders import StudentEncoder, load_student
from jasper_ray.encoders.precision import precise
from jasper_ray.evaluation import Score, ScoreRow, with_moment
from jasper_ray.images import decode
from jasper_ray.labelling.tasks import PIXELS, vector_column
from jasper_ray.models.folder import save_student
from jasper_ray.models.ridge import RidgeFit, set_heads, with_constant
from jasper_ray.ray_runtime import own_device
from jasper_ray.teachers import OWN, Teacher, split_heads
from jasper_ray.vectors import Precision


def fit_heads(
    start: Path,
    dataset: Dataset,
    teachers: Sequence[Teacher],
    regularisation: float,
    destination: Path,
    threads: int,
) -> None:
    """Write to `destination` the student of `start` with heads fitted to the labelled rows of `dataset`.

    Raises:
        ConfigError: `start` is not a student folder.
    """
    torch.set_num_threads(threads)
    encoder = load_student(start, own_device())
    student = encoder.student
    fit = RidgeFit(student.body.config.hidden_size, student.dims[0])
    for batch in dataset.iter_batches(batch_size=None):
        target_NE = target(batch, teachers)
        for rows, prompt in by_prompt(batch):
            pooled_NH = encoder.pooled(batch["text"][rows].tolist(), prompt)
            fit.add(pooled_NH, target_NE[torch.from_numpy(rows)])
    set_heads(student.cpu(), fit, regularisation)
    save_student(student, encoder.tokenizer, encoder.card, destination)


STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Regularisations that are tried. The one that does best on the held-out pairs is shown, a favour to the comparison."""


def measure_tower_ridge(
    moment: str, start: Path, dataset: Dataset, pairs: HeldOutPairs, precision: Precision, threads: int
) -> list[ScoreRow]:
    """The recall of every head, of the fit that finds most captions among ten with the full head."""
    torch.set_num_threads(threads)
    device = own_device()
    encoder = load_student(start, device, precise(precision, device), pixel_limit=pairs.pixel_limit)
    fit = fit_tower(encoder, dataset)
    features_NC = tower_features(encoder, held_out_pixels(encoder, pairs))
    captions = encode_captions(encoder, pairs)
    found = [scores_of(fit.solve(strength), features_NC, captions, pairs, encoder) for strength in STRENGTHS]
    return with_moment(moment, max(found, key=lambda scores: next(s.value for s in scores if s.metric == "i2t@10")))


def fit_tower(encoder: StudentEncoder, dataset: Dataset) -> RidgeFit:
    """The sums of a fit over all rows of `dataset`, which hold pixels and captions' vectors."""
    fit: RidgeFit | None = None
    for batch in dataset.iter_batches(batch_size=None):
        features_NC = tower_features(encoder, batch[PIXELS])
        target_NE = torch.from_numpy(np.array(batch[vector_column(OWN)]))
        fit = fit or RidgeFit(features_NC.shape[1], target_NE.shape[1])
        fit.add(features_NC, target_NE)
    assert fit is not None, "prepared pairs are never empty"
    return fit


@torch.inference_mode()
def tower_features(encoder: StudentEncoder, pixels_N3SS: np.ndarray) -> Tensor:
    """What the tower says of images as a whole, `[N, C]`."""
    vision = encoder.student.vision
    assert vision is not None
    pixels = torch.from_numpy(np.array(pixels_N3SS))
    device = next(vision.parameters()).device
    return torch.cat([vision.summary(part.to(device)).float().cpu() for part in pixels.split(encoder.batch_size)])


def held_out_pixels(encoder: StudentEncoder, pairs: HeldOutPairs) -> np.ndarray:
    vision = encoder.student.vision
    assert vision is not None
    preprocessing = vision.preprocessing
    return np.stack([preprocessing.pixels(decode(image, pairs.pixel_limit)) for image in pairs.batch["image"]])


def scores_of(
    map_EA: Tensor,
    features_NC: Tensor,
    captions: dict[int, np.ndarray],
    pairs: HeldOutPairs,
    encoder: StudentEncoder,
) -> list[Score]:
    """The recalls of every head that a fit gives."""
    dims = encoder.student.dims
    predicted = split_heads(with_constant(features_NC.double()) @ map_EA.T, dims)
    images = {dim: vectors.numpy() for dim, vectors in predicted.items()}
    return [score for dim in dims for score in compare(images, captions, pairs, dim)]
