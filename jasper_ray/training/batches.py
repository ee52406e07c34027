"""Micro-batches: labelled rows as the groups of tokens and the targets of one forward and backward pass."""

# Shape legend: B rows of a micro-batch, S side of an image in pixels, D size of a head's vectors, E size of the target.

from __future__ import annotations

from abc import ABC, abstractmethod
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
    """Target of each head, `[B, E]`; one tensor may serve several heads."""
    teacher_seconds: dict[str, float]
    """Seconds each teacher worked on these rows; 0 if the vectors came from the cache."""
    decode_seconds: float | None = None
    """Processor seconds that decoding these rows' images took; None for texts."""

    @property
    def rows(self) -> int:
        return len(self.ids)


class Feed(ABC):
    """Rows of a data kind as a stage trains on them."""

    @abstractmethod
    def groups(
        self, batch: Rows, tokenizer: PreTrainedTokenizerBase, card: StudentCard, group_rows: int
    ) -> tuple[list[TokenGroup], Tensor]:
        """Make the groups of tokens that the body takes, and the order of the rows in them."""

    @abstractmethod
    def targets(self, batch: Rows, dims: Sequence[int]) -> dict[int, Tensor]:
        """Make the target of each head."""

    @abstractmethod
    def labelled_by(self) -> Sequence[str]:
        """Name the teachers whose vectors the rows carry."""

    def micro_batch(
        self,
        batch: Rows,
        tokenizer: PreTrainedTokenizerBase,
        card: StudentCard,
        group_rows: int,
        dims: Sequence[int],
    ) -> MicroBatch:
        """Turn a block of labelled rows into a micro-batch; `dims` are the heads that have losses."""
        groups, order_B = self.groups(batch, tokenizer, card, group_rows)
        targets = self.targets(batch, dims)
        ordered = {id(target_BE): target_BE[order_B] for target_BE in targets.values()}
        decoding = batch.get(seconds_column(DECODING))
        return MicroBatch(
            ids=[str(batch["id"][index]) for index in order_B.tolist()],
            position=first_place(batch["position"]),
            groups=groups,
            targets={dim: ordered[id(target_BE)] for dim, target_BE in targets.items()},
            teacher_seconds={name: float(batch[seconds_column(name)].sum()) for name in self.labelled_by()},
            decode_seconds=None if decoding is None else float(decoding.sum()),
        )


@dataclass(frozen=True)
class TextFeed(Feed):
    """Texts; the target of every head is the teachers' fused vectors."""

    teachers: tuple[tuple[str, float], ...]
    """Name and weight of each teacher, in the order of the target."""

    def groups(
        self, batch: Rows, tokenizer: PreTrainedTokenizerBase, card: StudentCard, group_rows: int
    ) -> tuple[list[TokenGroup], Tensor]:
        texts = [
            card.prompts[prompt] + text if prompt else text
            for text, prompt in zip(batch["text"], batch["prompt"], strict=True)
        ]
        return length_groups(tokenizer, texts, card.max_length, group_rows)

    def targets(self, batch: Rows, dims: Sequence[int]) -> dict[int, Tensor]:
        columns = [vectors(batch, name) for name, _ in self.teachers]
        return dict.fromkeys(dims, fuse(columns, [weight for _, weight in self.teachers]))

    def labelled_by(self) -> Sequence[str]:
        return [name for name, _ in self.teachers]


@dataclass(frozen=True)
class ImageFeed(Feed):
    """Images; a head's target is the vector that the same head gave the caption when the stage began."""

    image_tokens: int
    heads: tuple[int, ...]
    """Sizes of the heads, in the order of the captions' vectors in a row."""

    def groups(
        self, batch: Rows, tokenizer: PreTrainedTokenizerBase, card: StudentCard, group_rows: int
    ) -> tuple[list[TokenGroup], Tensor]:
        pixels_B3SS = torch.from_numpy(np.array(batch[PIXELS]))
        nothing = [""] * len(pixels_B3SS)
        return image_groups(tokenizer, nothing, pixels_B3SS, self.image_tokens, card.max_length, group_rows)

    def targets(self, batch: Rows, dims: Sequence[int]) -> dict[int, Tensor]:
        parts = split_heads(vectors(batch, OWN), self.heads)
        return {dim: parts[dim] for dim in dims}

    def labelled_by(self) -> Sequence[str]:
        return [OWN]


def vectors(batch: Rows, teacher: str) -> Tensor:
    return torch.from_numpy(np.array(batch[vector_column(teacher)]))


def first_place(positions_B: np.ndarray) -> int:
    """Return the first place in the stage's sequence that a block of rows takes; the places must be consecutive."""
    first = int(positions_B.min())
    if not np.array_equal(np.sort(positions_B), np.arange(first, first + len(positions_B))):
        raise AssertionError(
            f"a block's rows have the places {sorted(positions_B.tolist())}, which leave gaps or repeat"
        )
    return first
