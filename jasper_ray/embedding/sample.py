"""Texts from all over a corpus, to look at what a model makes of them before all of it is embedded."""

# Shape legend: N texts, D size of a vector.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from jasper_ray.embedding.block import Block, Preparation
from jasper_ray.embedding.model import budget_of
from jasper_ray.embedding.output import Heads, encode_block
from jasper_ray.embedding.plan import SPAN_BLOCKS, Span, read_span
from jasper_ray.embedding.rows import Columns
from jasper_ray.embedding.settings import EmbedSettings
from jasper_ray.encoders import TokenEncoder

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
