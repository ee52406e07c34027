"""Stages under DeepSpeed, on processors: what trains, that workers add up and nothing is lost, on Ray where it is about
workers."""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import ray
import torch
from deepspeed.comm.torch import build_shm_op
from small_run import SmallRun, changed, kill_a_worker_after, metrics, train_in_turn, weights

from jasper_ray.config import ConfigError
from jasper_ray.run_folder import StageFolder
from jasper_ray.training.engine import skip_shared_memory_operator
from jasper_ray.training.job import latest_step
from jasper_ray.training.stage import stop_file, work

ZEROS = [0, 1, 2, 3]
IN_BF16 = {"precision": "bf16", "zero": 2, "workers": 2, "train": ["heads.*", "body.encoder.*"]}
IN_BF16 |= {"steps": 100, "checkpoint_every": 10}


@pytest.fixture(scope="module")
def alone(small: SmallRun) -> StageFolder:
    return small.train_alone("alone")


@pytest.fixture(scope="module")
def in_pairs(small: SmallRun, shared_ray: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageFolder]:
    """Stages of two workers by name, trained by the same two."""
    jobs = [small.job("bf16", **IN_BF16), *(small.job(f"zero-{zero}", workers=2, zero=zero) for zero in ZEROS)]
    train_in_turn(jobs, small.rows_of, tmp_path_factory.mktemp("state"))
    return {job.stage.name: job.folder for job in jobs}


@pytest.mark.slow
@pytest.mark.parametrize("zero", ZEROS)
def test_two_workers_equal_one(alone: StageFolder, in_pairs: dict[str, StageFolder], zero: int) -> None:
    two = in_pairs[f"zero-{zero}"]
    apart, together = metrics(alone), metrics(two)
    for name in ("total", "cosine/48", "similarity/48", "relative_similarity/16"):
        assert [record[name] for record in together] == pytest.approx([record[name] for record in apart], rel=1e-5)
    norms = [record["grad_norm"] for record in together]
    assert norms == pytest.approx([record["grad_norm"] for record in apart], rel=1e-3)
    assert min(norms) > 0
    expected, found = weights(alone.student), weights(two.student)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


def test_accumulated_micro_batches_of_a_separable_loss_equal_one_batch(small: SmallRun) -> None:
    losses = {48: {"cosine": 10}, 16: {"similarity": 1e-30}}
    whole = small.train_alone("whole", losses=losses)
    parts = small.train_alone("parts", losses=losses, micro_batch_size=4)
    expected, found = weights(whole.student), weights(parts.student)
    for name in (name for name in expected if not name.startswith("2_Dense_16")):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


def test_exactly_the_named_parameters_change(small: SmallRun) -> None:
    patterns = ["heads.48.*", "body.encoder.layer.0.output.*"]
    folder = small.train_alone("named", train=patterns, precision="bf16")
    expected = {
        "2_Dense_48:linear.weight",
        "2_Dense_48:linear.bias",
        *(
            f"body:encoder.layer.0.output.{part}"
            for part in ("dense.weight", "dense.bias", "LayerNorm.weight", "LayerNorm.bias")
        ),
    }
    assert changed(small.start, folder.student) == expected


def test_a_stage_that_was_stopped_goes_on_and_the_result_is_that_of_one_that_was_not(small: SmallRun) -> None:
    settings = {"steps": 12, "checkpoint_every": 5}
    with pytest.raises(StopIteration):
        small.train_alone("stopped", until=8, **settings)
    assert [record["step"] for record in metrics(StageFolder(small.folder / "stages" / "stopped"))] == list(range(8))
    stopped, whole = small.train_alone("stopped", **settings), small.train_alone("not-stopped", **settings)
    assert [record["step"] for record in metrics(stopped)] == list(range(12))
    assert changed(stopped.student, whole.student) == set()


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_result_is_the_same(
    small: SmallRun, in_pairs: dict[str, StageFolder]
) -> None:
    """One of two in bf16, while one teacher is at work and the other's vectors come from the cache."""
    labeller = replace(small.cached, caches=(None, *small.cached.caches[1:]))
    with ThreadPoolExecutor(1) as thread:
        death = thread.submit(kill_a_worker_after, small.folder / "stages" / "killed" / "checkpoints", 10)
        killed = small.train("killed", labeller, **IN_BF16)
        death.result()  # raises when there was no worker left to kill
    assert [record["step"] for record in metrics(killed)] == list(range(100))
    assert changed(killed.student, in_pairs["bf16"].student) == set()


def test_a_loss_that_is_not_finite_stops_the_stage_and_names_the_rows(small: SmallRun) -> None:
    with pytest.raises(ConfigError, match=r"loss is not finite for the batch of rows [0-9a-f]{16}"):
        small.train_alone(
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
        small.train_alone(name, losses=losses, precision=precision, zero=zero, checkpoint_every=1)
    assert latest_step(small.folder / "stages" / name / "checkpoints") == 0


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_what_a_teacher_does_wrong_in_mid_stage_is_told_in_one_sentence(small: SmallRun) -> None:
    first, second = small.recipe.teachers
    unchecked = first.model_copy(update={"name": "short", "truncate": 100})
    labeller = replace(small.cached, teachers=(unchecked, second), caches=(None, small.cached.caches[1]))
    with pytest.raises(ConfigError) as caught:
        small.train("wrong-teacher", labeller, max_restarts=0)
    assert str(caught.value) == "teacher 'short': truncate is 100, but its vectors have only 32 dimensions"
    assert ray.is_initialized()  # left running for others


def test_a_worker_does_not_begin_a_stage_that_no_restart_mends(small: SmallRun) -> None:
    job = small.job("not-mended")
    job.folder.create(job.stage, job.total_steps)
    stop_file(job).write_text("a reason")
    work({"job": job})
    assert not job.folder.metrics.exists()


def test_deepspeed_asks_its_table_before_it_compiles_the_operator_that_is_skipped() -> None:
    skip_shared_memory_operator()
    assert build_shm_op() is None
    assert "__compatible_ops__.get(builder.NAME" in inspect.getsource(build_shm_op)
