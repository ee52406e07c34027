"""What a server is told: its model, its limits, its copies."""

from __future__ import annotations

from pydantic import Field, model_validator

from jasper_ray.config import Settings
from jasper_ray.vectors import Precision

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Limits(Settings):
    """What a request may ask for, and how much may wait."""

    inputs: int = Field(2048, ge=1)
    """Texts and images of a request at most."""
    images: int = Field(64, ge=1)
    """Images of a request at most; a small file may hold so many pixels that it takes a second to decode."""
    request_tokens: int = Field(300_000, ge=1)
    """Tokens of a request at most, all inputs together."""
    text_chars: int = Field(1_000_000, ge=1)
    """Characters of a text at most, whether or not it would be cut."""
    body_mib: float = Field(8.0, gt=0)
    """Size of a request's body at most, in MiB."""
    waiting_mib: float = Field(256.0, gt=0)
    """Bodies and answers of all requests, in MiB, until they are answered and sent; more are told to come again."""
    queue_s: float = Field(10.0, gt=0)
    """Seconds for which work may wait, by the speed of late; more is told to come again."""
    queue_tokens: int | None = Field(None, ge=1)
    """Tokens that may wait; instead of `queue_s`."""
    pixels: int = Field(50_000_000, ge=1)
    """Pixels of an image at most; more are refused before they are decoded."""


class Copies(Settings):
    """Replicas of the model, and what each reserves."""

    min: int = Field(1, ge=1)
    """Replicas at least."""
    max: int = Field(1, ge=1)
    """Replicas at most; as many as the load asks for between the two."""
    cpus: float = Field(1.0, gt=0)
    """Processors that a replica reserves."""
    gpus: float = Field(0.0, ge=0)
    """GPUs that a replica reserves, maybe a fraction of one."""
    target_s: float = Field(0.5, gt=0)
    """Seconds of queued work a replica may have before another is started."""
    upscale_delay_s: float = Field(10.0, ge=0)
    """How long the load asks for more before there are more."""
    downscale_delay_s: float = Field(300.0, ge=0)
    """How long the load asks for fewer before there are fewer."""
    surge_percent: int = Field(25, ge=0, le=100)
    """Replicas that an update starts beside those that answer, in percent of them, rounded up. With 0, for a cluster
    that has no room for more, an old one ends before a new one begins: a server of one replica is away meanwhile."""

    @model_validator(mode="after")
    def _in_order(self) -> Copies:
        if self.min > self.max:
            raise ValueError(f"min is {self.min} and max is {self.max}; raise max or lower min")
        return self


class ServeSettings(Settings):
    """A server, whole: `cluster/serve.yaml` says any of it, the options of `jobs/serve.py` what a laptop needs."""

    model: str
    """A student folder, a sentence-transformers folder or hub id, or an asset."""
    revision: str | None = None
    """Commit of a hub id."""
    name: str | None = Field(None, max_length=128, pattern=r"^[\w./:@+-]+$")
    """What clients call the model; by default what its folder is called."""
    prompt: str | None = None
    """The prompt before texts whose request names none; by default what the model itself says, mostly none."""
    precision: Precision = "auto"
    """What the model computes in; `auto`: bfloat16 where the device is fast in it and a sample agrees with float32."""
    max_length: int | None = Field(None, ge=1)
    """Tokens a text is cut to, or refused beyond; the model's own limit when not given."""
    threads: int | None = Field(None, ge=1)
    """Batches that a replica embeds side by side: on processors with one of torch's threads each, as many as it
    reserves; on a GPU 2, so that one is made ready while the other is computed."""
    batch_tokens: int | None = Field(None, ge=1)
    """Tokens at once: rows times the longest of them; 1,024 on processors, 65,536 on a GPU."""
    batch_wait_ms: float = Field(2.0, ge=0)
    """How long a batch that is not full waits for requests which are being read."""
    tokenizers: int = Field(2, ge=1)
    """Threads of a replica that turn texts into tokens and files into pixels."""
    ranges: str | None = None
    """An output folder of `jobs/embed.py` whose int8 ranges the server uses, so that its vectors fit that index."""
    keys_file: str | None = None
    """YAML of API keys, hashed; read again when it changes."""
    keys: dict[str, str] = Field(default_factory=dict)
    """More keys: a name and the SHA-256 of the key, in hex."""
    open: bool = False
    """Whether anyone may ask who reaches the address. Without it a key is needed."""
    fetch_images: bool = False
    """Whether images may be given by the address of a public server."""
    limits: Limits = Limits()
    copies: Copies = Copies()

    @model_validator(mode="after")
    def _guarded(self) -> ServeSettings:
        if not (self.keys_file or self.keys or self.open):
            raise ValueError(
                "no API key was given: name a keys_file, give keys, or say open: true for a server that answers "
                "everyone who reaches its address"
            )
        return self

    @property
    def served_name(self) -> str:
        """What clients call the model."""
        if self.name:
            return self.name
        parts = [part for part in self.model.rstrip("/").split("/") if part]
        if len(parts) > 1 and parts[-1] == "student":  # runs/<name>/student
            return parts[-2]
        return parts[-1] if parts else self.model
