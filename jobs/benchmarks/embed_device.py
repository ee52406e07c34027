"""Embedding alone, at a recipe's true student size: tokens a second on one device, ours and sentence-transformers in
turn on the same folder, and the share of what the device can do.

Ours is what an actor of an embedding job does with a block: sort by length, batches of so many tokens, vectors of the
default head, in bf16; and tokenising, which in a job readers do meanwhile, and which stands here in the time of both
sides. Ray, reading and writing are left out. The peer is `SentenceTransformer.encode` at its best batch size, in the
same precision and in float32, which it computes in by default. Nothing is downloaded where the recipe declares an
architecture.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.device_work import Work, source_texts, works
from benchmarks.process import in_fresh_process
from benchmarks.stand_in import save_stand_in
from benchmarks.table import table
from benchmarks.train import check_tokens, forget, peak_gib, product_tflops, without_download
from jasper_ray.config import ConfigError
from jasper_ray.embedding import EmbedSettings
from jasper_ray.embedding.model import budget_of, open_encoder
from jasper_ray.encoders import TokenEncoder, load_sentence_transformer
from jasper_ray.encoders.token_budget import TokenBudget, is_out_of_memory
from jasper_ray.models.loading import load_tokenizer
from jasper_ray.models.student import StudentSettings, meta_student
from jasper_ray.models.tokenizing import Tokenizing
from jasper_ray.recipe import Recipe
from jasper_ray.resources import ActorPool
from jasper_ray.vectors import Dtype

logger = logging.getLogger(__name__)

BATCHES = (32, 64, 128, 256)
TRIAL_SHARE = 8
"""One of so many texts is embedded beforehand: to warm up, and to find the best batch size."""
PEER = "sentence-transformers bfloat16"
"""Whose speed is 1 in the column `times`."""
COLUMNS = (
    "texts",
    "way",
    "rows",
    "batch",
    "seconds",
    "rows_per_s",
    "tokens_per_s",
    "tflops",
    "share_of_peak",
    "memory_gib",
    "padding",
    "tokenising",
    "times",
)

Measure = Callable[[str, list[str], str], dict[str, Any]]
"""A way: student folder, texts and device to `batch`, `seconds`, `memory_gib`, and what else is known of it."""


def benchmark_embed_device(
    recipe: Recipe, tokens: int | None, rows: int, device: str, peak_tflops: float | None
) -> list[dict[str, Any]]:
    """A record for each kind of texts and each way, each in a process of its own.

    Args:
        tokens: of every text of full length, and of the longest of the others; the student's max_length when None.
        rows: texts of full length; of the others there are as many as have the same number of tokens.
        device: "cuda" or "cpu".
        peak_tflops: what the device's maker promises in bf16, in 10^12 operations a second; when None, what one large
            matrix product reaches. The share in float32 is one of the same.

    Raises:
        ConfigError: no GPU where one is asked for, or sizes that no text can have.
    """
    check_device(device)
    if rows < 1:
        raise ConfigError(f"--rows is {rows}, but at least one text must be embedded")
    settings = without_download(recipe.student)
    tokens = settings.max_length if tokens is None else tokens
    check_tokens(meta_student(settings), tokens)
    peak_tflops = peak_tflops or in_fresh_process(device_peak, device)["tflops"]
    with stand_in(settings, tokens, rows) as (folder, both):
        return [record for work in both for record in of_work(work, folder, device, peak_tflops)]


def check_device(device: str) -> None:
    """Refuse a device that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch sees no GPU here; take a machine that has one, or write --device cpu")


def device_peak(device: str) -> dict[str, float]:
    return {"tflops": product_tflops(torch.device(device), "bf16")}


@contextmanager
def stand_in(settings: StudentSettings, tokens: int, rows: int) -> Iterator[tuple[str, list[Work]]]:
    """A folder with the student, as long as it is needed, and what it is given to embed."""
    texts = source_texts(rows, tokens)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "student"
        logger.info("writing the student")
        in_fresh_process(save_stand_in, settings, texts, tokens, folder)
        yield str(folder), works(settings, texts, Tokenizing(load_tokenizer(str(folder)), tokens), rows)


