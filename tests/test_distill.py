"""The whole job: from a recipe file to a student, killed and continued, and refused where it must not continue."""

from __future__ import annotations

import io
import json
import logging
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import yaml
from sentence_transformers import SentenceTransformer
from small_run import recipe_values, stage

from jasper_ray import load_student
from jasper_ray.config import ConfigError
from jasper_ray.distill.run import distill, logger
from jasper_ray.evaluation import load
from jasper_ray.recipe import parse_recipe
from jasper_ray.training.job import latest_step

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ["a sentence", "another one, somewhat longer than the first"]
FIRST = stage("first", train=["heads.48.*"], losses={48: {"cosine": 10}}, steps=4)
SECOND = stage(
    "second", train=["heads.*", "body.encoder.*"], workers=2, zero=1, passes=3, steps=None, checkpoint_every=5
)


@pytest.fixture(scope="module")
def job(shared_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on texts, to its end; returns the folder it happened in."""
    folder = tmp_path_factory.mktemp("job")
    write_recipe(folder, recipe_values(folder, FIRST, SECOND))
    (folder / "out.txt").write_text(call("distill.py", str(folder / "recipe.yaml"), "--run", str(folder / "run")))
    return folder


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
def before(job: Path) -> Before:
    """The run, continued with a stage on images, in which its driver is killed; started again, it ends."""
    run = job / "run"
    vectors, trained = load_student(run / "student").encode_heads(TEXTS), times(run)
    write_recipe(job, taught_to_see(job))
    driver = start(job)
    while not (
        latest_step(next(run.glob("stages/3-sight-*"), job) / "checkpoints") and len(steps(run, "3-sight")) > 12
    ):
        assert driver.poll() is None, driver.stdout.read() if driver.stdout else ""
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    checkpoint = latest_step(next(run.glob("stages/3-sight-*/checkpoints")))
    found = Before(vectors, trained, written(run.glob("targets/*/*.parquet")), steps(run, "3-sight"), checkpoint)
    distill(parse_recipe(taught_to_see(job), "test"), run)
    return found


def start(folder: Path) -> subprocess.Popen[str]:
    """`jobs/distill.py` in a process of its own, with a Ray of its own."""
    script, recipe, run = (str(path) for path in (ROOT / "jobs" / "distill.py", folder / "recipe.yaml", folder / "run"))
    command = [sys.executable, script, recipe, "--run", run]
    return subprocess.Popen(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


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


def test_the_table_has_every_moment(job: Path) -> None:
    moments = {record.moment for record in load(job / "run" / "evaluation.json")}
    assert {"start", "1-first", "2-second", "ridge"} <= moments
    assert "2-second" in (job / "out.txt").read_text()


def test_the_finished_student_is_what_sentence_transformers_loads_at_every_head(job: Path) -> None:
    folder = job / "run" / "student"
    texts = [*TEXTS, "x"]
    ours = load_student(folder)
    assert ours.dims == (48, 16)
    modules = (folder / "modules.json").read_text()
    for dim in ours.dims:
        edited = shutil.copytree(folder, job / f"edited-{dim}")
        (edited / "modules.json").write_text(modules.replace("2_Dense_48", f"2_Dense_{dim}"))
        theirs = SentenceTransformer(str(edited), device="cpu").encode(texts, normalize_embeddings=True)
        np.testing.assert_allclose(ours.encode(texts, dim=dim), theirs, atol=1e-5)


def test_any_model_can_be_measured_on_a_runs_held_out_texts(job: Path) -> None:
    models = ["--model", str(job / "run" / "student"), "--model", "pypi:all-MiniLM-L6-v2"]
    call("evaluate.py", *models, "--json", str(job / "scores.json"))
    found = load(job / "scores.json")
    in_run = [record for record in load(job / "run" / "evaluation.json") if record.moment == "2-second"]
    assert [record.value for record in found if record.dim != 384] == pytest.approx([r.value for r in in_run], abs=1e-5)
    assert {record.metric for record in found if record.dim == 384} == {"gram_error", "pair_order"}


def test_a_finished_run_does_nothing_again(
    job: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "disabled", False)  # import-linter, called by another test, silences all there are
    trained = times(job / "run")
    with caplog.at_level(logging.INFO, logger="jasper_ray"):
        distill(parse_recipe(recipe_values(job, FIRST, SECOND), "test"), job / "run")
    assert "second  finished before" in caplog.text
    assert times(job / "run") == trained


def test_a_killed_job_continues_where_it_was(job: Path, before: Before) -> None:
    run = job / "run"
    assert {path: times(run)[path] for path in before.trained} == before.trained
    done = steps(run, "3-sight")
    assert [record["step"] for record in done] == list(range(80))
    assert before.checkpoint >= 10
    assert done[: before.checkpoint] == before.steps[: before.checkpoint]  # to the microsecond: not made again


def test_cached_targets_are_not_computed_again(job: Path, before: Before) -> None:
    assert len({path.parent for path in before.targets}) == 3  # two teachers' and the student's own
    assert written(before.targets) == before.targets
    second = steps(job / "run", "2-second")
    last_pass = second[-len(second) // 3 :]
    assert all(record["labelled/a"] == record["labelled/b"] == 0 for record in last_pass)


def test_a_finished_student_is_taught_to_see_in_the_same_folder(job: Path, before: Before) -> None:
    student = load_student(job / "run" / "student")
    assert student.sees
    for dim, vectors in student.encode_heads(TEXTS).items():
        np.testing.assert_array_equal(vectors, before.vectors[dim])
    recalled = {record.moment for record in load(job / "run" / "evaluation.json") if record.metric == "i2t@10"}
    assert recalled == {"3-sight start", "3-sight", "tower ridge"}


def test_a_run_whose_teachers_changed_does_not_continue(job: Path) -> None:
    values = recipe_values(job, FIRST, SECOND)
    values["teachers"][1]["prompt"] = "passage: "
    with pytest.raises(ConfigError, match=r"b with .*prompt.*passage"):
        distill(parse_recipe(values, "test"), job / "run")
