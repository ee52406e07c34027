"""The words of `jobs/serve.py` as settings, and a new key for whoever asks."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jasper_ray import cli
from jasper_ray.config import ConfigError, first_fault
from jasper_ray.serving.keys import Key, digest_of, keys_in, new_key
from jasper_ray.serving.settings import LOOPBACK, ServeSettings

ENVIRONMENT = "JASPER_RAY_API_KEYS"


def settings_of(
    *,
    model: str | None,
    host: str,
    open: bool,  # the option is called so
    replicas: str,
    cpus: float | None,
    gpus: float | None,
    environment: Mapping[str, str],
    **others: Any,
) -> ServeSettings:
    """`ServeSettings` from the options of `jobs/serve.py`: without a key a server answers this machine alone.

    Raises:
        ConfigError: an option's value is wrong, or the address is open and no key was given.
    """
    if model is None:
        raise ConfigError("--model is missing; give a student folder, such as runs/quickstart/student")
    keys = keys_in(environment.get(ENVIRONMENT, ""))
    guarded = bool(keys or others.get("keys_file"))
    if not (guarded or open or host in LOOPBACK):
        raise ConfigError(
            f"--host {host} lets others in, and no API key was given; name a file of --keys, set {ENVIRONMENT}, "
            "or say --open"
        )
    for name in ("keys_file", "ranges"):
        if others.get(name):
            others[name] = whole_path(others[name])
    plain = {name: value for name, value in others.items() if name in ServeSettings.model_fields and value is not None}
    values = {
        **plain,
        "model": whole_path(model),
        "keys": keys,
        "open": open or not guarded,
        "copies": copies_of(replicas, cpus, gpus),
    }
    try:
        return ServeSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{first_fault(error, values, ServeSettings)}; see --help") from error


def whole_path(name: str) -> str:
    """A local path as replicas need it, which work in folders of their own; another name as it is."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def copies_of(replicas: str, cpus: float | None, gpus: float | None) -> dict[str, float]:
    """Replicas as far as they were asked for; as many as there may be share the processors."""
    least, most = cli.least_and_most("--replicas", replicas)
    share = max(1, (os.cpu_count() or 1) // max(most, 1))
    return {"min": least, "max": most, "cpus": share if cpus is None else cpus, "gpus": gpus or 0.0}


def key_made(name: str) -> tuple[str, str]:
    """A new key, and its entry for a file of keys.

    Raises:
        ConfigError: the name is none.
    """
    secret = new_key()
    values = {"name": name, "sha256": digest_of(secret)}
    try:
        Key.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"--new-key {name!r}: expected letters, digits, dots and dashes") from error
    return secret, f"- name: {json.dumps(name)}\n  sha256: {values['sha256']}"
