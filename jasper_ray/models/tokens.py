"""Texts to token ids to padded batches: one path for training, encoding, embedding and serving.

Torch is imported only where tensors are made: processes that read and tokenise texts start without it.
"""

# Shape legend: B rows, T tokens of the longest row, S side of an image in pixels.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jasper_ray.config import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Ids = Sequence[np.ndarray]
"""Token ids of some texts, int32, each as long as its text."""
IMAGE_START, IMAGE_TOKEN, IMAGE_END = IMAGE_MARKS = ("<|image_start|>", "<|image|>", "<|image_end|>")
"""Tokens that mark an image in a text; the vision encoder's embeddings replace those of the middle one."""


@dataclass(frozen=True)
class Tokenizing:
    """The way from texts to the token ids of one encoder."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    """Longest row, in tokens; longer texts are truncated."""
    prompt: str = ""
    """Text put before every text."""

    def __call__(self, texts: Sequence[str], truncate: bool = True) -> list[list[int]]:
        """Tokenise each text after the prompt; only without `truncate` are rows longer than `max_length`."""
        if not texts:
            return []
        limit = {"truncation": True, "max_length": self.max_length} if truncate else {"truncation": False}
        prompted = [self.prompt + text for text in texts]
        rows = self.tokenizer(prompted, padding=False, return_attention_mask=False, verbose=False, **limit)["input_ids"]
        return [ids or [self.padding] for ids in rows]  # an empty text may have no token; a body needs one

    @property
    def padding(self) -> int:
        """Token id that fills up shorter rows."""
        return int(self.tokenizer.pad_token_id or 0)

    def padded(self, ids: Ids | Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Pad rows on the tokenizer's side: `ids_BT` and `mask_BT` (1: a token), int64."""
        lengths = [len(row) for row in ids]
        width = max(lengths)
        ids_BT = np.full((len(ids), width), self.padding, np.int64)
        mask_BT = np.zeros((len(ids), width), np.int64)
        left = self.tokenizer.padding_side == "left"
        for row, (tokens, length) in enumerate(zip(ids, lengths, strict=True)):
            place = slice(width - length, width) if left else slice(length)
            ids_BT[row, place] = np.asarray(tokens)
            mask_BT[row, place] = 1
        return ids_BT, mask_BT

    def group(self, ids: Ids | Sequence[list[int]]) -> TokenGroup:
        import torch

        ids_BT, mask_BT = self.padded(ids)
        return TokenGroup(torch.from_numpy(ids_BT), torch.from_numpy(mask_BT))


class TokenGroup(NamedTuple):
    """Rows of similar length, padded to the longest: texts, or images that a text may follow."""

    ids_BT: Tensor
    mask_BT: Tensor
    """1 for tokens, 0 for padding."""
    pixels_B3SS: Tensor | None = None
    """One image per row, uint8; None for texts."""
    places_BT: Tensor | None = None
    """True at the tokens that an image's embeddings replace, equally many in each row."""

    def to(self, device: torch.device) -> TokenGroup:
        return self.map(lambda part: part.to(device, non_blocking=True))

    def first(self, rows: int) -> TokenGroup:
        return self.map(lambda part: part[:rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> TokenGroup:
        pixels = None if self.pixels_B3SS is None else change(self.pixels_B3SS)
        places = None if self.places_BT is None else change(self.places_BT)
        return TokenGroup(change(self.ids_BT), change(self.mask_BT), pixels, places)


def length_groups(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, group_rows: int
) -> tuple[list[TokenGroup], Tensor]:
    """Sort `texts` by length, longest first, into groups of at most `group_rows` rows, so that little is padding.

    Returns:
        The groups, and `order_B`: row i of all groups together is text `order_B[i]`.
    """
    import torch

    tokenizing = Tokenizing(tokenizer, max_length)
    ids = tokenizing(texts)
    order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
    parts = [order[start : start + group_rows] for start in range(0, len(order), group_rows)]
    return [tokenizing.group([ids[index] for index in part]) for part in parts], torch.tensor(order)


def image_groups(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pixels_B3SS: Tensor,
    image_tokens: int,
    max_length: int,
    group_rows: int,
) -> tuple[list[TokenGroup], Tensor]:
    """Make the same groups of images, each with the text after it, which may be empty and is truncated first.

    A row reads `start`, an image's tokens, `end`, text. A text that spells these marks does not become an image.
    """
    marked = [image_opening(image_tokens) + text for text in texts]
    groups, order_B = length_groups(tokenizer, marked, max_length, group_rows)
    pixels = pixels_B3SS[order_B].split(group_rows)
    return [
        with_pixels(tokenizer, group, part, image_tokens) for group, part in zip(groups, pixels, strict=True)
    ], order_B


def image_opening(image_tokens: int) -> str:
    """Spell the marks that begin a row with an image."""
    return IMAGE_START + IMAGE_TOKEN * image_tokens + IMAGE_END


def with_pixels(
    tokenizer: PreTrainedTokenizerBase, group: TokenGroup, pixels_B3SS: Tensor, image_tokens: int
) -> TokenGroup:
    """Add images to a group whose texts begin with `image_opening`.

    Raises:
        ConfigError: a row was truncated inside the image.
    """
    marked_BT = group.ids_BT.eq(tokenizer.get_vocab()[IMAGE_TOKEN])
    places_BT = marked_BT & (marked_BT.cumsum(dim=1) <= image_tokens)  # a text may spell the mark too
    if not (places_BT.sum(dim=1) == image_tokens).all():
        raise ConfigError(
            f"an image takes {image_tokens} tokens, which do not fit into the student's max_length; "
            "lower student.vision.image_tokens or raise student.max_length"
        )
    return group._replace(pixels_B3SS=pixels_B3SS, places_BT=places_BT)
