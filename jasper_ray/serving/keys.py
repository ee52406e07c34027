"""API keys and the tokens that each has used. The server stores hashes of keys only.

- name: search
  sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
  tokens_per_minute: 2000000
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator

from jasper_ray.config import ConfigError, Settings, first_fault
from jasper_ray.serving.errors import Refusal

logger = logging.getLogger(__name__)

CHECK_S = 1.0
"""Seconds between two checks of the file."""
DIGEST = re.compile(r"[0-9a-f]{64}")


class Key(Settings):
    """A key, by its hash."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[\w.@-]+$")
    """Name of the key in logs and metrics."""
    sha256: str
    """SHA-256 of the key, in hex."""
    tokens_per_minute: int | None = Field(None, ge=1)
    """Tokens per minute that all replicas together embed for this key; unlimited by default."""

    @field_validator("sha256")
    @classmethod
    def _hashed(cls, value: str) -> str:
        if not DIGEST.fullmatch(value):  # possibly the key itself, which must not reach a log
            raise ConfigError("expected the SHA-256 of the key, 64 hex digits in lower case, and never the key itself")
        return value


class KeyFile(Settings):
    """The content of a key file."""

    keys: tuple[Key, ...]


EVERYONE = Key(name="everyone", sha256="0" * 64)
"""The caller of a server without keys."""


class Keys:
    """The keys that are valid now. A changed file is read again; a broken one leaves the keys as they are."""

    def __init__(self, file: str | None, configured: Mapping[str, str], open_: bool) -> None:
        self.file = Path(file) if file else None
        values = [{"name": name, "sha256": digest} for name, digest in configured.items()]
        self.configured = {key.sha256: key for key in validated(values, "keys in the settings")}
        self.open = open_
        self._checked = 0.0
        self._fault = ""
        self._stamp: tuple[int, int] | None = None
        self._known: dict[str, Key] = dict(self.configured)
        if self.file:
            self._read(self.file)

    def caller(self, authorization: str | None) -> Key:
        """Look up the key in an `Authorization: Bearer` header.

        Raises:
            Refusal: the key is missing or unknown.
        """
        if self.file and time.monotonic() - self._checked > CHECK_S:
            self._reload(self.file)
        scheme, _, secret = (authorization or "").partition(" ")
        key = self._known.get(digest_of(secret.strip())) if scheme.lower() == "bearer" else None
        if key is not None:
            return key
        if self.open:
            return EVERYONE
        found = "missing API key" if not authorization else "unknown API key"
        raise Refusal(401, "invalid_api_key", f"{found}; send one in the header Authorization: Bearer KEY")

    def _reload(self, file: Path) -> None:
        self._checked = time.monotonic()
        try:
            if stamp_of(file) != self._stamp:
                self._read(file)
                logger.info("API keys reloaded: %d keys", len(self._known))
            self._fault = ""
        except (ConfigError, OSError) as error:
            if str(error) != self._fault:  # log each fault once, not every second
                logger.error("could not reload API keys, keeping the old ones: %s", error)
            self._fault = str(error)

    def _read(self, file: Path) -> None:
        stamp = stamp_of(file) if file.is_file() else None
        keys = read_keys(file)
        self._stamp = stamp
        self._known = {**self.configured, **{key.sha256: key for key in keys}}


def stamp_of(file: Path) -> tuple[int, int]:
    """Return a value that changes with the file."""
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_size


def read_keys(file: Path) -> tuple[Key, ...]:
    """Read a key file.

    Raises:
        ConfigError: it cannot be read, or is not a list of keys.
    """
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the keys in {str(file)!r} ({type(error).__name__}); fix the file") from error
    if value is None:  # an editor may empty the file before it writes: nobody is locked out meanwhile
        raise ConfigError(f"{str(file)!r} is empty; expected a list of keys, or [] for no keys")
    return validated(value, repr(str(file)))


def validated(value: Any, place: str) -> tuple[Key, ...]:
    """Validate a list of keys.

    Raises:
        ConfigError: it is not such a list; the message begins with `place`.
    """
    values = {"keys": value}
    try:
        return KeyFile.model_validate(values).keys
    except ValidationError as error:
        fault = first_fault(error, values, KeyFile).partition("; found ")[0]  # the value may be the key itself
        raise ConfigError(f"{place}: {fault}") from None


def digest_of(key: str) -> str:
    """Hash a key. A key has 32 random bytes, so a slower hash would add nothing."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def new_key() -> str:
    """Make a random key."""
    return f"jr-{secrets.token_urlsafe(32)}"


def parse_keys(text: str) -> dict[str, str]:
    """Parse `name:key,name:key`, the form of an environment variable; return hashes by name.

    Raises:
        ConfigError: an entry is not of this form.
    """
    hashes = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, colon, secret = entry.partition(":")
        if not (colon and name.strip() and len(secret.strip()) >= 16):
            raise ConfigError(
                "JASPER_RAY_API_KEYS has an entry that is not NAME:KEY with a key of at least 16 characters"
            )
        hashes[name.strip()] = digest_of(secret.strip())
    return hashes


MINUTE = 60.0
FORGET_S = 10.0
"""Seconds without metrics after which a replica counts as gone."""


@dataclass
class Bucket:
    """Tokens that a key may still use; they are refilled steadily."""

    left: float
    at_s: float


class Ledger:
    """The usage of keys and the metrics of replicas, kept once for all replicas."""

    def __init__(self) -> None:
        self._buckets: dict[str, Bucket] = {}
        self._metrics: dict[str, tuple[float, str]] = {}

    async def take(self, key: str, tokens: int, per_minute: int) -> float:
        """Use tokens of a key; return 0, or the seconds until they may be used.

        A key with tokens left may overdraw once and then waits until the debt is refilled, so a request larger than a
        minute's tokens is answered, too.
        """
        now = time.monotonic()
        bucket = self._buckets.setdefault(key, Bucket(per_minute, now))
        bucket.left = min(per_minute, bucket.left + (now - bucket.at_s) * per_minute / MINUTE)
        bucket.at_s = now
        if bucket.left <= 0 and tokens > 0:
            return max((1 - bucket.left) * MINUTE / per_minute, 0.05)
        bucket.left -= tokens
        return 0.0

    async def exchange(self, replica: str, metrics: str) -> dict[str, str]:
        """Store a replica's metrics, and return the latest of all replicas."""
        now = time.monotonic()
        self._metrics[replica] = (now, metrics)
        self._metrics = {name: entry for name, entry in self._metrics.items() if now - entry[0] < FORGET_S}
        return {name: text for name, (_, text) in self._metrics.items()}


async def charge(ledger: Ledger, key: Key, tokens: int) -> float:
    """Use a key's tokens if it has a limit; return 0, or the seconds to wait."""
    if key.tokens_per_minute is None:
        return 0.0
    return await ledger.take(key.name, tokens, key.tokens_per_minute)
