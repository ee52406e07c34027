"""A recipe's student at its true size in a folder, of which nothing had to be downloaded.

Where the recipe declares an architecture its weights are random, and its tokenizer is a stand-in: what is measured does
not depend on what weights and ids mean, only on how many there are. The stand-in is a byte-level BPE of the texts that
are measured, and makes about as many tokens of them as a model's own would.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from jasper_ray.models.folder import StudentCard, save_student
from jasper_ray.models.student import StudentSettings, build_student

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARY = 8192
"""Tokens of the stand-in at most. It knows nothing but the measured texts: with more it would cut them into fewer
pieces than a tokenizer of all kinds of texts does."""


def save_stand_in(settings: StudentSettings, texts: Sequence[str], tokens: int, folder: Path) -> dict[str, float]:
    """Write the student in bf16, without its vision, with a tokenizer for `texts` that cuts at so many tokens."""
    student = build_student(settings, seed=0)
    tokenizer = stand_in_tokenizer(texts, min(VOCABULARY, student.body.config.vocab_size))
    card = StudentCard(max_length=tokens, prompts={}, default_head=settings.first_shown)
    save_student(student.to(torch.bfloat16), tokenizer, card, folder)
    return {}


def stand_in_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE of at most so many tokens, learnt from the texts."""
    from transformers import GPT2Tokenizer

    tokenizer = GPT2Tokenizer().train_new_from_iterator(texts, vocabulary, show_progress=False)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
