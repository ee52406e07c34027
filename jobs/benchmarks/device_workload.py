"""A recipe's student at its true size in a folder, and the texts that a device embeds with it; nothing is downloaded.

Where the recipe declares an architecture the weights are random and the tokenizer is a byte-level BPE learnt from the
measured texts: speed depends on the number of weights and tokens, not on their values. The texts are docstrings of
Python's standard library, once cut into windows of full length and once at their natural length.
"""

# Shape legend: N texts.

from __future__ import annotations

import ast
import logging
import random
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from benchmarks.harness import in_fresh_process
from jasper_ray.config import ConfigError
from jasper_ray.models.folder import StudentCard, save_student
from jasper_ray.models.loading import load_tokenizer
from jasper_ray.models.student import Student, StudentSettings, build_student, meta_student
from jasper_ray.models.tokens import Tokenizing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

EXCLUDED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}
"""Folders of the standard library without prose, or without Python of today."""
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
VOCABULARY = 8192
"""Largest vocabulary of the tokenizer. It knows the measured texts alone, so a larger one would cut them into fewer
pieces than a general tokenizer does."""
CHARACTERS = 8
"""Characters that are read for each token; a token has fewer."""
SPARE = 8
"""Tokens of a window beyond its length, which truncation removes: words at its ends may be split differently."""


class Workload(NamedTuple):
    """Texts that every side embeds."""

    name: str
    texts: list[str]
    tokens: int
    """Tokens of all texts, without padding."""
    operations: float
    """Floating-point operations for all texts, without padding."""


@contextmanager
def stand_in(settings: StudentSettings, tokens: int, rows: int) -> Iterator[tuple[str, list[Workload]]]:
    """Write the student to a temporary folder and make its workloads."""
    texts = docstrings(CHARACTERS * (rows + 1) * tokens)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "student"
        logger.info("writing the student")
        in_fresh_process(save_stand_in, settings, texts, tokens, folder)
        yield str(folder), workloads(settings, texts, Tokenizing(load_tokenizer(str(folder)), tokens), rows)


def save_stand_in(settings: StudentSettings, texts: Sequence[str], tokens: int, folder: Path) -> None:
    """Write the student in bf16, without its vision, with a tokenizer that truncates to this many tokens."""
    student = build_student(settings, seed=0)
    tokenizer = stand_in_tokenizer(texts, min(VOCABULARY, student.body.config.vocab_size))
    card = StudentCard(max_length=tokens, prompts={}, default_head=settings.first_shown)
    save_student(student.to(torch.bfloat16), tokenizer, card, folder)


def stand_in_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """Learn a byte-level BPE of at most this size from the texts."""
    from transformers import GPT2Tokenizer

    tokenizer = GPT2Tokenizer().train_new_from_iterator(texts, vocabulary, show_progress=False)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def docstrings(least: int, seed: int = 3) -> list[str]:
    """Read distinct docstrings of the standard library with at least so many characters, or all 1.7 million.

    Files are read whole; the seed decides their order and that of the texts.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in root.rglob("*.py") if not EXCLUDED & set(path.relative_to(root).parts))
    random.Random(seed).shuffle(files)
    distinct: dict[str, None] = {}
    characters = 0
    for file in files:
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
                characters += 0 if text in distinct else len(text)
                distinct[text] = None
        if characters >= least:
            break
    texts = list(distinct)
    random.Random(seed).shuffle(texts)
    return texts


def workloads(settings: StudentSettings, texts: Sequence[str], tokenizing: Tokenizing, rows: int) -> list[Workload]:
    """Make rows of full length, and texts of natural length with the same number of tokens."""
    named = {
        f"{tokenizing.max_length} tokens": windows(texts, tokenizing, rows),
        "natural lengths": with_tokens(texts, tokenizing, rows * tokenizing.max_length),
    }
    student = meta_student(settings)
    both = []
    for name, chosen in named.items():
        lengths_N = np.array([len(ids) for ids in tokenizing(chosen)])
        flops = operations(student, settings.first_shown, lengths_N)
        both.append(Workload(name, chosen, int(lengths_N.sum()), flops))
    return both


def windows(texts: Sequence[str], tokenizing: Tokenizing, rows: int) -> list[str]:
    """Cut rows of consecutive words, each of `max_length` tokens after truncation; they overlap if the texts are short.

    Raises:
        ConfigError: all texts together are shorter than one row.
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


def with_tokens(texts: Sequence[str], tokenizing: Tokenizing, tokens: int) -> list[str]:
    """Repeat the texts until they have so many tokens."""
    totals = np.cumsum([len(ids) for ids in tokenizing(texts)])
    rounds, rest = divmod(tokens, int(totals[-1]))
    return list(islice(cycle(texts), rounds * len(texts) + int(np.searchsorted(totals, rest)) + 1))


def operations(student: Student, dim: int, lengths_N: np.ndarray) -> float:
    """Count the floating-point operations for texts of these lengths and one head, on torch's meta device.

    A text of T tokens takes a + b T + c T^2 (head, weights, attention of every token to every token), and three counts
    by torch give a, b and c.
    """
    few = np.array([1, 2, 3])
    counts = [text_operations(student, dim, int(tokens)) for tokens in few]
    return float(np.polyval(np.polyfit(few, counts, 2), lengths_N).sum())


@torch.inference_mode()
def text_operations(student: Student, dim: int, tokens: int) -> int:
    """Count the operations for one text on the meta device; torch may not know a real device's fused attention."""
    from torch.utils.flop_counter import FlopCounterMode

    ids_BT = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        student.heads[str(dim)](student.body(input_ids=ids_BT).last_hidden_state[:, 0])
    return int(counter.get_total_flops())
