"""The workload of the distilling benchmark, the same for every side: texts, teachers, student, batch size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jasper_ray.config import ConfigError
from jasper_ray.corpus.shards import CorpusManifest, Shard, load_manifest, read_shard
from jasper_ray.recipe import Recipe, Stage, parse_recipe

NO_CHECKPOINTS = 1 << 30
"""Steps between checkpoints: only the last remains, which a stage always writes."""


@dataclass(frozen=True)
class Workload:
    """One student to train on one corpus; the only argument of a fresh process."""

    recipe: Recipe
    """A recipe of one stage, one head, and the cosine loss."""
    folder: Path
    threads: int
    """Threads of a part that has the machine to itself; parts that run side by side take the recipe's."""

    @property
    def stage(self) -> Stage:
        return self.recipe.stages[0]

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def start(self) -> Path:
        """Folder of the student before training, a sentence-transformers model from which both sides start."""
        return self.folder / "start"

    def targets(self, teacher: str) -> Path:
        """Return the folder of our cache of a teacher's vectors."""
        return self.folder / "targets" / teacher

    def shards(self, rows: int) -> list[Shard]:
        """List the first shards, with `rows` texts in total.

        Raises:
            ConfigError: the corpus has fewer.
        """
        manifest = load_manifest(self.corpus, CorpusManifest)
        taken = list(manifest.train[: rows // self.recipe.corpus.shard_rows])
        available = sum(shard.rows for shard in taken)
        if available != rows:
            raise ConfigError(f"the corpus has {available} of the {rows} texts to measure with; lower --rows")
        return taken

    def texts(self, rows: int) -> list[str]:
        """Read the texts of those shards."""
        return [
            text for shard in self.shards(rows) for text in read_shard(self.corpus / shard.file)["text"].to_pylist()
        ]


def sizes(rows: int, shard_rows: int, batch_size: int) -> tuple[int, int, int]:
    """Return the texts of a short and a long run, about 1 to 3, and the shard size: whole shards and whole batches.

    Raises:
        ConfigError: the rows are too few for two runs of different length.
    """
    unit = shard_rows if rows >= 6 * shard_rows and shard_rows % batch_size == 0 else batch_size
    long, short = round(rows / unit) * unit, max(1, round(rows / 3 / unit)) * unit
    if long <= short:
        raise ConfigError(f"--rows is {rows}, but two runs of different length need at least {2 * batch_size}")
    return short, long, unit


def comparable(recipe: Recipe, shard_rows: int) -> Recipe:
    """Reduce the recipe to the abilities of the usual way: all parameters, one head, the cosine loss, every text.

    Precision, batch size, threads, teachers and body stay the recipe's; the stage is its last one on texts.
    """
    full = recipe.student.heads[0]
    values = recipe.model_dump(mode="json")
    stage = {
        **last_on_texts(recipe).model_dump(mode="json"),
        "train": ["*"],
        "losses": {full: {"cosine": 1}},
        "checkpoint_every": NO_CHECKPOINTS,
        "schedule": "linear",
        "warmup": 0,
    }
    sources = [{**source, "limit": None} for source in values["corpus"]["sources"]]
    corpus = {**values["corpus"], "sources": sources, "holdout": 0, "shard_rows": shard_rows}
    student = {**values["student"], "heads": [full], "default_head": full, "vision": None}
    changed = {
        "images": None,
        "student": student,
        "heads_start": {"type": "random"},
        "corpus": corpus,
        "targets": {"type": "live"},
        "stages": [stage],
        "evaluation": {"teachers": False, "ridge": False},
    }
    return parse_recipe({**values, **changed}, f"the benchmark's form of {recipe.name}")


def last_on_texts(recipe: Recipe) -> Stage:
    """Choose the stage that both sides run."""
    return [stage for stage in recipe.stages if not stage.kind.needs_vision][-1]
