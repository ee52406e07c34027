"""Settings of a server: its model, its limits, its replicas."""

from __future__ import annotations

from pydantic import Field, model_validator

from jasper_ray.config import ConfigError, Settings
from jasper_ray.resources import ModelSettings, Replicas

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Limits(Settings):
    """Limits of a request, and of what may wait."""

    inputs: int = Field(2048, ge=1)
    """Maximum number of texts and images in a request."""
    images: int = Field(64, ge=1)
    """Maximum number of images in a request. A small file may take a second to decode."""
    request_tokens: int = Field(300_000, ge=1)
    """Maximum number of tokens in a request, all inputs together."""
    text_chars: int = Field(1_000_000, ge=1)
    """Maximum number of characters in a text, even if it would be truncated."""
    body_mib: float = Field(8.0, gt=0)
    """Maximum size of a request's body, in MiB."""
    waiting_mib: float = Field(256.0, gt=0)
    """Maximum size of the bodies and answers of all open requests, in MiB. Beyond it requests get 429."""
    queue_s: float = Field(10.0, gt=0)
    """Longest queue, in seconds at the recent speed. Beyond it requests get 429."""
    queue_tokens: int | None = Field(None, ge=1)
    """Longest queue, in tokens; replaces `queue_s`."""
    pixels: int = Field(50_000_000, ge=1)
    """Maximum number of pixels in an image, checked before it is decoded."""


class Copies(Settings):
    """Replicas of the model, and what each reserves."""

    min: int = Field(1, ge=1)
    """Minimum number of replicas."""
    max: int = Field(1, ge=1)
    """Maximum number of replicas. The load decides between the two."""
    cpus: float = Field(1.0, gt=0)
    """CPUs that a replica reserves."""
    gpus: float = Field(0.0, ge=0)
    """GPUs that a replica reserves; may be a fraction."""
    target_s: float = Field(0.5, gt=0)
    """Seconds of queued work per replica that start another one."""
    upscale_delay_s: float = Field(10.0, ge=0)
    """Seconds of sustained load before scaling up."""
    downscale_delay_s: float = Field(300.0, ge=0)
    """Seconds of low load before scaling down."""
    surge_percent: int = Field(25, ge=0, le=100)
    """Replicas that an update starts beside the old ones, in percent of them, rounded up. With 0, for a cluster without
    spare capacity, an old replica ends before a new one starts; a single-replica server is down meanwhile."""

    @model_validator(mode="after")
    def _in_order(self) -> Copies:
        if self.min > self.max:
            raise ConfigError(f"min is {self.min} and max is {self.max}; raise max or lower min")
        return self

    @property
    def replicas(self) -> Replicas:
        """The replicas, without the rules of scaling."""
        return Replicas(min_size=self.min, max_size=self.max, cpus=self.cpus, gpus=self.gpus)


class ServeSettings(ModelSettings):
    """Settings of a server. `cluster/serve.yaml` takes all of them, `jobs/serve.py` those a laptop needs."""

    name: str | None = Field(None, max_length=128, pattern=r"^[\w./:@+-]+$")
    """Name of the model for clients. Default: the name of its folder."""
    threads: int | None = Field(None, ge=1)
    """Batches that a replica embeds side by side, with one torch thread each. Default: one for each reserved CPU; on a
    GPU 2, so that one batch is prepared while the other is computed."""
    batch_wait_ms: float = Field(2.0, ge=0)
    """Longest time in which a batch that is not full waits for requests that are being read, in milliseconds."""
    tokenizers: int = Field(2, ge=1)
    """Threads of a replica that tokenise texts and decode images."""
    ranges: str | None = None
    """Output folder of `jobs/embed.py` whose int8 ranges the server uses, so that its int8 vectors fit that index."""
    keys_file: str | None = None
    """YAML file of hashed API keys. The server reads it again when it changes."""
    keys: dict[str, str] = Field(default_factory=dict)
    """Further API keys: names, each with the SHA-256 of its key in hex."""
    open: bool = False
    """Answer everyone who reaches the address, without an API key."""
    fetch_images: bool = False
    """Fetch images that clients give by URL, from public addresses only."""
    limits: Limits = Limits()
    copies: Copies = Copies()

    @model_validator(mode="after")
    def _guarded(self) -> ServeSettings:
        if not (self.keys_file or self.keys or self.open):
            raise ConfigError(
                "no API key was given; set keys_file or keys, or open: true to answer everyone who reaches the address"
            )
        return self

    @property
    def served_name(self) -> str:
        """The name of the model for clients."""
        if self.name:
            return self.name
        parts = [part for part in self.model.rstrip("/").split("/") if part]
        if len(parts) > 1 and parts[-1] == "student":  # runs/<name>/student
            return parts[-2]
        return parts[-1] if parts else self.model
