"""Texts as padded token batches, grouped by length so that little of what the body computes is padding."""

# Shape legend: B texts, T tokens.

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenGroup(NamedTuple):
    """Texts of similar length, padded to the longest of them."""

    ids_BT: Tensor
    mask_BT: Tensor

    def to(self, device: torch.device) -> TokenGroup:
        return TokenGroup(self.ids_BT.to(device, non_blocking=True), self.mask_BT.to(device, non_blocking=True))


def length_groups(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, group_rows: int
) -> tuple[list[TokenGroup], Tensor]:
    """`texts` cut to `max_length` tokens, longest first, in groups of at most `group_rows`.

    Returns:
        The groups, and `order_B`: row i of the groups, one below the other, is text `order_B[i]`.
    """
    ids = tokenizer(list(texts), truncation=True, max_length=max_length, padding=False, verbose=False)["input_ids"]
    ids = [tokens or [tokenizer.pad_token_id] for tokens in ids]  # an empty text may have no token; the body needs one
    order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
    groups = [
        pad(tokenizer, [ids[index] for index in order[start : start + group_rows]])
        for start in range(0, len(order), group_rows)
    ]
    return groups, torch.tensor(order)


def pad(tokenizer: PreTrainedTokenizerBase, ids: list[list[int]]) -> TokenGroup:
    padded = tokenizer.pad({"input_ids": ids}, return_tensors="pt", padding="longest", verbose=False)
    return TokenGroup(padded["input_ids"], padded["attention_mask"])
