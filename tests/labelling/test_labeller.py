"""Labelling on a real local Ray: exact order, whole shards, one teacher at a time, and errors that reach the user."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.data import DataContext, ExecutionOptions, TaskPoolStrategy
from ray.data._internal.execution.operators.input_data_buffer import InputDataBuffer
from ray.data._internal.planner.plan_udf_map_op import plan_streaming_repartition_op
from small_run import SmallRun

from jasper_ray.config import ConfigError
from jasper_ray.corpus.order import plan_visits, row_order
from jasper_ray.corpus.shards import read_shard
from jasper_ray.encoders import HashEncoder
from jasper_ray.labelling.labeller import Labeller
from jasper_ray.labelling.target_cache import TargetCache
from jasper_ray.ray_runtime import own_device, plain_errors, ray_session, repartition_with
from jasper_ray.teachers import SentenceTransformerTeacher

pytestmark = pytest.mark.slow
on_ray = pytest.mark.usefixtures("shared_ray")


@pytest.fixture
def labeller(small: SmallRun, tmp_path: Path) -> Labeller:
    """Two teachers whose caches are empty."""
    teachers = small.recipe.teachers
    return Labeller(teachers, tuple(TargetCache(tmp_path / teacher.name) for teacher in teachers), small.corpus)


@on_ray
def test_what_reserves_no_gpu_stays_off_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ray.get(ray.remote(own_device).remote()) == "cpu"
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [0])
    assert own_device() is None


def test_a_ray_that_is_not_there_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", broken)
    message = r"cannot join the Ray at 127.0.0.1:1 \(nobody there\); start it"
    with pytest.raises(ConfigError, match=message), ray_session(cpus=1, gpus=0):
        pass


def broken(*_: object, **__: object) -> None:
    raise ConnectionError("nobody there\nand three paragraphs of advice")


@on_ray
def test_a_stream_is_the_plan_row_by_row_labelled_or_read(small: SmallRun, labeller: Labeller) -> None:
    visits = list(plan_visits(small.shards, seed=5, batch_size=16, first_step=3, last_step=50))
    shards = {visit.file: read_shard(labeller.folder / visit.file) for visit in visits}
    texts = [shards[visit.file]["text"][int(index)].as_py() for visit in visits for index in row_order(visit)]
    for labelled in (True, False):  # by the pools, then read from the cache
        dataset = labeller.stream(visits, block_rows=8)
        dataset.context.execution_options = ExecutionOptions(preserve_order=True)
        blocks = list(dataset.iter_batches(batch_size=None))
        assert {len(block["id"]) for block in blocks} == {8}
        assert [text for block in blocks for text in block["text"]] == texts
        assert [p for block in blocks for p in block["position"]] == list(range(3 * 16, 50 * 16))
        found = np.concatenate([block["vector:b"] for block in blocks])
        np.testing.assert_allclose(found, HashEncoder(16).encode(texts), atol=1e-3)
        assert all(any((block[f"seconds:{name}"] > 0).any() for block in blocks) == labelled for name in "ab")


@on_ray
def test_ray_cuts_blocks_by_the_tasks_that_are_set() -> None:
    pool = TaskPoolStrategy(2)
    dataset = repartition_with(ray.data.range(10, override_num_blocks=4), 3, 0.05, pool)
    rows = InputDataBuffer(dataset.context, [])
    operator = plan_streaming_repartition_op(dataset._logical_plan.dag, [rows], dataset.context)
    assert operator._ray_remote_args["num_cpus"] == 0.05
    assert operator.get_max_concurrency_limit() == 2
    dataset.context.execution_options.preserve_order = True
    blocks = [batch["id"].tolist() for batch in dataset.iter_batches(batch_size=None)]
    assert blocks == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


@on_ray
def test_a_block_stays_one_shard_however_wide_it_is(
    small: SmallRun, labeller: Labeller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DataContext.get_current(), "target_max_block_size", 2000)
    alone = replace(labeller, teachers=labeller.teachers[:1], caches=labeller.caches[:1])
    blocks = list(alone.label_shards(small.shards).iter_batches(batch_size=None))
    assert sorted(len(block["id"]) for block in blocks) == sorted(shard.rows for shard in small.shards)
    assert all(cache and cache.holds(shard.sha256) for cache in alone.caches for shard in small.shards)


@on_ray
def test_an_added_teacher_labels_alone(small: SmallRun, labeller: Labeller) -> None:
    added = replace(labeller, caches=(small.cached.caches[0], labeller.caches[1]))
    for batch in added.label_shards(small.shards).iter_batches(batch_size=None):
        assert (batch["seconds:a"] == 0).all()
        assert (batch["seconds:b"] > 0).all()


@on_ray
def test_a_teacher_that_breaks_its_word_is_told_by_name_through_all_of_rays_wrappers(
    small: SmallRun, labeller: Labeller
) -> None:
    pool = labeller.teachers[0].pool
    teachers = (SentenceTransformerTeacher(name="short", model="pypi:all-MiniLM-L6-v2", dim=100, pool=pool),)
    wrong = replace(labeller, teachers=teachers, caches=(None,))
    with pytest.raises(ConfigError) as caught, plain_errors():
        list(wrong.label_shards(small.shards).iter_batches(batch_size=None))
    assert str(caught.value) == "teacher 'short' returned vectors of size 384, but dim is 100; fix dim"
