"""The objective weighs the losses of every head, on one worker and over several."""

# Shape legend: B rows (texts), F features of a text, D dimensions of a head, E of the target, W workers.

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from jasper_ray.config import ConfigError
from jasper_ray.losses import cosine_loss, relative_similarity_loss, similarity_loss
from jasper_ray.losses.objective import HeadLosses, Objective, Reduction, Scope

PAPER = HeadLosses.model_validate({"cosine": 10, "similarity": 200, "relative_similarity": 20})
RELATIONAL = HeadLosses.model_validate({"similarity": 200, "relative_similarity": 20, "margin": 0.1})
HEADS = {16: PAPER, 6: RELATIONAL}
WORKERS = 2


def batch(rows: int = 12) -> tuple[Tensor, Tensor]:
    """Features and a target of 16 dimensions that a linear student can learn in part."""
    generator = torch.Generator().manual_seed(0)
    features_BF = torch.randn(rows, 10, generator=generator)
    noise_BE = torch.randn(rows, 16, generator=generator)
    return features_BF, features_BF @ torch.randn(10, 16, generator=generator) + noise_BE


def heads() -> nn.ModuleDict:
    """A student as small as can be: a linear head for each dimension."""
    torch.manual_seed(1)
    return nn.ModuleDict({str(dim): nn.Linear(10, dim) for dim in HEADS})


def vectors_of(student: nn.ModuleDict, features_BF: Tensor) -> dict[int, Tensor]:
    return {int(dim): head(features_BF) for dim, head in student.items()}


def gradients(student: nn.ModuleDict, loss: Tensor) -> dict[str, Tensor]:
    student.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in student.named_parameters() if weight.grad is not None}


# ---- Settings ----


def test_a_head_needs_a_weight() -> None:
    with pytest.raises(ValidationError, match="all loss weights of a head are 0"):
        HeadLosses()


@pytest.mark.parametrize("field", ["cosine", "similarity", "relative_similarity", "margin"])
def test_negative_weights_are_refused(field: str) -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        HeadLosses.model_validate({"cosine": 1.0, field: -1.0})


def test_an_objective_needs_a_head() -> None:
    with pytest.raises(ConfigError, match="no heads"):
        Objective({})


# ---- Weighing ----


@pytest.mark.parametrize("reduction", get_args(Reduction))
def test_total_is_the_weighted_sum_or_mean_over_heads(reduction: Reduction) -> None:
    features_BF, target_BE = batch()
    vectors = vectors_of(heads(), features_BF)
    result = Objective(HEADS, reduction=reduction)(vectors, dict.fromkeys(vectors, target_BE))
    wide = (
        10 * cosine_loss(vectors[16], target_BE)
        + 200 * similarity_loss(vectors[16], target_BE)
        + 20 * relative_similarity_loss(vectors[16], target_BE)
    )
    narrow = 200 * similarity_loss(vectors[6], target_BE)
    narrow = narrow + 20 * relative_similarity_loss(vectors[6], target_BE, margin=0.1)
    expected = (wide + narrow) / (2 if reduction == "mean" else 1)
    torch.testing.assert_close(result.total, expected)
    torch.testing.assert_close(result.terms["total"], expected.detach())


def test_terms_are_unweighted_detached_and_only_those_with_a_weight() -> None:
    features_BF, target_BE = batch()
    vectors = vectors_of(heads(), features_BF)
    terms = Objective(HEADS)(vectors, dict.fromkeys(vectors, target_BE)).terms
    assert list(terms) == [
        "cosine/16",
        "similarity/16",
        "relative_similarity/16",
        "similarity/6",
        "relative_similarity/6",
        "total",
    ]
    assert not any(term.requires_grad for term in terms.values())
    torch.testing.assert_close(terms["similarity/6"], similarity_loss(vectors[6], target_BE).detach())


def test_heads_without_losses_get_no_gradient() -> None:
    features_BF, target_BE = batch()
    student = heads()
    result = Objective({16: PAPER})(vectors_of(student, features_BF), dict.fromkeys(HEADS, target_BE))
    assert set(gradients(student, result.total)) == {"16.weight", "16.bias"}


# ---- Errors ----


def test_cosine_between_unequal_sizes_names_head_and_sizes() -> None:
    features_BF, target_BE = batch()
    with pytest.raises(ValueError, match="head 6 has a cosine loss, but the target has 16 dimensions"):
        Objective({6: PAPER})(vectors_of(heads(), features_BF), dict.fromkeys(HEADS, target_BE))


def test_missing_head_is_named() -> None:
    features_BF, target_BE = batch()
    with pytest.raises(ConfigError, match=r"name head 8, but the student returned heads \[6, 16\]"):
        Objective({8: RELATIONAL})(vectors_of(heads(), features_BF), dict.fromkeys(HEADS, target_BE))


def test_vectors_of_another_size_than_their_head_are_refused() -> None:
    with pytest.raises(ValueError, match=r"vectors of head 6 have shape \(4, 5\); expected \[B, 6\]"):
        Objective({6: RELATIONAL})({6: torch.ones(4, 5)}, {6: torch.ones(4, 16)})


