"""The plan of a run: resolved recipe, prepared rows, folders and fingerprints; nothing of it changes while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import ray

from jasper_ray.corpus.order import Visit, batches_in_pass, plan_visits
from jasper_ray.distill.data import StageData, TextData, base_identity
from jasper_ray.distill.preflight import data_kinds
from jasper_ray.recipe import Recipe, Stage
from jasper_ray.run_folder import RunFolder, StageFolder, stage_fingerprints


@dataclass(frozen=True)
class RunPlan:
    """A run inside a Ray session."""

    recipe: Recipe
    run: RunFolder
    data: Mapping[str, StageData]
    """Prepared rows by their kind."""
    fingerprints: Sequence[str]
    """One for the student before training, then one for each stage."""

    @property
    def texts(self) -> TextData:
        """The corpus, which every run has."""
        return cast(TextData, self.data["texts"])

    @property
    def threads(self) -> int:
        """Torch's threads for work that runs instead of a training worker."""
        return self.recipe.stages[0].torch_threads

    def folder(self, number: int) -> StageFolder:
        """Return the folder of a stage, counted from 1; number 0 is the student before training."""
        name = self.recipe.stages[number - 1].name if number else "start"
        return self.run.stage(number, name, self.fingerprints[number])

    def total_steps(self, stage: Stage) -> int:
        return stage.total_steps(batches_in_pass(self.data[stage.data].shards, stage.batch_size))

    def visits(self, stage: Stage, first_step: int) -> list[Visit]:
        """List the visits of shards that serve a stage from `first_step` on."""
        shards, span = self.data[stage.data].shards, {"first_step": first_step, "last_step": self.total_steps(stage)}
        return list(plan_visits(shards, seed=self.recipe.seed, batch_size=stage.batch_size, **span))

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function on the cluster, with the reservation of one training worker."""
        stage = self.recipe.stages[0]
        calls = 1 if stage.gpus else 0  # a process that lives on would keep the GPU's memory
        task = ray.remote(max_calls=calls)(function).options(
            num_cpus=stage.cpus_per_worker, num_gpus=stage.gpus, max_retries=2
        )
        return ray.get(task.remote(*arguments))


def prepare(run: RunFolder, recipe: Recipe, teachers: Sequence[dict[str, Any]]) -> RunPlan:
    """Prepare the rows of every kind, unless they are there, and write down what runs in the folder.

    Raises:
        ConfigError: a source is unusable, or the rows of a kind are too few for a batch.
    """
    data = {name: kind.prepare(recipe, run, teachers) for name, kind in data_kinds(recipe).items()}
    for stage in recipe.stages:
        batches_in_pass(data[stage.data].shards, stage.batch_size, stage.data)
    run.keep(recipe, teachers)
    body = recipe.student.body
    base = None if body.random_weights else base_identity(body.base, body.revision)
    identities = {name: rows.identity() for name, rows in data.items()}
    corpus = data["texts"].manifest.fingerprint
    return RunPlan(recipe, run, data, stage_fingerprints(recipe, teachers, corpus, base, identities))
