"""A stage of a recipe, which is one training as data, and the kinds of rows that a stage can train on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from jasper_ray.config import ConfigError, Settings
from jasper_ray.losses.objective import HeadLosses
from jasper_ray.resources import Gpus, Pool, decided_gpus

if TYPE_CHECKING:
    from jasper_ray.recipe.schema import Recipe


@dataclass(frozen=True)
class DataFacts:
    """Facts of a data kind that a recipe is checked by, and the class that does its work."""

    settings: str
    """Key of the recipe that describes the rows."""
    folder: str
    """Folder of the prepared rows in a run folder."""
    pools: Callable[[Recipe], Mapping[str, Pool]]
    """The actors that make the rows while a stage trains, by name."""
    work: str
    """Module and name of the subclass of `jasper_ray.distill.plan.StageData` that prepares, labels and batches the rows
    of a run. It is imported when a run starts, so that checking a recipe does not load Ray."""
    needs_vision: bool = False
    """The student needs a vision encoder to read a row."""
    own_targets: bool = False
    """Each head has a target of its own size; otherwise all have the teachers' target, of the full head's size."""


DATA_KINDS: dict[str, DataFacts] = {
    "texts": DataFacts(
        settings="corpus",
        folder="corpus",
        pools=lambda recipe: {f"teacher {teacher.name}": teacher.pool for teacher in recipe.teachers},
        work="jasper_ray.distill.plan:TextData",
    ),
    "images": DataFacts(
        settings="images",
        folder="pairs",
        pools=lambda recipe: (
            {"captions": recipe.images.pool, "decoders": recipe.images.decoders} if recipe.images else {}
        ),
        work="jasper_ray.distill.plan:ImageData",
        needs_vision=True,
        own_targets=True,
    ),
}
"""Every kind by the name that a stage's `data` gives it; the name is also the unit of its rows in log lines."""

Decay = Annotated[float, Field(ge=0, lt=1)]


class Stage(Settings):
    """One training. Everything that distinguishes one stage from another is a field of this class."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    """Names the stage's folder and its row in the tables."""
    data: str = "texts"
    """Kind of the rows. `texts`: those of the corpus; the target is the teachers'. `images`: those of the image–caption
    pairs; a head's target is the vector that it gives the caption when the stage begins."""
    train: tuple[str, ...] = Field(min_length=1)
    """Shell-style patterns of the parameters that learn: `heads.1024.*`, `body.layers.2[567].*`, `vision.*`, `*`. A
    stage on texts does not load the student's vision, so `*` leaves it as it is."""
    losses: dict[int, HeadLosses] = Field(min_length=1)
    """Weights of the losses of each head, by the head's size."""
    reduction: Literal["sum", "mean"] = "sum"
    """Sum or mean of the heads' weighted losses."""
    scope: Literal["worker", "global"] = "worker"
    """The rows that the similarity losses compare: one worker's, or all workers'."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's weight decay; biases and norms have none."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Curve of the learning rate from the end of the warm-up to 0; constant keeps it."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from 0."""
    steps: int | None = Field(default=None, gt=0)
    """Optimiser steps. Give steps or passes."""
    passes: float | None = Field(default=None, gt=0)
    """Passes over the training rows. Give steps or passes."""
    batch_size: int = Field(gt=0)
    """Rows (texts or images) in one optimiser step, over all workers."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Rows of one worker in one forward and backward pass; relations span at most these (times workers, when scope
    is global). Default: batch_size divided by workers, no accumulation."""
    group_rows: int = Field(default=32, gt=0)
    """Rows of similar length that the body reads at once; smaller computes less padding, larger fills a GPU better."""
    workers: int = Field(default=1, gt=0)
    """Training processes."""
    cpus_per_worker: float = Field(default=1, ge=0)
    """Processors reserved for a worker."""
    gpus_per_worker: Gpus = "auto"
    """GPUs reserved for a worker; 0 trains on processors. `auto`: this machine's GPUs, none on a cluster."""
    threads: int | None = Field(default=None, ge=1)
    """Threads torch uses in a worker on processors. Default: cpus_per_worker, at least 1."""
    zero: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage: 1 shards optimiser state over workers, 2 gradients too, 3 parameters too."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of body and tower, `auto`: the one the device is fast in; losses and the optimiser's copy of the
    weights are fp32 either way."""
    gradient_clipping: float | None = Field(default=1.0, gt=0)
    """Largest gradient norm of a step."""
    gradient_checkpointing: bool = False
    """Compute the activations of body and tower again in the backward pass instead of keeping them."""
    checkpoint_every: int = Field(default=500, gt=0)
    """Steps between checkpoints; the last step always has one."""
    max_restarts: int = Field(default=3, ge=0)
    """Times a lost worker is replaced before the stage gives up."""

    @field_validator("data")
    @classmethod
    def _kind_exists(cls, data: str) -> str:
        if data not in DATA_KINDS:
            raise ConfigError(f"expected {' or '.join(DATA_KINDS)}; found {data!r}")
        return data

    @model_validator(mode="after")
    def _length_is_given_once(self) -> Stage:
        if (self.steps is None) == (self.passes is None):
            raise ConfigError(f"stage {self.name!r}: give either steps or passes, and not both")
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> Stage:
        unit = self.micro_rows * self.workers
        if self.batch_size % unit:
            raise ConfigError(
                f"stage {self.name!r}: batch_size {self.batch_size} is no multiple of micro_batch_size "
                f"{self.micro_rows} x workers {self.workers} = {unit}; change one of the three"
            )
        compared = self.micro_rows * (self.workers if self.scope == "global" else 1)
        weighed = {name: loss for losses in self.losses.values() for name, loss in losses.weighed().items()}
        name, loss = max(weighed.items(), key=lambda item: item[1].least_rows)
        if compared < loss.least_rows:
            raise ConfigError(
                f"stage {self.name!r}: {name} compares rows with each other and needs micro batches of at least "
                f"{loss.least_rows} rows; raise batch_size or micro_batch_size"
            )
        return self

    @property
    def kind(self) -> DataFacts:
        """Facts of its rows' kind."""
        return DATA_KINDS[self.data]

    @property
    def micro_rows(self) -> int:
        """Rows of one worker in one forward pass."""
        return self.micro_batch_size or max(1, self.batch_size // self.workers)

    @property
    def accumulation(self) -> int:
        """Forward passes of a worker in one optimiser step."""
        return self.batch_size // (self.micro_rows * self.workers)

    @property
    def gpus(self) -> float:
        """GPUs reserved for a worker; none while `auto` is undecided."""
        return decided_gpus(self.gpus_per_worker)

    @property
    def torch_threads(self) -> int:
        return self.threads or max(1, int(self.cpus_per_worker))

    def total_steps(self, batches_in_pass: int) -> int:
        """Count the optimiser steps over data that give so many whole batches in a pass."""
        return self.steps or max(1, round((self.passes or 0) * batches_in_pass))
