"""How many copies of an encoder run at once, and what each reserves."""

from __future__ import annotations

from pydantic import Field, model_validator

from jasper_ray.config import ConfigError, Settings


class ActorPool(Settings):
    """How many copies of an encoder run, and what each takes."""

    min_size: int = Field(default=1, ge=1)
    """Copies that always run."""
    max_size: int = Field(default=1, ge=1)
    """Copies at most; Ray adds them while rows queue up."""
    cpus: float = Field(default=1.0, ge=0)
    """Processors reserved for a copy."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs reserved for a copy; a fraction shares one."""
    threads: int | None = Field(default=None, ge=1)
    """Threads that torch uses in a copy on the CPU; `cpus`, at least 1, when left out."""

    @model_validator(mode="after")
    def _min_is_not_above_max(self) -> ActorPool:
        if self.min_size > self.max_size:
            raise ConfigError(f"min_size {self.min_size} is above max_size {self.max_size}; change one of the two")
        return self

    @property
    def torch_threads(self) -> int:
        return self.threads or max(1, int(self.cpus))
