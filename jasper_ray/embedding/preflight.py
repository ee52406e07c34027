"""Examine the model on a sample of the corpus before a job: heads, prompt, precision, numeric range.

Runs once, in a task that reserves what one replica of the model does.
"""

# Shape legend: N texts, D size of a vector.
# Shape legend: D size of a vector.

from __future__ import annotations

import gc
import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from jasper_ray.config import ConfigError
from jasper_ray.embedding.chunks import SPAN_BLOCKS, Block, Preparation, Span, read_span
from jasper_ray.embedding.folder import Resolved
from jasper_ray.embedding.model import (
    budget_of,
    check_dims,
    check_length,
    open_encoder,
    prompt_name_of,
    wanted_precision,
)
from jasper_ray.embedding.output import Heads, encode_block
from jasper_ray.embedding.settings import EmbedSettings, VectorColumn
from jasper_ray.encoders import TokenEncoder
from jasper_ray.encoders.base import prompt_text
from jasper_ray.encoders.precision import agreement
from jasper_ray.sources.tables import Columns
from jasper_ray.vectors import Dtype, int8_ranges

PLACES = 8
"""Blocks of the corpus that a sample is taken from, if it has so many."""


@dataclass(frozen=True)
class Sample:
    """The same texts at every call."""

    settings: EmbedSettings
    spans: Sequence[Span]
    """Of the corpus."""
    preparation: Preparation
    prompt_name: str | None

    def vectors(self, encoder: TokenEncoder, dims: Sequence[int], texts: int) -> Heads:
        """The vectors `[N, D]` of about so many texts, equally many from each place, fewer where there are fewer."""
        share = math.ceil(texts / max(1, len(self.blocks)))
        parts = [
            encode_block(
                block._replace(texts=block.texts.slice(0, share)),
                encoder,
                self.prompt_name,
                dims,
                budget_of(self.settings),
            ).heads
            for block in self.blocks
        ]
        empty = {dim: np.empty((0, dim), np.float32) for dim in dims}
        return {dim: np.concatenate([empty[dim], *(part[dim] for part in parts)]) for dim in dims}

    @cached_property
    def blocks(self) -> list[Block]:
        """Evenly spread blocks that have a text."""
        columns = Columns(self.settings.text_column, self.settings.copied)
        rows = self.settings.block_rows
        found = []
        for span in spread(self.spans):
            for number, table in read_span(span, columns, rows):
                found.append(self.preparation.block("sample", span.file.known.name, number * rows, table))
        return [block for block in found if len(block.texts)]


def spread(spans: Sequence[Span]) -> list[Span]:
    """At most `PLACES` spans of one block each; only the first blocks of what must be read from its beginning."""
    singles = [
        replace(span, blocks=(block,))
        for span in spans
        for block in (span.blocks[:1] if span.offset else span.blocks[:SPAN_BLOCKS])
    ]
    step = max(1, len(singles) // PLACES)
    return singles[::step][:PLACES]


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
