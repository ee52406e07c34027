"""Settings that several rooms share: the model to open, and the replicas of a process with the hardware of each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jasper_ray.config import ConfigError, Settings
from jasper_ray.vectors import Precision

Gpus = Literal["auto"] | Annotated[float, Field(ge=0)]
"""GPUs as a setting of a recipe."""


class ModelSettings(Settings):
    """A model for inference."""

    model: str
    """A student folder, a sentence-transformers folder or hub id, or an asset."""
    revision: str | None = None
    """Commit of a hub id. Default: the newest; an output folder of vectors keeps the one it began with."""
    prompt: str | None = None
    """Name of the model's prompt to put before texts, where a server's request names none. Default: the model's own
    default, mostly none. An empty name means no prompt."""
    precision: Precision = "auto"
    """Compute precision. `auto`: bfloat16 if the device is fast in it and a sample agrees with float32."""
    max_length: int | None = Field(default=None, ge=1)
    """Longest text, in tokens; longer texts are truncated or refused. Default: the model's own limit."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens that go through the model at once, padding included. Default: 1,024 on CPUs, 65,536 on a GPU."""


class Pool(Settings):
    """Replicas of a process, and the CPUs that each reserves."""

    min_size: int = Field(default=1, ge=1)
    """Replicas that always run."""
    max_size: int = Field(default=1, ge=1)
    """Most replicas; Ray adds them while rows queue up."""
    cpus: float = Field(default=1.0, ge=0)
    """CPUs that a replica reserves."""

    @model_validator(mode="after")
    def _min_is_not_above_max(self) -> Pool:
        if self.min_size > self.max_size:
            raise ConfigError(f"min_size {self.min_size} is above max_size {self.max_size}; change one of the two")
        return self

    @property
    def gpus_per_copy(self) -> float:
        return 0.0

    @property
    def reserved(self) -> tuple[float, float]:
        """CPUs and GPUs that the replicas which always run reserve together."""
        return self.min_size * self.cpus, self.min_size * self.gpus_per_copy


class EncoderPool(Pool):
    """Replicas of an encoder."""

    threads: int | None = Field(default=None, ge=1)
    """Threads of torch in a replica on CPUs. Default: `cpus`, at least 1."""

    @property
    def torch_threads(self) -> int:
        return self.threads or max(1, int(self.cpus))


class Replicas(EncoderPool):
    """Replicas of an encoder on known hardware: embedding's actors and a server's replicas."""

    gpus: float = Field(default=0.0, ge=0)
    """GPUs that a replica reserves; a fraction shares one."""

    @property
    def gpus_per_copy(self) -> float:
        return self.gpus

    @property
    def device(self) -> str | None:
        """Torch device of a replica. One without a reserved GPU stays off it, even if it could use one."""
        return None if self.gpus else "cpu"


class TeacherPool(EncoderPool):
    """Replicas of an encoder in a recipe, which may leave the hardware open."""

    gpus: Gpus = "auto"
    """GPUs that a replica reserves; a fraction shares one. `auto`: a share of a single machine's GPUs."""

    @property
    def gpus_per_copy(self) -> float:
        return decided_gpus(self.gpus)


def decided_gpus(gpus: Gpus, share: float = 0.0) -> float:
    """Replace `auto` by a share, which is 0 while the hardware is open."""
    return share if gpus == "auto" else gpus
