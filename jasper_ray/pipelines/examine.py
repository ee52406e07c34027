"""A look at the model before a corpus is embedded: what it offers, in which precision it agrees with itself, and what
range its numbers have. Runs once, in a task with what a copy of the model takes."""

# Shape legend: N rows of a sample, D size of a vector.

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from jasper_ray.config import ConfigError
from jasper_ray.embedding.block import Block, Preparation
from jasper_ray.embedding.folder import Resolved
from jasper_ray.embedding.output import Heads, encode_block
from jasper_ray.embedding.plan import Span, read_span
from jasper_ray.embedding.rows import Columns
from jasper_ray.embedding.settings import EmbedSettings, VectorColumn
from jasper_ray.encoders import SentenceTransformerEncoder, TokenEncoder, load_encoder
from jasper_ray.encoders.base import known_dim, prompt_text
from jasper_ray.encoders.budget import TokenBudget
from jasper_ray.vectors import Dtype, int8_ranges, least_cosine

TOLERANCE = 0.999
"""Least cosine with float32 that a lower precision must reach on every text of the sample."""
CHECK_ROWS = 64
"""Texts that are compared with float32."""
SPANS_LOOKED_AT = 8
"""Places of the corpus that the sample is taken from."""
RANGE_ROWS = 2048
"""Texts whose vectors give the ranges of int8."""


@dataclass(frozen=True)
class Examined:
    """What was found."""

    resolved: Resolved
    prompt_name: str | None
    tokenizing: bytes
    """Pickled `Tokenizing | None`, between processes of one job: the driver need not load a tokenizer."""
    ranges: dict[int, np.ndarray]
    """`[2, D]` for each size that is stored as int8, unless the first call wrote them down."""


def examine(settings: EmbedSettings, revision: str | None, spans: Sequence[Span], before: Resolved | None) -> Examined:
    """Load the model and decide what the settings leave open; `before` is what an earlier call decided.

    Raises:
        ConfigError: the model does not load, or has no such prompt or head; the asked-for precision is too far off.
    """
    assert settings.pool
    torch.set_num_threads(settings.pool.torch_threads)
    encoder = open_encoder(settings, revision, before.precision if before else "float32")
    prompt_name = settings.prompt or default_prompt(encoder)
    prompt = prompt_text(encoder.prompts, prompt_name)
    columns = settings.vectors or (VectorColumn(dim=encoder.dims[0], dtype=settings.dtype),)
    check_dims(encoder, columns)
    tokenizing = encoder.tokenizing(prompt_name)
    sampler = Sampler(settings, spans, Preparation(tokenizing, True, settings.id_column, settings.carry), prompt_name)
    found = Precision("float32", None)
    if before:
        found = Precision(before.precision, before.agreement)
    elif wanted_precision(settings.precision) != "float32":
        encoder, found = lower_precision(encoder, settings, revision, columns, sampler)
    ranges = {}
    stretched = [column.dim for column in columns if column.dtype == "int8"]
    if stretched and before is None:
        vectors = sampler.vectors(encoder, stretched, RANGE_ROWS)
        ranges = {dim: int8_ranges(vectors[dim]) for dim in stretched}
    resolved = Resolved(
        prompt=prompt,
        vectors=columns,
        precision=found.dtype,
        agreement=found.agreement,
        max_length=tokenizing.max_length if tokenizing else 0,
    )
    return Examined(resolved, prompt_name, pickle.dumps(tokenizing), ranges)


class Precision(NamedTuple):
    """What a model computes in, and the least cosine with float32 on a sample."""

    dtype: Dtype
    agreement: float | None


def open_encoder(settings: EmbedSettings, revision: str | None, dtype: Dtype) -> TokenEncoder:
    """The model, for texts alone."""
    return load_encoder(settings.model, None, dtype, revision=revision, max_length=settings.max_length, sight=False)


def default_prompt(encoder: TokenEncoder) -> str | None:
    """The prompt that sentence-transformers puts before texts of its own accord."""
    return encoder.model.default_prompt_name if isinstance(encoder, SentenceTransformerEncoder) else None


def check_dims(encoder: TokenEncoder, columns: Sequence[VectorColumn]) -> None:
    """Refuse a size that the model does not have: a student has its heads, another model every prefix."""
    for column in columns:
        if not (isinstance(encoder, SentenceTransformerEncoder) and column.dim < encoder.dims[0]):
            known_dim(encoder.dims, column.dim)


def wanted_precision(asked: Dtype | Literal["auto"]) -> Dtype:
    """What to try: where it is left open, bfloat16 if the device computes in it, not merely emulates it."""
    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    flags = cpu_flags()
    return "bfloat16" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


def cpu_flags() -> set[str]:
    """What Linux says the processor can do; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return {flag for line in lines[:64] if line.startswith(("flags", "Features")) for flag in line.split()}


def lower_precision(
    encoder: TokenEncoder,
    settings: EmbedSettings,
    revision: str | None,
    columns: Sequence[VectorColumn],
    sampler: Sampler,
) -> tuple[TokenEncoder, Precision]:
    """The model in the wanted precision and how far it agrees; where that was left open and is too little, float32.

    Raises:
        ConfigError: a precision was asked for that agrees too little.
    """
    dims = [column.dim for column in columns]
    exact = sampler.vectors(encoder, dims, CHECK_ROWS)
    dtype = wanted_precision(settings.precision)
    lower = open_encoder(settings, revision, dtype)
    found = sampler.vectors(lower, dims, CHECK_ROWS)
    agreement = min(least_cosine(exact[dim], found[dim]) for dim in dims)
    if agreement >= TOLERANCE:
        return lower, Precision(dtype, agreement)
    if settings.precision == "auto":
        return encoder, Precision("float32", None)
    raise ConfigError(
        f"in {dtype} a text of the sample has a cosine of {agreement:.5f} with float32, and {TOLERANCE} is asked for; "
        "choose --precision float32"
    )


class Sampler:
    """Texts from all over the corpus."""

    def __init__(
        self, settings: EmbedSettings, spans: Sequence[Span], preparation: Preparation, prompt_name: str | None
    ) -> None:
        self.settings = settings
        self.spans = spans
        self.preparation = preparation
        self.prompt_name = prompt_name

    def vectors(self, encoder: TokenEncoder, dims: Sequence[int], rows: int) -> Heads:
        """The vectors of at most so many texts, the same ones at every call."""
        budget = TokenBudget(self.settings.batch_tokens or default_budget())
        parts = [
            encode_block(block._replace(texts=block.texts.slice(0, -(-rows // SPANS_LOOKED_AT))), *usual).heads
            for block in self.blocks
            for usual in [(encoder, self.prompt_name, dims, budget)]
        ]
        return {dim: np.concatenate([part[dim] for part in parts]) for dim in dims} if parts else {}

    @cached_property
    def blocks(self) -> list[Block]:
        """The first block of some spans, evenly spread."""
        step = max(1, len(self.spans) // SPANS_LOOKED_AT)
        columns = Columns(self.settings.text_column, self.settings.copied)
        found = []
        for span in self.spans[::step][:SPANS_LOOKED_AT]:
            for number, rows in islice(read_span(span, columns, self.settings.block_rows), 1):
                first = number * self.settings.block_rows
                found.append(self.preparation.block("sample", span.file.known.name, first, rows))
        return found


def default_budget() -> int:
    """Tokens at once where nothing is said: what fills a processor's caches, or a GPU."""
    return 65_536 if torch.cuda.is_available() else 1_024
