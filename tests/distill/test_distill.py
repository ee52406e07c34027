"""The whole job: from a recipe file to a student, stopped, killed and continued, and what a person sees of it."""

from __future__ import annotations

import io
import json
import logging
import os
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import yaml
from sentence_transformers import SentenceTransformer
from small_run import recipe_values, stage
from watching import Watched, foreign, watch

from jasper_ray import load_student
from jasper_ray.config import ConfigError
from jasper_ray.distill.run import distill, logger
from jasper_ray.evaluation import read_scores
from jasper_ray.evaluation.report import render
from jasper_ray.recipe import parse_recipe
from jasper_ray.training.job import latest_step

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
STOPPED = "stopped by SIGTERM; run the same command again to continue"
TEXTS = ["a sentence", "another one, somewhat longer than the first"]
FIRST = stage("first", train=["heads.48.*"], losses={48: {"cosine": 10}}, steps=4)
SECOND = stage(
    "second", train=["heads.*", "body.encoder.*"], workers=2, zero=1, passes=3, steps=None, checkpoint_every=5
)


@dataclass(frozen=True)
class Job:
    """A run on texts that SIGTERM stopped in its second stage, and the same command again, to the end."""

    folder: Path
    stopped: Watched
    step: int
    """Of the newest checkpoint when it had stopped."""
    finished: Watched

    @property
    def run(self) -> Path:
        return self.folder / "run"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("job")
    write_recipe(folder, recipe_values(folder, FIRST, SECOND))
    stopped = watch(folder)
    while not list(folder.glob("run/stages/2-second-*/checkpoints/step-*/state.json")):
        assert stopped.process.poll() is None, stopped.err
        time.sleep(0.05)
    stopped.look_below()
    stopped.process.send_signal(signal.SIGTERM)
    time.sleep(1)
    stopped.process.send_signal(signal.SIGTERM)  # by now it cleans up, which nothing interrupts
    stopped.wait()
    step = latest_step(next(folder.glob("run/stages/2-second-*/checkpoints")))
    finished = watch(folder)
    finished.wait()
    return Job(folder, stopped, step, finished)


def write_recipe(folder: Path, values: dict[str, Any]) -> None:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


def call(name: str, *arguments: str) -> str:
    """Run one of the commands in this process; what it prints."""
    printed = io.StringIO()
    with patch.object(sys, "argv", [name, *arguments]), redirect_stdout(printed):
        runpy.run_path(str(ROOT / "jobs" / name))["main"]()
    return printed.getvalue()


@dataclass(frozen=True)
class Before:
    """What was there when a driver was killed."""

    vectors: dict[int, np.ndarray]
    trained: dict[Path, int]
    targets: dict[Path, int]
    steps: list[dict[str, Any]]
    checkpoint: int


@pytest.fixture(scope="module")
def before(shared_ray: None, job: Job) -> Before:
    """The run, continued with a stage on images, in which its driver is killed; started again, it ends."""
    run = job.run
    vectors, trained = load_student(run / "student").encode_heads(TEXTS), times(run)
    write_recipe(job.folder, taught_to_see(job.folder))
    driver = watch(job.folder)
    while not (
        latest_step(next(run.glob("stages/3-sight-*"), job.folder) / "checkpoints") and len(steps(run, "3-sight")) > 12
    ):
        assert driver.process.poll() is None, driver.err
        time.sleep(0.05)
    os.killpg(driver.process.pid, signal.SIGKILL)
    driver.process.wait()
    checkpoint = latest_step(next(run.glob("stages/3-sight-*/checkpoints")))
    found = Before(vectors, trained, written(run.glob("targets/*/*.parquet")), steps(run, "3-sight"), checkpoint)
    distill(parse_recipe(taught_to_see(job.folder), "test"), run)
    return found


def steps(run: Path, name: str) -> list[dict[str, Any]]:
    (path,) = list(run.glob(f"stages/{name}-*/metrics.jsonl")) or [Path(os.devnull)]
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def written(paths: Iterable[Path]) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in paths}


def times(run: Path) -> dict[Path, int]:
    """When the weights of the stages on texts were written."""
    return written(run.glob("stages/[012]-*/student/**/*.safetensors"))


