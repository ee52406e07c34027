"""A look at the model before a corpus is embedded: what it offers, in which precision it agrees with itself, and what
range its numbers have. Runs once, in a task with what a copy of the model takes."""

# Shape legend: D size of a vector.

from __future__ import annotations

import gc
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from jasper_ray.config import ConfigError
from jasper_ray.embedding.block import Preparation
from jasper_ray.embedding.folder import Resolved
from jasper_ray.embedding.model import (
    check_dims,
    check_length,
    open_encoder,
    prompt_name_of,
    wanted_precision,
)
from jasper_ray.embedding.output import Heads
from jasper_ray.embedding.plan import Span
from jasper_ray.embedding.sample import Sample
from jasper_ray.embedding.settings import EmbedSettings, VectorColumn
from jasper_ray.encoders.base import prompt_text
from jasper_ray.encoders.precision import agreement
from jasper_ray.vectors import Dtype, int8_ranges

CHECK_TEXTS = 64
"""Texts that are compared with float32."""
RANGE_TEXTS = 2048
"""Texts whose vectors give the ranges of int8."""
LEAST_RANGE_TEXTS = 64
"""Fewer tell nothing of a range."""


@dataclass(frozen=True)
class Examined:
    """What was found."""

    resolved: Resolved
    prompt_name: str | None
    tokenizing: bytes
    """Pickled `Tokenizing | None`, between processes of one job: the driver need not load a tokenizer."""
    ranges: dict[int, np.ndarray]
    """`[2, D]` for each size that is stored as int8, unless the first call wrote them down."""


class Checked(NamedTuple):
    """A precision, and the least cosine with float32 that it has on a sample."""

    dtype: Dtype
    agreement: float | None


def examine(settings: EmbedSettings, revision: str | None, spans: Sequence[Span], before: Resolved | None) -> Examined:
    """Load the model and decide what the settings leave open; `before` is what an earlier call decided.

    Raises:
        ConfigError: the model does not load, or has no such prompt, head or length; the asked-for precision is too far
            off; too few texts for ranges.
    """
    encoder = open_encoder(settings, revision, before.precision if before else "float32")
    prompt_name = prompt_name_of(settings, encoder)
    prompt = prompt_text(encoder.prompts, prompt_name)
    columns = settings.vectors or (VectorColumn(dim=encoder.dims[0], dtype=settings.dtype),)
    check_dims(encoder, columns)
    tokenizing = encoder.tokenizing(prompt_name)
    if tokenizing and settings.max_length:
        check_length(encoder, settings.max_length)
    found, ranges = Checked("float32", None), {}
    if before:
        found = Checked(before.precision, before.agreement)
    else:
        preparation = Preparation(tokenizing, True, settings.id_column, settings.carry)
        sample = Sample(settings, spans, preparation, prompt_name)
        dims = [column.dim for column in columns]
        if wanted_precision(settings) != "float32":
            exact = sample.vectors(encoder, dims, CHECK_TEXTS)
            del encoder  # there may be room for one of the two
            found = check_precision(settings, revision, sample, exact)
        ranges = find_ranges(settings, revision, found.dtype, sample, columns)
    resolved = Resolved(
        prompt=prompt,
        vectors=columns,
        precision=found.dtype,
        agreement=found.agreement,
        max_length=tokenizing.max_length if tokenizing else 0,
    )
    return Examined(resolved, prompt_name, pickle.dumps(tokenizing), ranges)


def check_precision(settings: EmbedSettings, revision: str | None, sample: Sample, exact: Heads) -> Checked:
    """The wanted precision and how far it agrees with `exact`; where that was left open and is too little, float32.

    Raises:
        ConfigError: a precision was asked for that agrees too little.
    """
    free_memory()
    dtype = wanted_precision(settings)
    lower = sample.vectors(open_encoder(settings, revision, dtype), list(exact), CHECK_TEXTS)
    found = agreement(exact, lower, dtype, asked=settings.precision != "auto")
    return Checked("float32", None) if found is None else Checked(dtype, found)


def find_ranges(
    settings: EmbedSettings, revision: str | None, dtype: Dtype, sample: Sample, columns: Sequence[VectorColumn]
) -> dict[int, np.ndarray]:
    """The ranges of each size that is stored as int8, from a sample.

    Raises:
        ConfigError: there are too few texts to tell.
    """
    dims = sorted({column.dim for column in columns if column.dtype == "int8"})
    if not dims:
        return {}
    free_memory()
    vectors = sample.vectors(open_encoder(settings, revision, dtype), dims, RANGE_TEXTS)
    texts = len(vectors[dims[0]])
    if texts < LEAST_RANGE_TEXTS:
        raise ConfigError(
            f"int8 is stretched over what a sample of texts has, and {texts} are too few to tell; "
            f"begin with at least {LEAST_RANGE_TEXTS}, or choose float16"
        )
    return {dim: int8_ranges(vectors[dim]) for dim in dims}


def free_memory() -> None:
    """Give back what a model took that nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
