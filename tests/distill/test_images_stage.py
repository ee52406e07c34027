"""The stage in which a student learns to see, under DeepSpeed: what trains, and that nothing is lost, on Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from small_run import (
    LOSSES,
    SmallRun,
    changed,
    cut,
    kill_a_worker_after,
    labelled,
    metrics,
    process_as_it_was,
    stage,
    train_alone,
    train_in_turn,
    visits_of,
    weights,
)

from jasper_ray import load_student
from jasper_ray.corpus.order import batches_in_pass
from jasper_ray.corpus.settings import Images
from jasper_ray.corpus.shards import PAIR_SHARD_SCHEMA, Shard, write_shard
from jasper_ray.distill.heldout import read_heldout_pairs
from jasper_ray.distill.measuring import measure_tower_ridge
from jasper_ray.distill.run import stream_rows
from jasper_ray.distill.students import write_vision
from jasper_ray.evaluation import evaluate, load_sets, read_sets
from jasper_ray.labelling.labeller import Decoding, Labeller, LabelShard, whole_shards
from jasper_ray.labelling.target_cache import TargetCache
from jasper_ray.labelling.tasks import Batch, Decode, ReadShard, ReadTargets
from jasper_ray.models.folder import VISION
from jasper_ray.models.vision import VisionSettings, read_preprocessing
from jasper_ray.recipe import Stage
from jasper_ray.run_folder import StageFolder
from jasper_ray.sources.hashing import pair_id
from jasper_ray.sources.pairs import read_pairs
from jasper_ray.teachers import OWN, CaptionTeacher
from jasper_ray.training.batches import ImageFeed
from jasper_ray.training.job import StageJob
from jasper_ray.training.stage import run_stage

KEY_BIAS = "k_proj.bias"
"""Adds the same to all scores of a query: its gradient is rounding, which Adam makes steps of."""
TEXTS = ["the number three", "a sentence about something else entirely", ""]


class SeeingRun:
    """Handwritten digits, and the small student, which has just been given vision."""

    def __init__(self, small: SmallRun, folder: Path) -> None:
        self.folder = folder
        self.recipe = small.recipe
        self.heads = small.recipe.student.heads
        self.images = Images.model_validate(
            {
                "sources": [{"path": "sklearn:digits/train", "format": "folder", "limit": 300}],
                "decoders": {"cpus": 0.1},
                "pool": {"cpus": 0.2},
            }
        )
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        architecture = {"model_type": "siglip_vision_model", "image_size": 16, "patch_size": 8, **sizes}
        self.vision = VisionSettings.model_validate(
            {"architecture": architecture, "preprocessing": {"size": 16}, "image_tokens": 3, "projector": "linear"}
        )
        self.pairs = folder / "pairs"
        *self.shards, self.heldout = write_pairs(self.images, self.pairs)
        self.blind, self.start = small.start, folder / "sight"
        seeing = small.recipe.student.model_copy(update={"vision": self.vision})
        write_vision(small.recipe.model_copy(update={"student": seeing}), self.blind, self.start)
        self.cache = TargetCache(folder / "own")
        with process_as_it_was():
            list(labelled(whole_shards(self.shards), self.read, [self.label(self.cache)]))

    @property
    def read(self) -> ReadShard:
        return ReadShard(self.pairs)

    @property
    def teacher(self) -> CaptionTeacher:
        return CaptionTeacher(self.start, self.images.pool, "float32")

    def label(self, cache: TargetCache) -> LabelShard | ReadTargets:
        """The captions' vectors, from the cache alone where it has them all."""
        known = all(cache.holds(shard.sha256) for shard in self.shards)
        return ReadTargets(OWN, cache) if known else LabelShard(self.teacher, cache)

    def labeller(self, cache: TargetCache | None) -> Labeller:
        preprocessing = read_preprocessing(self.start / VISION)
        decoding = Decoding(preprocessing, self.images.pixel_limit, self.images.decoders)
        return Labeller((self.teacher,), (cache,), self.pairs, decoding)

    def see(self, name: str, **settings: Any) -> StageFolder:
        """Run one stage on images on Ray, captions' vectors made on the way, and return its folder."""
        job = self.job(name, **settings)
        run_stage(job, partial(stream_rows, self.labeller(None), self.shards, job))
        return job.folder

    def see_alone(self, name: str, cache: TargetCache | None = None, **settings: Any) -> StageFolder:
        """Run one stage on images in this process, as its only worker, and return its folder."""
        job = self.job(name, **settings)
        train_alone(job, self.rows_of(job, cache))
        return job.folder

    def rows_of(self, job: StageJob, cache: TargetCache | None = None) -> Iterator[Batch]:
        """What a stage sees, made without Ray; captions' vectors come from the run's cache if no other is given."""
        rows = labelled(visits_of(job, self.shards), self.read, [self.label(cache or self.cache)])
        decode = Decode(read_preprocessing(self.start / VISION), self.images.pixel_limit)
        return map(decode, cut(rows, job.stage.micro_rows))

    def job(self, name: str, **settings: Any) -> StageJob:
        usual = {"data": "images", "train": ["vision.*"], "losses": {48: LOSSES, 16: LOSSES}, "reduction": "mean"}
        chosen = Stage.model_validate(stage(name, **{**usual, "learning_rate": 1e-3, **settings}))
        return StageJob(
            stage=chosen,
            start=self.start,
            folder=StageFolder(self.folder / "stages" / name),
            total_steps=chosen.total_steps(batches_in_pass(self.shards, chosen.batch_size)),
            feed=ImageFeed(self.vision.image_tokens, self.heads),
            dropout=0.0,
            seed=5,
        )