def of_work(work: Work, folder: str, device: str, peak_tflops: float) -> list[dict[str, Any]]:
    """The record of each way for the same texts."""
    ways: dict[str, Measure] = {
        PEER: partial(theirs, dtype="bfloat16"),
        "sentence-transformers float32": partial(theirs, dtype="float32"),
        "ours bfloat16": ours,
    }
    records: list[dict[str, Any]] = []
    for way, measure in ways.items():
        found: dict[str, Any] = in_fresh_process(measure, folder, work.texts, device)
        records.append({"texts": work.name, "way": way, **found, **figures(work, found["seconds"], peak_tflops)})
        logger.info("%s, %s: %s tokens/s", work.name, way, f"{records[-1]['tokens_per_s']:,.0f}")
    return [{**record, "times": records[0]["seconds"] / record["seconds"]} for record in records]


def figures(work: Work, seconds: float, peak_tflops: float) -> dict[str, float]:
    """Speeds of a way that took so long. Padding is no work: it counts neither as tokens nor as operations."""
    reached = work.operations / seconds / 1e12
    return {
        "rows": len(work.texts),
        "tokens": work.tokens,
        "rows_per_s": len(work.texts) / seconds,
        "tokens_per_s": work.tokens / seconds,
        "tflops": reached,
        "peak_tflops": peak_tflops,
        "share_of_peak": reached / peak_tflops,
    }


def ours(folder: str, texts: list[str], device: str, dtype: Dtype = "bfloat16") -> dict[str, Any]:
    """Blocks as an actor embeds them; on processors the one actor has them all."""
    pool = ActorPool(gpus=1) if device == "cuda" else ActorPool(threads=os.cpu_count())
    settings = EmbedSettings(model=folder, inputs=("texts",), pool=pool)
    encoder, budget = open_encoder(settings, None, dtype), budget_of(settings)
    embed_block(trial(texts), encoder, budget)
    forget(torch.device(device))
    began = time.perf_counter()
    size = settings.block_rows
    parts = [embed_block(texts[start : start + size], encoder, budget) for start in range(0, len(texts), size)]
    seconds = time.perf_counter() - began  # the vectors are in the processor's memory: nothing is under way
    tokens, computed, tokenising = (sum(part) for part in zip(*parts, strict=True))
    return {
        "batch": f"{budget.tokens} tokens",
        "seconds": seconds,
        "memory_gib": peak_gib(torch.device(device)),
        "padding": 1 - tokens / computed,
        "tokenising": tokenising / seconds,
    }


def embed_block(texts: list[str], encoder: TokenEncoder, budget: TokenBudget) -> tuple[int, int, float]:
    """Tokens of the texts, tokens computed with padding, and seconds of tokenising."""
    tokenizing = encoder.tokenizing()
    assert tokenizing
    began = time.perf_counter()
    ids = [np.array(row, np.int32) for row in tokenizing(texts)]
    seconds = time.perf_counter() - began
    _, computed = budget.encode(lambda batch: encoder.encode_tokens(batch, encoder.dims[:1]), ids)
    return sum(map(len, ids)), computed, seconds


def theirs(folder: str, texts: list[str], device: str, dtype: Dtype) -> dict[str, Any]:
    """sentence-transformers at the batch size that is best for some of the texts."""
    torch.set_num_threads(os.cpu_count() or 1)
    model = load_sentence_transformer(folder, device=device, dtype=dtype).model

    def seconds(some: list[str], batch: int) -> float:
        began = time.perf_counter()
        model.encode(some, batch_size=batch, normalize_embeddings=True, show_progress_bar=False)
        return time.perf_counter() - began

    best = best_batch(seconds, trial(texts))
    forget(torch.device(device))
    return {
        "batch": f"{best} rows",
        "seconds": seconds(texts, best),
        "memory_gib": peak_gib(torch.device(device)),
    }


def best_batch(seconds: Callable[[list[str], int], float], texts: list[str]) -> int:
    """The batch size at which these texts take least, after a first one that warms up; what does not fit is left out.

    Raises:
        RuntimeError: none fits into memory.
    """
    seconds(texts, BATCHES[0])
    took = dict.fromkeys(BATCHES, math.inf)
    for batch in BATCHES:
        try:
            took[batch] = seconds(texts, batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
    return min(took, key=took.__getitem__)


def trial(texts: list[str]) -> list[str]:
    """Some of the texts, and a batch of the largest size at least."""
    return texts[: max(len(texts) // TRIAL_SHARE, BATCHES[-1])]


def render(records: list[dict[str, Any]]) -> str:
    """The records as a table."""
    return table(records, COLUMNS)
