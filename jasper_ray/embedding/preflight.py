"""Examine the model on a sample of the corpus before a job: heads, prompt, precision, ranges of int8.

Runs once, in a task that reserves the resources of one replica of the model.
"""

# Shape legend: N texts, D size of a vector.

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from jasper_ray.config import ConfigError
from jasper_ray.embedding.chunks import SPAN_CHUNKS, Chunk, Span, read_chunks
from jasper_ray.embedding.folder import Resolved
from jasper_ray.embedding.output import Heads, encode_chunk
from jasper_ray.embedding.plan import Plan
from jasper_ray.embedding.settings import EmbedSettings, VectorColumn
from jasper_ray.encoders import Encoder
from jasper_ray.encoders.base import known_dim
from jasper_ray.encoders.inference import OpenModel
from jasper_ray.models.tokens import Tokenizing
from jasper_ray.vectors import int8_ranges

PLACES = 8
"""Most chunks of the corpus that a sample is taken from."""
COMPARED_TEXTS = 64
"""Texts that are compared with float32."""
RANGE_TEXTS = 2048
"""Texts whose vectors give the ranges of int8."""
LEAST_RANGE_TEXTS = 64
"""Fewest texts that give ranges."""


@dataclass(frozen=True)
class Examined:
    """The results of the examination."""

    resolved: Resolved
    tokenizing: bytes
    """Pickled `Tokenizing | None` for the readers: the driver need not load a tokenizer."""
    ranges: dict[int, np.ndarray]
    """`[2, D]` for each size that is stored as int8, unless an earlier call wrote them."""


def examine(plan: Plan, spans: Sequence[Span], before: Resolved | None) -> Examined:
    """Load the model and resolve the settings that are left open; `before` is the resolution of an earlier call.

    Raises:
        ConfigError: the model does not load, or has no such prompt, head or length; the required precision is too
            inexact; there are too few texts for ranges.
    """
    sample = CorpusSample(plan.settings, spans)
    opened = plan.open(before.precision) if before else plan.open_compared(sample.compared)
    columns = columns_of(plan.settings, opened.encoder)
    resolved = before or Resolved(
        prompt=opened.prompt,
        vectors=columns,
        precision=opened.precision,
        agreement=opened.cosine,
        max_length=opened.tokenizing.max_length if opened.tokenizing else 0,
    )
    return Examined(resolved, pickle.dumps(opened.tokenizing), {} if before else find_ranges(sample, opened, columns))


def columns_of(settings: EmbedSettings, encoder: Encoder) -> tuple[VectorColumn, ...]:
    """List the columns of vectors, by default the encoder's default head.

    Raises:
        ConfigError: a size that the model does not have. A student has its heads, another model every prefix.
    """
    columns = settings.vectors or (VectorColumn(dim=encoder.dims[0], dtype=settings.dtype),)
    for column in columns:
        if not (encoder.allows_prefixes and column.dim < encoder.dims[0]):
            known_dim(encoder.dims, column.dim)
    return columns


def find_ranges(sample: CorpusSample, opened: OpenModel, columns: Sequence[VectorColumn]) -> dict[int, np.ndarray]:
    """Find the ranges of each size that is stored as int8.

    Raises:
        ConfigError: the sample has too few texts.
    """
    dims = sorted({column.dim for column in columns if column.dtype == "int8"})
    if not dims:
        return {}
    vectors = sample.vectors(opened, dims, RANGE_TEXTS)
    texts = len(vectors[dims[0]])
    if texts < LEAST_RANGE_TEXTS:
        raise ConfigError(
            f"int8 needs the ranges of a sample, and {texts} texts are too few for one; "
            f"begin with at least {LEAST_RANGE_TEXTS}, or choose float16"
        )
    return {dim: int8_ranges(vectors[dim]) for dim in dims}


class CorpusSample:
    """Texts from all over the corpus, the same at every call."""

    def __init__(self, settings: EmbedSettings, spans: Sequence[Span]) -> None:
        self.settings = settings
        self.spans = spans
        self.read: list[Chunk] | None = None

    def compared(self, opened: OpenModel) -> Heads:
        """Compute the vectors that are compared between precisions."""
        dims = [column.dim for column in columns_of(self.settings, opened.encoder)]
        return self.vectors(opened, dims, COMPARED_TEXTS)

    def vectors(self, opened: OpenModel, dims: Sequence[int], texts: int) -> Heads:
        """Compute vectors `[N, D]` of about `texts` texts, equally many from each place; fewer if there are fewer."""
        chunks = self.chunks(opened.tokenizing)
        share = math.ceil(texts / max(1, len(chunks)))
        parts = [
            encode_chunk(chunk._replace(texts=chunk.texts.slice(0, share)), opened, dims).heads for chunk in chunks
        ]
        empty = {dim: np.empty((0, dim), np.float32) for dim in dims}
        return {dim: np.concatenate([empty[dim], *(part[dim] for part in parts)]) for dim in dims}

    def chunks(self, tokenizing: Tokenizing | None) -> list[Chunk]:
        """Read evenly spread chunks that have a text, once."""
        if self.read is None:
            chunks = [chunk for span in spread(self.spans) for chunk in read_chunks(span, self.settings, tokenizing)]
            self.read = [chunk for chunk in chunks if len(chunk.texts)]
        return self.read


def spread(spans: Sequence[Span]) -> list[Span]:
    """Choose at most `PLACES` spans of one chunk each; of a file read from its start only the first chunks."""
    singles = [
        replace(span, chunks=(chunk,))
        for span in spans
        for chunk in (span.chunks[:1] if span.offset else span.chunks[:SPAN_CHUNKS])
    ]
    step = max(1, len(singles) // PLACES)
    return singles[::step][:PLACES]
