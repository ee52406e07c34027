"""What every side of the distilling benchmark is given: texts, teachers, student, batch size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jasper_ray.config import ConfigError
from jasper_ray.corpus.shards import Manifest, Shard, load_manifest, read_shard
from jasper_ray.recipe import Recipe, Stage, parse_recipe

NO_CHECKPOINTS = 1 << 30
"""Steps between checkpoints: none but the last, which a stage always writes."""


@dataclass(frozen=True)
class Work:
    """One student to train on one corpus; a fresh process is handed this and nothing else."""

    recipe: Recipe
    """One stage, one head, cosine alone."""
    folder: Path
    threads: int
    """Threads of whatever has the machine to itself; what runs side by side takes the recipe's."""

    @property
    def stage(self) -> Stage:
        return self.recipe.stages[0]

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def start(self) -> Path:
        """The student before training: a plain sentence-transformers folder, so both sides start from its weights."""
        return self.folder / "start"

    def targets(self, teacher: str) -> Path:
        """Our cache of a teacher's vectors."""
        return self.folder / "targets" / teacher

    def shards(self, rows: int) -> list[Shard]:
        """The first shards, with `rows` texts together.

        Raises:
            ConfigError: the corpus has fewer.
        """
        manifest: Manifest = load_manifest(self.corpus)
        taken = list(manifest.train[: rows // self.recipe.corpus.shard_rows])
        found = sum(shard.rows for shard in taken)
        if found != rows:
            raise ConfigError(f"the corpus has {found} of the {rows} texts to measure with; lower --rows")
        return taken

    def texts(self, rows: int) -> list[str]:
        """The texts of those shards."""
        return [
            text for shard in self.shards(rows) for text in read_shard(self.corpus / shard.file)["text"].to_pylist()
        ]


def sizes(rows: int, shard_rows: int, batch_size: int) -> tuple[int, int, int]:
    """Texts of a short and a long run, and the shards' size: whole shards and whole batches, at about 1 to 3.

    Raises:
        ConfigError: too few for two runs of different length.
    """
    unit = shard_rows if rows >= 6 * shard_rows and shard_rows % batch_size == 0 else batch_size
    long, short = round(rows / unit) * unit, max(1, round(rows / 3 / unit)) * unit
    if long <= short:
        raise ConfigError(f"--rows is {rows}, but two runs of different length need at least {2 * batch_size}")
    return short, long, unit


def comparable(recipe: Recipe, shard_rows: int) -> Recipe:
    """The recipe cut down to what the usual way can do too: all parameters, one head, cosine alone, nothing held out
    and no text left out.

    Precision, batch size, threads, teachers and body stay the recipe's; the stage is its last one.
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
    """The stage that both sides run."""
    return [stage for stage in recipe.stages if stage.data == "texts"][-1]


def names(recipe: Recipe) -> Sequence[str]:
    """The teachers' names, in the order of the target."""
    return [teacher.name for teacher in recipe.teachers]
