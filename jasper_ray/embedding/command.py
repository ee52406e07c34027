"""The words of a command line as settings."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from jasper_ray import cli
from jasper_ray.config import ConfigError, first_fault
from jasper_ray.embedding.settings import EmbedSettings, vector_column


def settings_of(
    *,
    input: list[str],  # the option is called so
    dim: list[str],
    dtype: str,
    no_truncate: bool,
    actors: str | None,
    cpus: float | None,
    gpus: float | None,
    threads: int | None,
    readers: int | None,
    **others: Any,
) -> EmbedSettings:
    """`EmbedSettings` from the options of `jobs/embed.py`.

    Raises:
        ConfigError: an option's value is wrong.
    """
    plain = {name: value for name, value in others.items() if name in EmbedSettings.model_fields}
    values = {
        **plain,
        "inputs": tuple(input),
        "vectors": tuple(vector_column(written, dtype) for written in dim),  # type: ignore[arg-type]
        "dtype": dtype,
        "truncate": not no_truncate,
        "pool": pool_values(actors, cpus, gpus, threads),
        "readers": None if readers is None else {"cpus": 0.2, "max_size": readers},
    }
    try:
        return EmbedSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{first_fault(error, values, EmbedSettings)}; see --help") from error


def pool_values(
    actors: str | None, cpus: float | None, gpus: float | None, threads: int | None
) -> dict[str, Any] | None:
    """A pool as far as it was asked for; None when nothing was."""
    sizes: dict[str, Any] = {}
    if actors is not None:
        least, most = cli.least_and_most("--actors", actors)
        sizes = {"min_size": least, "max_size": most}
    takes = {"cpus": cpus, "gpus": gpus, "threads": threads}
    return {**sizes, **{name: value for name, value in takes.items() if value is not None}} or None