# ---- Several workers ----


def test_global_scope_needs_no_process_group() -> None:
    features_BF, target_BE = batch()
    vectors = vectors_of(heads(), features_BF)
    alone = Objective(HEADS, scope="global")(vectors, dict.fromkeys(vectors, target_BE)).total
    torch.testing.assert_close(alone, Objective(HEADS)(vectors, dict.fromkeys(vectors, target_BE)).total)


def averaged_step(objective: Objective, features_BF: Tensor, target_BE: Tensor) -> dict[str, Tensor]:
    """What an engine does: each worker takes its own rows, gradients are averaged; and the terms it would report."""
    student = heads()
    rows = slice(dist.get_rank() * len(target_BE) // WORKERS, (dist.get_rank() + 1) * len(target_BE) // WORKERS)
    result = objective(vectors_of(student, features_BF[rows]), dict.fromkeys(HEADS, target_BE[rows]))
    averaged = gradients(student, result.total)
    for gradient in averaged.values():
        dist.all_reduce(gradient)
        gradient /= WORKERS
    return {**averaged, **result.terms}


def run_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS)
    try:
        found = {scope: averaged_step(Objective(HEADS, scope=scope), *batch()) for scope in get_args(Scope)}
        with pytest.raises(ValueError, match=r"batches of \[6, 7\] rows; scope 'global' needs equal ones"):
            averaged_step(Objective(HEADS, scope="global"), *batch(rows=13))
    finally:
        dist.destroy_process_group()
    torch.save(found, Path(folder, f"{rank}.pt"))


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Scope, dict[str, Tensor]]]:
    """What each of two processes computed, by scope."""
    folder = tmp_path_factory.mktemp("workers")
    spawn(run_worker, args=(str(folder),), nprocs=WORKERS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORKERS)]


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (found[name] - tensor).abs().max()
        assert error <= 1e-6 * tensor.abs().max(), f"{name} off by {error}"


def test_global_scope_on_two_workers_equals_one_worker_with_all_rows(
    workers: list[dict[Scope, dict[str, Tensor]]],
) -> None:
    student = heads()
    features_BF, target_BE = batch()
    result = Objective(HEADS)(vectors_of(student, features_BF), dict.fromkeys(HEADS, target_BE))
    expected = {**gradients(student, result.total), **result.terms}
    for found in workers:
        assert_near(found["global"], expected)


def test_worker_scope_is_the_mean_of_the_workers_own_batches(workers: list[dict[Scope, dict[str, Tensor]]]) -> None:
    student = heads()
    features_BF, target_BE = batch()
    halves = [
        Objective(HEADS)(vectors_of(student, features), dict.fromkeys(HEADS, target))
        for features, target in zip(features_BF.chunk(2), target_BE.chunk(2), strict=True)
    ]
    expected = gradients(student, (halves[0].total + halves[1].total) / 2)
    for found, half in zip(workers, halves, strict=True):
        assert_near(found["worker"], {**expected, **half.terms})


# ---- A new loss ----

NEW_LOSS = """
import torch
from jasper_ray.losses import LOSSES, Loss, Option

def distance_loss(student_BD, teacher_BD, exponent=2.0):
    return (student_BD - teacher_BD).abs().pow(exponent).mean()

options = {"exponent": Option(2.0, "Its power.")}
LOSSES["distance"] = Loss(distance_loss, "Weight of the distance.", least_rows=4, same_size=True, options=options)

from jasper_ray.losses.objective import Objective
from jasper_ray.recipe.stage import Stage

def stage(**settings):
    usual = {"name": "new", "train": ["*"], "learning_rate": 0.1, "steps": 1, "batch_size": 8}
    return Stage.model_validate({**usual, "losses": {6: {"distance": 3, "exponent": 1.5, "similarity": 1}}, **settings})

target_BE = torch.randn(8, 6)
student = torch.nn.Linear(4, 6)
features_BF = torch.randn(8, 4)
objective = Objective(stage().losses)
totals = []
for _ in range(20):
    result = objective({6: student(features_BF)}, {6: target_BE})
    student.zero_grad()
    result.total.backward()
    with torch.no_grad():
        for weight in student.parameters():
            weight -= 0.1 * weight.grad
    totals.append(float(result.total))
assert list(result.terms) == ["similarity/6", "distance/6", "total"]
assert totals[-1] < totals[0]
wrong = {"at least 4 rows": {"micro_batch_size": 2}, "greater than or equal": {"losses": {6: {"distance": -1}}}}
for refused, settings in wrong.items():
    try:
        stage(**settings)
    except ValueError as error:
        assert refused in str(error)
    else:
        raise AssertionError(refused)
try:
    objective({6: torch.ones(8, 6)}, {6: torch.ones(8, 5)})
except ValueError as error:
    assert "head 6 has a distance loss, but the target has 5 dimensions" in str(error)
else:
    raise AssertionError("sizes")
"""


def test_a_new_loss_is_a_function_and_a_row() -> None:
    answer = subprocess.run([sys.executable, "-c", NEW_LOSS], text=True, capture_output=True, check=False)
    assert answer.returncode == 0, answer.stderr
