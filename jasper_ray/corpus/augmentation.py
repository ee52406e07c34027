"""Cutting documents into short texts and shuffling words, decided for each text by its id and the seed."""

from __future__ import annotations

import re

from jasper_ray.corpus.settings import Augmentation
from jasper_ray.sources.hashing import falls_in_share, generator, text_id

_SENTENCE_END = re.compile(
    r"(?<=[.!?…])\s+"
    r"|(?<=[.!?…][\"'”’)\]])\s+"
    r"|(?<=[\u3002\uff01\uff1f])"  # full-width full stop, exclamation mark, question mark
    r"|\s*\n\s*"
)


def split_sentences(text: str) -> list[str]:
    """The sentences of `text`, each with the white space that follows it, so that joining them gives `text` back.

    A sentence ends at `.`, `!`, `?` or `…` (and a closing quote or bracket) before white space, at their full-width
    forms, and at a line break. The splitter knows no abbreviations: "Dr. Smith" is two sentences. For cutting texts to
    varied lengths this is enough.
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    starts = [0, *ends]
    pieces = [text[start:end] for start, end in zip(starts, [*ends, len(text)], strict=True)]
    return [piece for piece in pieces if piece]


def cut(text: str, row_id: str, augmentation: Augmentation, seed: int) -> list[str]:
    """`text` cut into consecutive short texts of `min_sentences` to `max_sentences` sentences; nothing is lost."""
    sizes = generator(row_id, seed, "cut sizes")
    sentences = split_sentences(text)
    pieces = []
    while sentences:
        size = sizes.randint(augmentation.min_sentences, augmentation.max_sentences)
        pieces.append("".join(sentences[:size]).strip())
        sentences = sentences[size:]
    return [piece for piece in pieces if piece]


def shuffle_words(text: str, row_id: str, seed: int) -> str:
    """The words of `text` (what white space separates) in random order, joined by single spaces."""
    words = text.split()
    generator(row_id, seed, "shuffle order").shuffle(words)
    return " ".join(words)


def augment(document: str, row_id: str, augmentation: Augmentation, seed: int) -> list[str]:
    """The training texts made of one document: itself, or its short texts; some with their words shuffled."""
    cutting = falls_in_share(row_id, augmentation.cut_share, seed, "cut")
    texts = cut(document, row_id, augmentation, seed) if cutting else [document]
    if augmentation.shuffle_share == 0:
        return texts
    return [_maybe_shuffled(text, augmentation.shuffle_share, seed) for text in texts]


def _maybe_shuffled(text: str, share: float, seed: int) -> str:
    row_id = text_id(text)
    return shuffle_words(text, row_id, seed) if falls_in_share(row_id, share, seed, "shuffle") else text