def write_pairs(images: Images, folder: Path) -> list[Shard]:
    """Shards of sixty pairs each."""
    (source,) = images.sources
    pairs = [(pair.image, pair.caption) for pair in read_pairs(source)]
    rows = [{"id": pair_id(*pair), "image": pair[0], "text": pair[1], "prompt": None} for pair in pairs]
    parts = [rows[first : first + 60] for first in range(0, len(rows), 60)]
    return [write_shard(pa.Table.from_pylist(part, schema=PAIR_SHARD_SCHEMA), folder, "train") for part in parts]


@pytest.fixture(scope="module")
def run(small: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> SeeingRun:
    return SeeingRun(small, tmp_path_factory.mktemp("seeing"))


@pytest.fixture(scope="module")
def one_worker(run: SeeingRun) -> StageFolder:
    return run.see_alone("one-worker", learning_rate=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_two_workers_equal_one(run: SeeingRun, one_worker: StageFolder, tmp_path: Path) -> None:
    job = run.job("two-workers", workers=2, zero=2, learning_rate=1e-4)
    train_in_turn([job], run.rows_of, tmp_path)
    alone, together = metrics(one_worker), metrics(job.folder)
    for name in ("total", "cosine/48", "cosine/16", "similarity/16", "relative_similarity/48"):
        assert [record[name] for record in together] == pytest.approx([record[name] for record in alone], rel=1e-5)
    expected, found = weights(one_worker.student), weights(job.folder.student)
    for name in expected:
        if not name.endswith(KEY_BIAS):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_only_vision_changes_and_texts_keep_their_vectors_to_the_bit(run: SeeingRun, one_worker: StageFolder) -> None:
    different = changed(run.start, one_worker.student)
    assert different
    assert all(name.startswith(f"{VISION}:") for name in different)
    # SigLIP's own head, which no token passes through, is kept as it was
    kept = {name for name in weights(run.start) if name.startswith(f"{VISION}:")} - different
    assert all(":head." in name or name.endswith(KEY_BIAS) for name in kept)
    before, after = load_student(run.blind).encode_heads(TEXTS), load_student(one_worker.student).encode_heads(TEXTS)
    for dim in before:
        np.testing.assert_array_equal(after[dim], before[dim])


def test_a_projector_alone_can_learn(run: SeeingRun) -> None:
    folder = run.see_alone("projector", train=["vision.projector.*"])
    assert changed(run.start, folder.student) == {f"{VISION}:weight", f"{VISION}:bias"}


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_a_killed_worker_is_replaced_and_the_result_is_that_of_one_that_was_not(run: SeeingRun) -> None:
    """Of the killed one captions' vectors are made on the way, of the other they come from the cache."""
    settings: dict[str, Any] = {"steps": 200, "checkpoint_every": 20}
    with ThreadPoolExecutor(1) as thread:
        death = thread.submit(kill_a_worker_after, run.folder / "stages" / "killed" / "checkpoints", 20)
        killed = run.see("killed", **settings)
        death.result()  # raises when there was no worker left to kill
    whole = run.see_alone("not-killed", **settings)
    assert [record["step"] for record in metrics(killed)] == list(range(200))
    assert changed(killed.student, whole.student) == set()


def test_captions_vectors_come_from_the_cache_the_second_time(run: SeeingRun, tmp_path: Path) -> None:
    cache = TargetCache(tmp_path / "own")
    first = metrics(run.see_alone("first", cache))
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "own").iterdir()}
    again = metrics(run.see_alone("again", cache))
    assert written == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "own").iterdir()}
    assert sum(record["labelled/own"] for record in first) == 5 * 16
    assert sum(record["labelled/own"] for record in again) == 0
    assert [record["total"] for record in again] == pytest.approx([record["total"] for record in first], rel=1e-6)
    assert all(record["decoding_processors"] > 0 for record in again)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_seeing_pays(run: SeeingRun, tmp_path: Path) -> None:
    """Some passes over real digits tell them apart far better than chance, on images that were not trained on."""
    learned = run.see_alone("learned", steps=150, batch_size=32, learning_rate=3e-3)
    listed = tmp_path / "sets.json"
    images = {"path": "sklearn:digits/test", "format": "folder", "caption": "label"}
    listed.write_text(
        json.dumps([{"type": "zero_shot", "name": "d", "images": images, "templates": ["the number {}"]}])
    )
    encoder = load_student(learned.student)
    scores = evaluate(encoder, read_sets(load_sets(listed)))
    assert {score.dim for score in scores} == {48, 16}
    assert min(score.value for score in scores) > 25  # of 100; chance is 10
    pairs = read_heldout_pairs(run.pairs, [run.heldout], run.images)
    assert pairs is not None
    after, before = pairs.scores(encoder), pairs.scores(load_student(run.start))
    assert sum(score.value for score in after) > sum(score.value for score in before)
    dataset = run.labeller(run.cache).label_shards(run.shards)
    with process_as_it_was():
        ridge = measure_tower_ridge(run.recipe, "ridge", run.start, dataset, pairs)
    assert {(record.dim, record.metric) for record in ridge} == {(score.dim, score.metric) for score in after}
