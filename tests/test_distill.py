"""The whole job: from a recipe file to a student, killed and continued, and refused where it must not continue."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sentence_transformers import SentenceTransformer
from small_run import recipe_values, stage

from jasper_ray import load_student
from jasper_ray.config import ConfigError
from jasper_ray.distill import distill
from jasper_ray.evaluation import load
from jasper_ray.recipe import parse_recipe
from jasper_ray.training.job import latest_step

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
FIRST = stage("first", train=["heads.48.*"], losses={48: {"cosine": 10}}, steps=4)
SECOND = stage("second", workers=2, zero=1, passes=3, steps=None, checkpoint_every=5)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose driver is killed in its second stage and started again; returns the folder it happened in."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_values(folder, FIRST, SECOND)), encoding="utf-8")
    first = start(folder)
    wait_for_checkpoint(first, folder / "run")
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    remember(folder)
    again = start(folder)
    out, _ = again.communicate(timeout=400)
    assert again.returncode == 0, out
    (folder / "out.txt").write_text(out, encoding="utf-8")
    return folder


def start(folder: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        str(ROOT / "jobs" / "distill.py"),
        str(folder / "recipe.yaml"),
        "--run",
        str(folder / "run"),
    ]
    return subprocess.Popen(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def wait_for_checkpoint(process: subprocess.Popen[str], run: Path) -> None:
    """Until the second stage has a checkpoint and has gone on from it."""
    while not (list(run.glob("stages/2-second-*/checkpoints/step-*/state.json")) and len(steps(run, "2-second")) > 7):
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.1)


def steps(run: Path, name: str) -> list[dict[str, Any]]:
    (path,) = list(run.glob(f"stages/{name}-*/metrics.jsonl")) or [Path(os.devnull)]
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def remember(folder: Path) -> None:
    """Note what was there when the driver was killed."""
    run = folder / "run"
    seen = {
        "first": (next(run.glob("stages/1-first-*")) / "student" / "model.safetensors").stat().st_mtime_ns,
        "step": latest_step(next(run.glob("stages/2-second-*/checkpoints"))),
        "metrics": steps(run, "2-second"),
        "targets": {str(path): path.stat().st_mtime_ns for path in run.glob("targets/*/*.parquet")},
    }
    (folder / "seen.json").write_text(json.dumps(seen), encoding="utf-8")


def test_a_killed_job_continues_where_it_was(job: Path) -> None:
    seen, run = json.loads((job / "seen.json").read_text()), job / "run"
    assert "first  finished before" in (job / "out.txt").read_text()
    assert (next(run.glob("stages/1-first-*")) / "student" / "model.safetensors").stat().st_mtime_ns == seen["first"]
    second, done = steps(run, "2-second"), seen["step"]
    assert [record["step"] for record in second] == list(range(second[0]["total_steps"]))
    assert done >= 5
    assert second[:done] == seen["metrics"][:done]  # to the microsecond: these steps were not made again


def test_cached_targets_are_not_computed_again(job: Path) -> None:
    seen, run = json.loads((job / "seen.json").read_text()), job / "run"
    assert seen["targets"]
    assert all(Path(path).stat().st_mtime_ns == written for path, written in seen["targets"].items())
    second = steps(run, "2-second")
    last_pass = second[-len(second) // 3 :]
    assert all(record["labelled/a"] == record["labelled/b"] == 0 for record in last_pass)


def test_the_finished_student_is_what_sentence_transformers_loads_at_every_head(job: Path) -> None:
    folder = job / "run" / "student"
    texts = ["a sentence", "another one, somewhat longer than the first", "x"]
    ours = load_student(folder)
    assert ours.dims == (48, 16)
    modules = (folder / "modules.json").read_text()
    for dim in ours.dims:
        edited = shutil.copytree(folder, job / f"edited-{dim}")
        (edited / "modules.json").write_text(modules.replace("2_Dense_48", f"2_Dense_{dim}"))
        theirs = SentenceTransformer(str(edited), device="cpu").encode(texts, normalize_embeddings=True)
        np.testing.assert_allclose(ours.encode(texts, dim=dim), theirs, atol=1e-5)


def test_any_model_can_be_measured_on_a_runs_held_out_texts(job: Path) -> None:
    evaluate = [sys.executable, str(ROOT / "jobs" / "evaluate.py"), "--model", str(job / "run" / "student")]
    done = subprocess.run(
        [*evaluate, "--model", "pypi:all-MiniLM-L6-v2", "--json", "scores.json"],
        cwd=job,
        text=True,
        capture_output=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    found = load(job / "scores.json")
    in_run = [record for record in load(job / "run" / "evaluation.json") if record.moment == "2-second"]
    assert [record.value for record in found if record.dim != 384] == pytest.approx([r.value for r in in_run], abs=1e-5)
    assert {record.metric for record in found if record.dim == 384} == {"gram_error", "pair_order"}


def test_the_table_has_every_moment(job: Path) -> None:
    moments = {record.moment for record in load(job / "run" / "evaluation.json")}
    assert {"start", "1-first", "2-second", "ridge"} <= moments
    assert "2-second" in (job / "out.txt").read_text()


def test_a_finished_run_does_nothing_again(job: Path) -> None:
    again = start(job)
    out, _ = again.communicate(timeout=200)
    assert again.returncode == 0
    assert "second  finished before" in out


def taught_to_see(folder: Path) -> dict[str, Any]:
    """The recipe with a stage on images more."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    architecture = {"model_type": "siglip_vision_model", "image_size": 16, "patch_size": 8, **sizes}
    losses = {dim: {"cosine": 10, "similarity": 200, "relative_similarity": 20} for dim in (48, 16)}
    sight = {"data": "images", "train": ["vision.*"], "losses": losses, "steps": 60, "checkpoint_every": 10}
    values: dict[str, Any] = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    values["stages"].append(stage("sight", **sight))
    values["student"]["vision"] = {"architecture": architecture, "preprocessing": {"size": 16}, "image_tokens": 3}
    values["images"] = {
        "sources": [{"format": "folder", "path": "sklearn:digits/train", "limit": 200}],
        "holdout": 0.2,
        "shard_rows": 40,
        "decoders": {"cpus": 0.1},
        "pool": {"cpus": 0.2},
    }
    return values


