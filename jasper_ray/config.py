"""The base of every setting: frozen, closed to unknown keys, explained field by field."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """Something the user wrote or gave is wrong; the message says what was found, what was expected and where to change it."""


class Settings(BaseModel):
    """A frozen pydantic model that refuses unknown keys; the docstring under a field is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def fingerprint(value: Any) -> str:
    """Twelve hex digits that name a JSON-like value: equal values, equal names; used for folders and for resume.

    `value` may be a `Settings`, or dicts and lists of plain values; key order does not matter.
    """
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
