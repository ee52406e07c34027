"""A whole run in small, of real texts and a real body, shared by the tests that need Ray."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file
from torch import Tensor

from jasper_ray.assets import locate
from jasper_ray.data import load_manifest
from jasper_ray.data.order import batches_in_pass
from jasper_ray.distill import stream_rows
from jasper_ray.pipelines.corpus import prepare_corpus
from jasper_ray.pipelines.label import Labeller
from jasper_ray.pipelines.start import write_start
from jasper_ray.recipe import Recipe, Stage, parse_recipe
from jasper_ray.runs import StageFolder
from jasper_ray.teachers import Teacher
from jasper_ray.training.feed import TextFeed
from jasper_ray.training.job import StageJob, latest_step
from jasper_ray.training.stage import run_stage

LOSSES = {"cosine": 10, "similarity": 200, "relative_similarity": 20}


def stage(name: str = "all", **settings: Any) -> dict[str, Any]:
    """A stage of a few steps; `settings` replaces its keys."""
    usual = {
        "name": name,
        "train": ["*"],
        "losses": {48: LOSSES, 16: {"similarity": 200, "relative_similarity": 20}},
        "learning_rate": 1e-4,
        "steps": 5,
        "batch_size": 16,
        "cpus_per_worker": 0.25,
        "threads": 1,
        "scope": "global",
    }
    return {**usual, **settings}


def recipe_values(folder: Path, *stages: dict[str, Any], rows: int = 400) -> dict[str, Any]:
    """A recipe on `rows` real sentences, with two weightless teachers and one layer of a real body."""
    return {
        "name": "small",
        "seed": 5,
        "student": {
            "body": {"base": "pypi:all-MiniLM-L6-v2", "layers": [0]},
            "heads": [48, 16],
            "max_length": 32,
        },
        "teachers": [
            {"type": "hash", "name": "a", "dim": 32, "pool": {"cpus": 0.25}},
            {"type": "hash", "name": "b", "dim": 16, "pool": {"cpus": 0.25}},
        ],
        "corpus": {
            "sources": [{"path": str(sentences(folder, rows)), "format": "text"}],
            "holdout": 0.1,
            "shard_rows": 50,
        },
        "targets": {"type": "cached"},
        "stages": list(stages) or [stage()],
    }


def sentences(folder: Path, rows: int) -> Path:
    """The first `rows` of VADER's sentences as a file."""
    lines = Path(locate("pypi:vader-sentences")).read_text(encoding="utf-8").splitlines()[:rows]
    path = folder / "sentences.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


class SmallRun:
    """A prepared corpus and a student before training, for stages to be run on."""

    def __init__(self, folder: Path, rows: int = 400) -> None:
        self.folder = folder
        self.recipe: Recipe = parse_recipe(recipe_values(folder, rows=rows), "test")
        self.corpus = folder / "corpus"
        prepare_corpus(self.recipe.corpus, self.corpus, self.recipe.seed)
        self.start = folder / "start"
        write_start(self.recipe, self.start)

    def train(self, name: str, teachers: tuple[Teacher, ...] | None = None, **settings: Any) -> StageFolder:
        """Run one stage and return its folder."""
        teachers = teachers or self.recipe.teachers
        chosen = Stage.model_validate(stage(name, **settings))
        folder = StageFolder(self.folder / "stages" / name)
        shards = load_manifest(self.corpus).train
        job = StageJob(
            stage=chosen,
            start=self.start,
            folder=folder,
            total_steps=chosen.total_steps(batches_in_pass(shards, chosen.batch_size)),
            feed=TextFeed(tuple((teacher.name, teacher.weight) for teacher in teachers)),
            dropout=0.0,
            seed=self.recipe.seed,
        )
        labeller = Labeller(teachers, (None,) * len(teachers), self.corpus)
        run_stage(job, partial(stream_rows, labeller, shards, job))
        return folder


def metrics(folder: StageFolder) -> list[dict[str, Any]]:
    """The stage's log, step by step."""
    return [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]


def weights(student: Path) -> dict[str, Tensor]:
    """Every weight of a student folder, by file and name."""
    return {
        f"{path.parent.name if path.parent != student else 'body'}:{name}": value
        for path in sorted(student.rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def changed(before: Path, after: Path) -> set[str]:
    """Names of the weights that differ, to the bit."""
    old, new = weights(before), weights(after)
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def title(process: psutil.Process) -> str:
    """What a process calls itself; nothing for one that has ended meanwhile, or that nobody has waited for."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill_a_worker_after(checkpoints: Path, step: int) -> None:
    until = time.monotonic() + 300
    while latest_step(checkpoints) < step:
        assert time.monotonic() < until, f"no checkpoint of step {step}"
        time.sleep(0.05)
    workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in title(p)]
    assert workers, "the stage ended before a worker could be killed"
    os.kill(workers[0].pid, signal.SIGKILL)
