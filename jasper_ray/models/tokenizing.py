"""What an encoder does before its weights are needed: texts to token ids. Sent to where texts are read."""

# Shape legend: B rows of a batch, T tokens of the longest of them.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = Sequence[np.ndarray]
"""Token ids of some texts, int32, each as long as its text."""


@dataclass(frozen=True)
class Tokenizing:
    """Texts to token ids, as one encoder takes them."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    """Tokens a text is cut to."""
    prompt: str = ""
    """What stands before every text."""

    def __call__(self, texts: Sequence[str], truncate: bool = True) -> list[list[int]]:
        """Ids of each text behind the prompt; longer than `max_length` only where `truncate` is off."""
        if not texts:
            return []
        cut = {"truncation": True, "max_length": self.max_length} if truncate else {"truncation": False}
        prompted = [self.prompt + text for text in texts]
        found = self.tokenizer(prompted, padding=False, return_attention_mask=False, verbose=False, **cut)["input_ids"]
        return [ids or [self.padding] for ids in found]  # an empty text may have no token; a body needs one

    @property
    def padding(self) -> int:
        """The id that fills shorter rows up."""
        return int(self.tokenizer.pad_token_id or 0)

    def padded(self, ids: Ids) -> tuple[np.ndarray, np.ndarray]:
        """`ids_BT` and `mask_BT` (1: a token), int64, filled up on the side that the tokenizer fills up."""
        lengths = [len(row) for row in ids]
        width = max(lengths)
        ids_BT = np.full((len(ids), width), self.padding, np.int64)
        mask_BT = np.zeros((len(ids), width), np.int64)
        left = self.tokenizer.padding_side == "left"
        for row, (tokens, length) in enumerate(zip(ids, lengths, strict=True)):
            place = slice(width - length, width) if left else slice(length)
            ids_BT[row, place] = tokens
            mask_BT[row, place] = 1
        return ids_BT, mask_BT
