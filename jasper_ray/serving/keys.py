"""API keys, and the tokens that each has used. Only hashes of keys are kept.

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
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import yaml
from pydantic import Field, ValidationError, field_validator

from jasper_ray.config import ConfigError, Settings, first_fault
from jasper_ray.serving.errors import Refusal

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""Seconds after which the file is looked at again."""


DIGEST = re.compile(r"[0-9a-f]{64}")


class Key(Settings):
    """A key, by its hash."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[\w.@-]+$")
    """What logs and metrics call it."""
    sha256: str
    """SHA-256 of the key, in hex."""
    tokens_per_minute: int | None = Field(None, ge=1)
    """Tokens it may have embedded in a minute, by all replicas together."""

    @field_validator("sha256")
    @classmethod
    def _hashed(cls, value: str) -> str:
        if not DIGEST.fullmatch(value):  # maybe the key itself: it must not come to a log by way of an error
            raise ValueError("expected the SHA-256 of the key, 64 hex digits in lower case, and never the key itself")
        return value


class KeyFile(Settings):
    """What a file of keys holds."""

    keys: tuple[Key, ...]


EVERYONE = Key(name="everyone", sha256="0" * 64)
"""Who asks a server that is open."""


class Keys:
    """The keys that are valid now. A file is read again when it has changed; if it is broken then, nothing changes."""

    def __init__(self, file: str | None, given: Mapping[str, str], open_: bool) -> None:
        self.file = Path(file) if file else None
        self.given = {key.sha256: key for key in given_keys(given)}
        self.open = open_
        self._looked = 0.0
        self._fault = ""
        self._stamp: tuple[int, int] | None = None
        self._known: dict[str, Key] = dict(self.given)
        if self.file:
            self._read(self.file)

    def caller(self, authorization: str | None) -> Key:
        """Whose key stands behind `Bearer`.

        Raises:
            Refusal: none does.
        """
        if self.file and time.monotonic() - self._looked > LOOK_S:
            self._look(self.file)
        scheme, _, secret = (authorization or "").partition(" ")
        key = self._known.get(digest_of(secret.strip())) if scheme.lower() == "bearer" else None
        if key is not None:
            return key
        if self.open:
            return EVERYONE
        found = "no API key was sent" if not authorization else "this API key is not known"
        raise Refusal(401, "invalid_api_key", f"{found}; send one as the header Authorization: Bearer KEY")

    def _look(self, file: Path) -> None:
        self._looked = time.monotonic()
        try:
            if stamp_of(file) != self._stamp:
                self._read(file)
                logger.info("%d API keys are valid now", len(self._known))
            self._fault = ""
        except (ConfigError, OSError) as error:
            if str(error) != self._fault:  # once, and not every second
                logger.error("the keys stay as they were: %s", error)
            self._fault = str(error)

    def _read(self, file: Path) -> None:
        stamp = stamp_of(file) if file.is_file() else None
        read = read_keys(file)
        self._stamp = stamp
        self._known = {**self.given, **{key.sha256: key for key in read}}


def stamp_of(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size


def read_keys(file: Path) -> tuple[Key, ...]:
    """The keys in a file.

    Raises:
        ConfigError: it cannot be read, or is not a list of keys.
    """
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"the keys in {str(file)!r} cannot be read ({type(error).__name__}); mend the file"
        ) from error
    if value is None:  # whoever writes the file anew empties it first: nobody is shut out meanwhile
        raise ConfigError(f"{str(file)!r} is empty; write the keys, or [] for none")
    value = {"keys": value}
    try:
        return KeyFile.model_validate(value).keys
    except ValidationError as error:
        raise ConfigError(f"{str(file)!r}: {first_fault(error, value, KeyFile)}") from None


def given_keys(given: Mapping[str, str]) -> tuple[Key, ...]:
    """The keys that settings name.

    Raises:
        ConfigError: a name or a hash is none.
    """
    value = {"keys": [{"name": name, "sha256": digest} for name, digest in given.items()]}
    try:
        return KeyFile.model_validate(value).keys
    except ValidationError as error:
        raise ConfigError(f"keys in the settings: {first_fault(error, value, KeyFile)}") from None


def digest_of(key: str) -> str:
    """What is kept of a key. A key is 32 random bytes, so that no slower hash is needed."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def new_key() -> str:
    """A key that nobody can guess."""
    return f"jr-{secrets.token_urlsafe(32)}"


def keys_in(written: str) -> dict[str, str]:
    """`name:key,name:key`, as an environment variable holds it, as hashes by name.

    Raises:
        ConfigError: an entry is not of this form.
    """
    found = {}
    for entry in filter(None, (part.strip() for part in written.split(","))):
        name, colon, secret = entry.partition(":")
        if not (colon and name.strip() and len(secret.strip()) >= 16):
            raise ConfigError(
                "JASPER_RAY_API_KEYS has an entry that is not NAME:KEY with a key of at least 16 characters"
            )
        found[name.strip()] = digest_of(secret.strip())
    return found


MINUTE = 60.0
FORGET_S = 10.0
"""A replica that has not told its metrics for so long is gone."""


class Book(Protocol):
    """A ledger, in this process or another."""

    def take(self, key: str, tokens: int, per_minute: int) -> Awaitable[float]:
        """See `Ledger.take`."""
        ...

    def exchange(self, replica: str, metrics: str) -> Awaitable[dict[str, str]]:
        """See `Ledger.exchange`."""
        ...


@dataclass
class Bucket:
    """Tokens that a key may still use; they come back steadily."""

    left: float
    at_s: float


class Ledger:
    """Kept once for all replicas."""

    def __init__(self) -> None:
        self._buckets: dict[str, Bucket] = {}
        self._metrics: dict[str, tuple[float, str]] = {}

    async def take(self, key: str, tokens: int, per_minute: int) -> float:
        """Use tokens of a key; 0, or the seconds after which they may be used.

        A key that has tokens left may use more than these at once, and owes the rest: a request larger than a
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
        """Tell a replica's metrics, and hear what the others told last."""
        now = time.monotonic()
        self._metrics[replica] = (now, metrics)
        self._metrics = {name: told for name, told in self._metrics.items() if now - told[0] < FORGET_S}
        return {name: text for name, (_, text) in self._metrics.items()}


async def charge(book: Book, key: Key, tokens: int) -> float:
    """Use a key's tokens, where it has a limit; 0, or the seconds to wait."""
    if key.tokens_per_minute is None:
        return 0.0
    return await book.take(key.name, tokens, key.tokens_per_minute)
