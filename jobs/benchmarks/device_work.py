"""What a device is given to embed: texts that fill the model's length, and texts as long as texts are; and how many
operations the method asks for them."""

# Shape legend: N texts.

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.docstrings import docstrings
from jasper_ray.config import ConfigError
from jasper_ray.models.student import Student, StudentSettings, meta_student
from jasper_ray.models.tokenizing import Tokenizing

CHARACTERS = 8
"""Of a token, more than there are: so many are read for each."""
SPARE = 8
"""Tokens that a window has beyond its length, which cutting takes away: words at its ends may be cut up otherwise."""


class Work(NamedTuple):
    """Texts that every way embeds."""

    name: str
    texts: list[str]
    tokens: int
    """Of the texts together, padding left out."""
    operations: float
    """Floating-point operations for the texts together, padding left out."""


def source_texts(rows: int, tokens: int) -> list[str]:
    """Natural texts, enough to cut so many rows out of them, as far as there are."""
    return docstrings(CHARACTERS * (rows + 1) * tokens)


def works(settings: StudentSettings, texts: Sequence[str], tokenizing: Tokenizing, rows: int) -> list[Work]:
    """So many rows of full length, and as many of natural length as have the same number of tokens together."""
    full = windows(texts, tokenizing, rows)
    natural = as_many(texts, tokenizing, rows * tokenizing.max_length)
    named = {f"{tokenizing.max_length} tokens": full, "natural lengths": natural}
    return [measured(settings, name, found, tokenizing) for name, found in named.items()]


def windows(texts: Sequence[str], tokenizing: Tokenizing, rows: int) -> list[str]:
    """So many rows of words that follow each other in the texts, each of `max_length` tokens when it has been cut; rows
    overlap where the texts are too few.

    Raises:
        ConfigError: all texts together are shorter than that.
    """
    words = " ".join(texts).split()
    ends = np.cumsum([len(ids) for ids in tokenizing([f" {word}" for word in words], truncate=False)])
    wide = tokenizing.max_length + SPARE
    room = int(ends[-1]) - wide
    if room < 0:
        raise ConfigError(f"--tokens is {tokenizing.max_length}, but all texts have {ends[-1]} together; lower it")
    starts = np.searchsorted(ends, np.linspace(0, room, rows, endpoint=False))
    stops = np.searchsorted(ends, ends[starts] + wide)
    return [" ".join(words[start : stop + 1]) for start, stop in zip(starts, stops, strict=True)]


def as_many(texts: Sequence[str], tokenizing: Tokenizing, tokens: int) -> list[str]:
    """The texts in turn, again and again, until they have so many tokens together."""
    each = np.cumsum([len(ids) for ids in tokenizing(texts)])
    rounds, rest = divmod(tokens, int(each[-1]))
    return list(islice(cycle(texts), rounds * len(texts) + int(np.searchsorted(each, rest)) + 1))


def measured(settings: StudentSettings, name: str, texts: list[str], tokenizing: Tokenizing) -> Work:
    lengths_N = np.array([len(ids) for ids in tokenizing(texts)])
    return Work(name, texts, int(lengths_N.sum()), operations(meta_student(settings), settings.first_shown, lengths_N))


def operations(student: Student, dim: int, lengths_N: np.ndarray) -> float:
    """Floating-point operations for texts of so many tokens and the vectors of one head, on torch's meta device.

    A text of T tokens takes a + b T + c T^2 (head, weights, attention of every token to every token), which three
    counts of torch's decide.
    """
    few = np.array([1, 2, 3])
    counts = [counted(student, dim, int(tokens)) for tokens in few]
    return float(np.polyval(np.polyfit(few, counts, 2), lengths_N).sum())


@torch.inference_mode()
def counted(student: Student, dim: int, tokens: int) -> int:
    """Operations for one text, as torch counts them; a fused attention of a real device it may not know."""
    from torch.utils.flop_counter import FlopCounterMode

    ids_BT = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        student.heads[str(dim)](student.body(input_ids=ids_BT).last_hidden_state[:, 0])
    return int(counter.get_total_flops())