def test_a_finished_student_is_taught_to_see_in_the_same_folder_and_resumes(job: Path) -> None:
    run = job / "run"
    texts = ["a sentence", "another one, somewhat longer than the first"]
    before, trained = load_student(run / "student").encode_heads(texts), times(run)
    (job / "recipe.yaml").write_text(yaml.safe_dump(taught_to_see(job)), encoding="utf-8")
    first = start(job)
    while len(steps(run, "3-sight")) < 25:
        assert first.poll() is None, first.stdout.read() if first.stdout else ""
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    seen = steps(run, "3-sight")[:20]
    again = start(job)
    out, _ = again.communicate(timeout=400)
    assert again.returncode == 0, out
    assert {path: times(run)[path] for path in trained} == trained
    assert steps(run, "3-sight")[:20] == seen  # to the microsecond: these steps were not made again
    assert [record["step"] for record in steps(run, "3-sight")] == list(range(60))
    student = load_student(run / "student")
    assert student.sees
    for dim, vectors in student.encode_heads(texts).items():
        np.testing.assert_array_equal(vectors, before[dim])
    recalled = {record.moment for record in load(run / "evaluation.json") if record.metric == "i2t@10"}
    assert recalled == {"3-sight start", "3-sight", "tower ridge"}


def times(run: Path) -> dict[Path, int]:
    """When the weights of the stages on texts were written."""
    return {path: path.stat().st_mtime_ns for path in run.glob("stages/[012]-*/student/**/*.safetensors")}


def test_a_run_whose_teachers_changed_does_not_continue(job: Path) -> None:
    values = recipe_values(job, FIRST, SECOND)
    values["teachers"][1]["prompt"] = "passage: "
    with pytest.raises(ConfigError, match=r"b with .*prompt.*passage"):
        distill(parse_recipe(values, "test"), job / "run")
