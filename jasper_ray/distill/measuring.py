"""Measuring a run's students and their baselines: the teachers, and ridge fits of heads and of the untrained tower."""

# Shape legend: N rows, C width of the tower's tokens, E sizes of all heads together, A = C + 1 with a constant.

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ray.data import Dataset
from torch import Tensor

from jasper_ray.cli import log_progress
from jasper_ray.distill.heldout import HeldOut, HeldOutPairs, encode_texts, measure_student, measure_teachers
from jasper_ray.distill.plan import RunPlan
from jasper_ray.distill.students import fit_heads
from jasper_ray.encoders import StudentEncoder, load_student
from jasper_ray.encoders.precision import precise
from jasper_ray.evaluation import Score, Scoreboard, ScoreRow, text_sets, with_moment
from jasper_ray.labelling.tasks import PIXELS, vector_column
from jasper_ray.models.ridge import RidgeFit, with_constant
from jasper_ray.ray_runtime import own_device
from jasper_ray.recipe import Recipe, RidgeHeads
from jasper_ray.teachers import OWN, split_heads

logger = logging.getLogger(__name__)

STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Regularisations that are tried. The best on the held-out pairs is reported, which favours this baseline."""


def measure(plan: RunPlan, board: Scoreboard, heldout: Sequence[HeldOut], moment: str, student: Path) -> None:
    """Measure a student, unless its scores are stored beside it."""
    board.take(moment, student, lambda: plan.call(measure_student, moment, student, heldout, board.sets))


def measure_baselines(plan: RunPlan, board: Scoreboard, heldout: Sequence[HeldOut]) -> None:
    """Measure the ridge fits and the teachers that the recipe asks for."""
    if compares_ridge(plan):
        measure(plan, board, heldout, "ridge", ridge_student(plan))
    pairs = [rows for rows in heldout if isinstance(rows, HeldOutPairs)]
    if plan.recipe.evaluation.ridge and pairs:
        measure_tower(plan, board, pairs[0])
    sets = text_sets(board.sets)
    if plan.recipe.evaluation.teachers and sets:
        place = plan.run.path / "teachers"
        board.take("the teachers", place, lambda: plan.call(measure_teachers, sets))


def compares_ridge(plan: RunPlan) -> bool:
    """Tell whether the student is compared with a ridge fit on all texts."""
    return plan.recipe.evaluation.ridge and bool(plan.texts.manifest.heldout)


def ridge_student(plan: RunPlan) -> Path:
    """Fit the heads of the starting student to all training texts, unless that is done, and return its folder."""
    folder = plan.folder(0).path / "ridge"
    if not folder.is_dir():
        logger.info("fitting heads to all %d training texts, as a baseline", sum(s.rows for s in plan.texts.shards))
        dataset = plan.texts.labeller().label_shards(plan.texts.shards)
        regularisation = RidgeHeads(type="ridge").regularisation  # for many texts, unlike the start's, which may be few
        with log_progress("fitting the heads"):
            plan.call(fit_heads, folder.with_name("random_heads"), dataset, regularisation, folder)
    return folder


def measure_tower(plan: RunPlan, board: Scoreboard, pairs: HeldOutPairs) -> None:
    """Measure a ridge fit from the untrained tower to the captions' vectors of the first stage on images."""
    number, stage = next((n, s) for n, s in enumerate(plan.recipe.stages, start=1) if s.kind.needs_vision)
    start, rows = plan.folder(number).path / "start", plan.data[stage.data]
    dataset, place = rows.labeller(start).label_shards(rows.shards), start.with_name("tower-ridge")
    board.take("tower ridge", place, lambda: plan.call(measure_tower_ridge, "tower ridge", start, dataset, pairs))


def measure_tower_ridge(
    recipe: Recipe, moment: str, start: Path, dataset: Dataset, pairs: HeldOutPairs
) -> list[ScoreRow]:
    """Measure the recall of every head, for the fit that finds most captions among ten with the full head."""
    torch.set_num_threads(recipe.stages[0].torch_threads)
    device = own_device()
    dtype = precise(recipe.evaluation.precision, device)
    encoder = load_student(start, device, dtype, pixel_limit=pairs.pixel_limit)
    fit = fit_tower(encoder, dataset)
    features_NC = tower_features(encoder, np.stack([encoder.pixels(image) for image in pairs.batch["image"]]))
    captions = encode_texts(encoder, pairs.batch)
    tried = [recall_of(fit.solve(strength), features_NC, captions, pairs, encoder) for strength in STRENGTHS]
    return with_moment(moment, max(tried, key=lambda scores: next(s.value for s in scores if s.metric == "i2t@10")))


def fit_tower(encoder: StudentEncoder, dataset: Dataset) -> RidgeFit:
    """Sum up a fit over all rows of `dataset`, which hold pixels and captions' vectors."""
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
    """Compute the tower's vector of each whole image, `[N, C]`."""
    parts = torch.from_numpy(np.array(pixels_N3SS)).split(encoder.batch_size)
    device = next(encoder.vision.parameters()).device
    return torch.cat([encoder.vision.summary(part.to(device)).float().cpu() for part in parts])


def recall_of(
    map_EA: Tensor,
    features_NC: Tensor,
    captions: dict[int, np.ndarray],
    pairs: HeldOutPairs,
    encoder: StudentEncoder,
) -> list[Score]:
    """Measure the recall of every head of a fit."""
    dims = encoder.student.dims
    predicted = split_heads(with_constant(features_NC.double()) @ map_EA.T, dims)
    images = {dim: vectors.numpy() for dim, vectors in predicted.items()}
    return [score for dim in dims for score in pairs.recall(images, captions, dim)]
