"""How many copies of an actor run at once, and what each reserves."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jasper_ray.config import ConfigError, Settings

Gpus = Literal["auto"] | Annotated[float, Field(ge=0)]
"""GPUs as a setting of a recipe."""


class Pool(Settings):
    """How many copies of an actor run, and what each takes of the processors."""

    min_size: int = Field(default=1, ge=1)
    """Copies that always run."""
    max_size: int = Field(default=1, ge=1)
    """Copies at most; Ray adds them while rows queue up."""
    cpus: float = Field(default=1.0, ge=0)
    """Processors reserved for a copy."""

    @model_validator(mode="after")
    def _min_is_not_above_max(self) -> Pool:
        if self.min_size > self.max_size:
            raise ConfigError(f"min_size {self.min_size} is above max_size {self.max_size}; change one of the two")
        return self

    @property
    def gpus_per_copy(self) -> float:
        """GPUs reserved for a copy."""
        return 0.0


class EncoderPool(Pool):
    """A pool of copies of an encoder."""

    threads: int | None = Field(default=None, ge=1)
    """Threads that torch uses in a copy on the CPU; `cpus`, at least 1, when left out."""

    @property
    def torch_threads(self) -> int:
        return self.threads or max(1, int(self.cpus))


class ActorPool(EncoderPool):
    """A pool whose GPUs are known."""

    gpus: float = Field(default=0.0, ge=0)
    """GPUs reserved for a copy; a fraction shares one."""

    @property
    def gpus_per_copy(self) -> float:
        return self.gpus


class TeacherPool(EncoderPool):
    """A pool in a recipe, which need not know the machine."""

    gpus: Gpus = "auto"
    """GPUs reserved for a copy; a fraction shares one. `auto`: a share of this machine's GPUs, none on a cluster."""

    @property
    def gpus_per_copy(self) -> float:
        return decided_gpus(self.gpus)


def decided_gpus(gpus: Gpus, share: float = 0.0) -> float:
    """GPUs that a setting reserves: the share where it says `auto`, which is none while it is undecided."""
    return share if gpus == "auto" else gpus
