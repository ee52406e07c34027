"""From labelled rows to what one forward and backward pass needs."""

# Shape legend: B rows of a micro-batch, S side of an image in pixels, D size of a head's vectors, E size of the target.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from jasper_ray.labelling.tasks import DECODING, PIXELS, seconds_column, vector_column
from jasper_ray.models.folder import StudentCard
from jasper_ray.models.tokens import TokenGroup, image_groups, length_groups
from jasper_ray.teachers import OWN, fuse, split_heads

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Rows = Mapping[str, np.ndarray]
"""Labelled rows as the pipeline streams them, by column."""


@dataclass(frozen=True)
class MicroBatch:
    """One worker's rows of one pass, longest first."""

    ids: list[str]
    """Row ids, to name rows in errors."""
    position: int
    """Place of its first row in the stage's sequence."""
    groups: list[TokenGroup]
    targets: dict[int, Tensor]
    """What each head's vectors are compared with, `[B, E]`; one tensor may serve several heads."""
    teacher_seconds: dict[str, float]
    """Seconds each teacher worked on these rows; 0 where vectors came from the cache."""
    decode_seconds: float | None = None
    """Seconds of a processor that it took to make pixels of these rows' images; None for texts."""

    @property
    def rows(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class TextFeed:
    """Rows are texts; the teachers' fused vectors are the target of every head."""

    teachers: tuple[tuple[str, float], ...]
    """Name and weight of each teacher, in the order of the target."""

    def groups(
        self, batch: Rows, tokenizer: PreTrainedTokenizerBase, card: StudentCard, group_rows: int
    ) -> tuple[list[TokenGroup], Tensor]:
        """The rows as the body takes them, and their order."""
        texts = [
            card.prompts[prompt] + text if prompt else text
            for text, prompt in zip(batch["text"], batch["prompt"], strict=True)
        ]
        return length_groups(tokenizer, texts, card.max_length, group_rows)

    def targets(self, batch: Rows, dims: Sequence[int]) -> dict[int, Tensor]:
        """The target of each head."""
        columns = [vectors(batch, name) for name, _ in self.teachers]
        return dict.fromkeys(dims, fuse(columns, [weight for _, weight in self.teachers]))

    def teacher_seconds(self, batch: Rows) -> dict[str, float]:
        return {name: float(batch[seconds_column(name)].sum()) for name, _ in self.teachers}

    def decode_seconds(self, batch: Rows) -> float | None:
        return None


@dataclass(frozen=True)
class ImageFeed:
    """Rows are images; a head's target is the vector that the same head gave the caption when the stage began."""

    image_tokens: int
    heads: tuple[int, ...]
    """Sizes of the heads, in the order in which the captions' vectors stand side by side."""

    def groups(
        self, batch: Rows, tokenizer: PreTrainedTokenizerBase, card: StudentCard, group_rows: int
    ) -> tuple[list[TokenGroup], Tensor]:
        """The rows as the body takes them, and their order."""
        pixels_B3SS = torch.from_numpy(np.array(batch[PIXELS]))
        nothing = [""] * len(pixels_B3SS)
        return image_groups(tokenizer, nothing, pixels_B3SS, self.image_tokens, card.max_length, group_rows)

    def targets(self, batch: Rows, dims: Sequence[int]) -> dict[int, Tensor]:
        """The target of each head."""
        parts = split_heads(vectors(batch, OWN), self.heads)
        return {dim: parts[dim] for dim in dims}

    def teacher_seconds(self, batch: Rows) -> dict[str, float]:
        return {OWN: float(batch[seconds_column(OWN)].sum())}

    def decode_seconds(self, batch: Rows) -> float | None:
        return float(batch[seconds_column(DECODING)].sum())


Feed = TextFeed | ImageFeed
"""What the rows of a stage are, and what their vectors are compared with."""


@dataclass(frozen=True)
class Collate:
    """Turns a block of labelled rows into a `MicroBatch`."""

    feed: Feed
    tokenizer: PreTrainedTokenizerBase
    card: StudentCard
    group_rows: int
    dims: tuple[int, ...]
    """The heads that have losses."""

    def __call__(self, batch: Rows) -> MicroBatch:
        groups, order_B = self.feed.groups(batch, self.tokenizer, self.card, self.group_rows)
        targets = self.feed.targets(batch, self.dims)
        ordered = {id(target_BE): target_BE[order_B] for target_BE in targets.values()}
        return MicroBatch(
            ids=[str(batch["id"][index]) for index in order_B.tolist()],
            position=first_place(batch["position"]),
            groups=groups,
            targets={dim: ordered[id(target_BE)] for dim, target_BE in targets.items()},
            teacher_seconds=self.feed.teacher_seconds(batch),
            decode_seconds=self.feed.decode_seconds(batch),
        )


def vectors(batch: Rows, teacher: str) -> Tensor:
    """A teacher's vectors `[B, D]`."""
    return torch.from_numpy(np.array(batch[vector_column(teacher)]))


def first_place(positions_B: np.ndarray) -> int:
    """The first of the places in a stage's sequence that a block of rows takes; they must follow each other."""
    first = int(positions_B.min())
    if not np.array_equal(np.sort(positions_B), np.arange(first, first + len(positions_B))):
        raise AssertionError(
            f"a block's rows have the places {sorted(positions_B.tolist())}, which leave gaps or repeat"
        )
    return first
