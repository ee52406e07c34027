"""From labelled rows to what one forward and backward pass needs."""

# Shape legend: B rows of a micro-batch, D size of a teacher's vectors, E size of the target.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from jasper_ray.data.columns import seconds_column, vector_column
from jasper_ray.models.tokens import TokenGroup, length_groups
from jasper_ray.teachers import fuse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Rows = Mapping[str, np.ndarray]
"""Labelled rows as the pipeline streams them, by column."""


@dataclass(frozen=True)
class MicroBatch:
    """One worker's rows of one pass, longest text first."""

    ids: list[str]
    """Row ids, to name rows in errors."""
    position: int
    """Place of its first row in the stage's sequence."""
    groups: list[TokenGroup]
    target_BE: Tensor
    teacher_seconds: dict[str, float]
    """Seconds each teacher worked on these rows; 0 where vectors came from the cache."""

    @property
    def rows(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Collate:
    """Turns a block of labelled rows into a `MicroBatch`."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    group_rows: int
    prompts: Mapping[str, str]
    teachers: Sequence[tuple[str, float]]
    """Name and weight of each teacher, in the order of the target."""

    def __call__(self, batch: Rows) -> MicroBatch:
        texts = [
            self.prompts[prompt] + text if prompt else text
            for text, prompt in zip(batch["text"], batch["prompt"], strict=True)
        ]
        groups, order_B = length_groups(self.tokenizer, texts, self.max_length, self.group_rows)
        columns = [torch.from_numpy(np.array(batch[vector_column(name)])) for name, _ in self.teachers]
        target_BE = fuse(columns, [weight for _, weight in self.teachers])
        return MicroBatch(
            ids=[str(batch["id"][index]) for index in order_B.tolist()],
            position=first_place(batch["position"]),
            groups=groups,
            target_BE=target_BE[order_B],
            teacher_seconds={name: float(batch[seconds_column(name)].sum()) for name, _ in self.teachers},
        )


def first_place(positions_B: np.ndarray) -> int:
    """The first of the places in a stage's sequence that a block of rows takes; they must follow each other."""
    first = int(positions_B.min())
    if not np.array_equal(np.sort(positions_B), np.arange(first, first + len(positions_B))):
        raise AssertionError(
            f"a block's rows have the places {sorted(positions_B.tolist())}, which leave gaps or repeat"
        )
    return first