def taught_to_see(folder: Path) -> dict[str, Any]:
    """The recipe with a stage on images more."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    architecture = {"model_type": "siglip_vision_model", "image_size": 16, "patch_size": 8, **sizes}
    losses = {dim: {"cosine": 10, "similarity": 200, "relative_similarity": 20} for dim in (48, 16)}
    sight = {"data": "images", "train": ["vision.*"], "losses": losses, "steps": 80, "checkpoint_every": 10}
    values = recipe_values(folder, FIRST, SECOND, stage("sight", **sight))
    values["student"]["vision"] = {"architecture": architecture, "preprocessing": {"size": 16}, "image_tokens": 3}
    values["images"] = {
        "sources": [{"format": "folder", "path": "sklearn:digits/train", "limit": 200}],
        "holdout": 0.2,
        "shard_rows": 40,
        "decoders": {"cpus": 0.1},
        "pool": {"cpus": 0.2},
        "dtype": "float32",
    }
    return values


def test_sigterm_in_a_stage_ends_with_one_sentence_and_leaves_nothing_behind(job: Job) -> None:
    assert job.stopped.process.returncode == 143
    assert job.stopped.err[-1] == STOPPED
    assert foreign(job.stopped.err[:-1]) == job.stopped.out == []
    assert any("RayTrainWorker" in name for name in job.stopped.below.values())
    assert job.stopped.alive() == []


def test_the_same_command_continues_after_sigterm(job: Job) -> None:
    assert job.finished.process.returncode == 0, job.finished.err
    done = [record["step"] for record in steps(job.run, "2-second")]
    assert 5 <= job.step < len(done), "the stage had ended before it was stopped"
    assert done == list(range(len(done)))


def test_every_line_of_a_run_is_ours(job: Job) -> None:
    assert job.finished.err
    assert foreign(job.finished.err) == []
    table = render(read_scores(job.run / "evaluation.json"))
    last = f"The student is in {job.run / 'student'}"
    assert job.finished.out == [*table.splitlines(), "", last]


def test_no_ten_seconds_pass_without_a_line(job: Job) -> None:
    times = sorted(job.finished.times)
    assert max(later - earlier for earlier, later in pairwise(times)) < 10


def test_the_table_has_every_moment(job: Job) -> None:
    moments = {record.moment for record in read_scores(job.run / "evaluation.json")}
    assert {"start", "1-first", "2-second", "ridge"} <= moments
    assert "2-second" in "\n".join(job.finished.out)


def test_the_finished_student_is_what_sentence_transformers_loads_at_every_head(job: Job) -> None:
    folder = job.run / "student"
    texts = [*TEXTS, "x"]
    ours = load_student(folder)
    assert ours.dims == (48, 16)
    modules = (folder / "modules.json").read_text()
    for dim in ours.dims:
        edited = shutil.copytree(folder, job.folder / f"edited-{dim}")
        (edited / "modules.json").write_text(modules.replace("2_Dense_48", f"2_Dense_{dim}"))
        theirs = SentenceTransformer(str(edited), device="cpu").encode(texts, normalize_embeddings=True)
        np.testing.assert_allclose(ours.encode(texts, dim=dim), theirs, atol=1e-5)


def test_any_model_can_be_measured_on_a_runs_held_out_texts(job: Job) -> None:
    models = ["--model", str(job.run / "student"), "--model", "pypi:all-MiniLM-L6-v2"]
    call("evaluate.py", *models, "--json", str(job.folder / "scores.json"))
    found = read_scores(job.folder / "scores.json")
    in_run = [record for record in read_scores(job.run / "evaluation.json") if record.moment == "2-second"]
    assert [record.value for record in found if record.dim != 384] == pytest.approx([r.value for r in in_run], abs=1e-5)
    assert {record.metric for record in found if record.dim == 384} == {"gram_error", "pair_order"}


def test_a_finished_run_does_nothing_again(
    shared_ray: None, job: Job, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "disabled", False)  # import-linter, called by another test, silences all there are
    trained = times(job.run)
    with caplog.at_level(logging.INFO, logger="jasper_ray"):
        distill(parse_recipe(recipe_values(job.folder, FIRST, SECOND), "test"), job.run)
    assert "second  already done, skipping" in caplog.text
    assert times(job.run) == trained


def test_a_killed_job_continues_where_it_was(job: Job, before: Before) -> None:
    run = job.run
    assert {path: times(run)[path] for path in before.trained} == before.trained
    done = steps(run, "3-sight")
    assert [record["step"] for record in done] == list(range(80))
    assert before.checkpoint >= 10
    assert done[: before.checkpoint] == before.steps[: before.checkpoint]  # to the microsecond: not made again


def test_cached_targets_are_not_computed_again(job: Job, before: Before) -> None:
    assert len({path.parent for path in before.targets}) == 3  # two teachers' and the student's own
    assert written(before.targets) == before.targets
    second = steps(job.run, "2-second")
    last_pass = second[-len(second) // 3 :]
    assert all(record["labelled/a"] == record["labelled/b"] == 0 for record in last_pass)


def test_a_finished_student_is_taught_to_see_in_the_same_folder(job: Job, before: Before) -> None:
    student = load_student(job.run / "student")
    assert student.accepts_images
    for dim, vectors in student.encode_heads(TEXTS).items():
        np.testing.assert_array_equal(vectors, before.vectors[dim])
    recalled = {record.moment for record in read_scores(job.run / "evaluation.json") if record.metric == "i2t@10"}
    assert recalled == {"3-sight start", "3-sight", "tower ridge"}


def test_a_run_whose_teachers_changed_does_not_continue(job: Job) -> None:
    values = recipe_values(job.folder, FIRST, SECOND)
    values["teachers"][1]["prompt"] = "passage: "
    with pytest.raises(ConfigError, match=r"b with .*prompt.*passage"):
        distill(parse_recipe(values, "test"), job.run)
