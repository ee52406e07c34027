"""Texts and images as padded token batches, grouped by length so that little of what the body computes is padding."""

# Shape legend: B rows, T tokens, S side of an image in pixels.

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from jasper_ray.config import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


IMAGE_START, IMAGE_TOKEN, IMAGE_END = IMAGE_MARKS = ("<|image_start|>", "<|image|>", "<|image_end|>")
"""What stands in a text for an image: the embeddings of the middle one are replaced by the tower's."""


class TokenGroup(NamedTuple):
    """Rows of similar length, padded to the longest of them: texts, or images that a text may follow."""

    ids_BT: Tensor
    mask_BT: Tensor
    """1 for tokens, 0 for padding."""
    pixels_B3SS: Tensor | None = None
    """An image a row, uint8; None where the rows are texts alone."""
    places_BT: Tensor | None = None
    """True where an image's embeddings stand instead of tokens', equally many in each row."""

    def to(self, device: torch.device) -> TokenGroup:
        """The same on a device."""
        return self.map(lambda part: part.to(device, non_blocking=True))

    def first(self, rows: int) -> TokenGroup:
        """The first rows alone."""
        return self.map(lambda part: part[:rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> TokenGroup:
        """The same with every tensor changed."""
        pixels = None if self.pixels_B3SS is None else change(self.pixels_B3SS)
        places = None if self.places_BT is None else change(self.places_BT)
        return TokenGroup(change(self.ids_BT), change(self.mask_BT), pixels, places)


def length_groups(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, group_rows: int
) -> tuple[list[TokenGroup], Tensor]:
    """`texts` cut to `max_length` tokens, longest first, in groups of at most `group_rows`.

    Returns:
        The groups, and `order_B`: row i of the groups, one below the other, is text `order_B[i]`.
    """
    ids, order = longest_first(tokenizer, texts, max_length)
    groups = [pad(tokenizer, ids[start : start + group_rows]) for start in range(0, len(ids), group_rows)]
    return groups, order


def image_groups(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pixels_B3SS: Tensor,
    image_tokens: int,
    max_length: int,
    group_rows: int,
) -> tuple[list[TokenGroup], Tensor]:
    """The same for images that each have a text after them, which may be empty: the text is what is cut.

    A row reads `start`, an image's tokens, `end`, text. A text that spells these marks does not become an image.
    """
    ids, order_B = longest_first(tokenizer, [opening(image_tokens) + text for text in texts], max_length)
    groups = []
    for start in range(0, len(ids), group_rows):
        pixels = pixels_B3SS[order_B[start : start + group_rows]]
        groups.append(with_pixels(tokenizer, pad(tokenizer, ids[start : start + group_rows]), pixels, image_tokens))
    return groups, order_B


def opening(image_tokens: int) -> str:
    """What the text of a row begins with that shows an image."""
    return IMAGE_START + IMAGE_TOKEN * image_tokens + IMAGE_END


def with_pixels(
    tokenizer: PreTrainedTokenizerBase, group: TokenGroup, pixels_B3SS: Tensor, image_tokens: int
) -> TokenGroup:
    """A group whose texts begin with `opening`, and the images that stand there.

    Raises:
        ConfigError: a row was cut inside the image.
    """
    marked_BT = group.ids_BT.eq(tokenizer.get_vocab()[IMAGE_TOKEN])
    places_BT = marked_BT & (marked_BT.cumsum(dim=1) <= image_tokens)  # a text may spell the mark too
    if not (places_BT.sum(dim=1) == image_tokens).all():
        raise ConfigError(
            f"an image takes {image_tokens} tokens, which do not fit into the student's max_length; "
            "lower student.vision.image_tokens or raise student.max_length"
        )
    return group._replace(pixels_B3SS=pixels_B3SS, places_BT=places_BT)


def longest_first(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
) -> tuple[list[list[int]], Tensor]:
    """Token ids of `texts`, longest first, and which text each row is."""
    ids = tokenizer(list(texts), truncation=True, max_length=max_length, padding=False, verbose=False)["input_ids"]
    ids = [tokens or [tokenizer.pad_token_id] for tokens in ids]  # an empty text may have no token; the body needs one
    order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
    return [ids[index] for index in order], torch.tensor(order)


def pad(tokenizer: PreTrainedTokenizerBase, ids: list[list[int]]) -> TokenGroup:
    padded = tokenizer.pad({"input_ids": ids}, return_tensors="pt", padding="longest", verbose=False)
    return TokenGroup(padded["input_ids"], padded["attention_mask"])
