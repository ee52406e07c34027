"""Embedding at a recipe's true student size on one device: ours and sentence-transformers in turn on one folder.

Ours embeds chunks as an actor of an embedding job does: texts sorted by length, batches by tokens, the default head,
bf16. Its time includes tokenising, which readers do in parallel in a job, and excludes Ray, reading and writing. The
peer is `SentenceTransformer.encode` at its best batch size, in bf16 and in float32, its default.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.device import check_device, check_tokens, peak_gib, product_tflops, reset_peak, without_download
from benchmarks.device_workload import Workload, stand_in
from benchmarks.embed_peers import best_batch
from benchmarks.harness import DEVICE, PEAK, TOKENS, Benchmark, Option, Record, Records, in_fresh_process, rows_option
from jasper_ray.config import ConfigError
from jasper_ray.embedding import EmbedSettings
from jasper_ray.embedding.preflight import Plan
from jasper_ray.encoders import Encoder, load_sentence_transformer
from jasper_ray.encoders.token_budget import TokenBudget
from jasper_ray.models.student import meta_student
from jasper_ray.recipe import Recipe, load_recipe
from jasper_ray.resources import Pool, Replicas
from jasper_ray.vectors import Dtype

logger = logging.getLogger(__name__)

BATCHES = (32, 64, 128, 256)
TRIAL_SHARE = 8
"""One in so many texts warms up and finds the best batch size."""


def benchmark_embed_device(recipe: Recipe, tokens: int | None, rows: int, device: str, peak: float | None) -> Records:
    """Measure each workload and side in a fresh process.

    Args:
        tokens: tokens of a text of full length, and the longest of the others; None: the student's max_length.
        rows: texts of full length; the others have as many tokens in total.
        peak: the vendor's peak in bf16, in 10^12 operations/s; None: the speed of a large matrix product. float32 is
            compared with the same figure.

    Raises:
        ConfigError: there is no GPU, or no text can have these sizes.
    """
    check_device(device)
    if rows < 1:
        raise ConfigError(f"--rows is {rows}, but at least one text must be embedded")
    settings = without_download(recipe.student)
    tokens = settings.max_length if tokens is None else tokens
    check_tokens(meta_student(settings), tokens)
    peak = peak or in_fresh_process(product_tflops, torch.device(device), "bf16")
    with stand_in(settings, tokens, rows) as (folder, workloads):
        return [record for workload in workloads for record in measure(workload, folder, device, peak)]


def measure(workload: Workload, folder: str, device: str, peak: float) -> Records:
    """Measure each side on the same texts; `times` is the speed relative to the first.

    Padding counts neither as tokens nor as operations.
    """
    sides: dict[str, Callable[[str, list[str], str], Record]] = {
        "sentence-transformers bfloat16": partial(embed_by_peer, dtype="bfloat16"),
        "sentence-transformers float32": partial(embed_by_peer, dtype="float32"),
        "ours bfloat16": embed_by_us,
    }
    records: Records = []
    for side, embed in sides.items():
        record = in_fresh_process(embed, folder, workload.texts, device)
        tokens_per_s = workload.tokens / record["seconds"]
        tflops = workload.operations / record["seconds"] / 1e12
        records.append(
            {
                "texts": workload.name,
                "way": side,
                **record,
                "rows": len(workload.texts),
                "tokens": workload.tokens,
                "rows_per_s": len(workload.texts) / record["seconds"],
                "tokens_per_s": tokens_per_s,
                "tflops": tflops,
                "peak_tflops": peak,
                "share_of_peak": tflops / peak,
            }
        )
        logger.info("%s, %s: %s tokens/s", workload.name, side, f"{tokens_per_s:,.0f}")
    return [{**record, "times": records[0]["seconds"] / record["seconds"]} for record in records]


def embed_by_us(folder: str, texts: list[str], device: str, dtype: Dtype = "bfloat16") -> Record:
    """Embed chunks as an actor does; on a CPU one actor has all threads."""
    pool = Replicas(gpus=1) if device == "cuda" else Replicas(threads=os.cpu_count())
    settings = EmbedSettings(model=folder, inputs=("texts",))
    opened = Plan(settings, pool, Pool()).open(dtype)
    encoder, budget = opened.encoder, opened.budget
    embed_chunk(trial(texts), encoder, budget)
    reset_peak(torch.device(device))
    began = time.perf_counter()
    size = settings.block_rows
    parts = [embed_chunk(texts[start : start + size], encoder, budget) for start in range(0, len(texts), size)]
    seconds = time.perf_counter() - began  # the vectors are in the CPU's memory: nothing is under way
    tokens, computed, tokenising = (sum(part) for part in zip(*parts, strict=True))
    return {
        "batch": f"{budget.tokens} tokens",
        "seconds": seconds,
        "memory_gib": peak_gib(torch.device(device)),
        "padding": 1 - tokens / computed,
        "tokenising": tokenising / seconds,
    }


def embed_chunk(texts: list[str], encoder: Encoder, budget: TokenBudget) -> tuple[int, int, float]:
    """Return the tokens of the texts, the tokens computed with padding, and the seconds of tokenising."""
    tokenizing = encoder.tokenizing()
    assert tokenizing
    began = time.perf_counter()
    ids = [np.array(row, np.int32) for row in tokenizing(texts)]
    seconds = time.perf_counter() - began
    _, computed = budget.encode(lambda batch: encoder.encode_tokens(batch, encoder.dims[:1]), ids)
    return sum(map(len, ids)), computed, seconds


def embed_by_peer(folder: str, texts: list[str], device: str, dtype: Dtype) -> dict[str, Any]:
    """Embed with sentence-transformers at its best batch size for some of the texts."""
    torch.set_num_threads(os.cpu_count() or 1)
    model = load_sentence_transformer(folder, device=device, dtype=dtype).model

    def seconds(some: list[str], batch: int) -> float:
        began = time.perf_counter()
        model.encode(some, batch_size=batch, normalize_embeddings=True, show_progress_bar=False)
        return time.perf_counter() - began

    best = best_batch(seconds, trial(texts), BATCHES)
    reset_peak(torch.device(device))
    return {
        "batch": f"{best} rows",
        "seconds": seconds(texts, best),
        "memory_gib": peak_gib(torch.device(device)),
    }


def trial(texts: list[str]) -> list[str]:
    """Take some of the texts, at least a batch of the largest size."""
    return texts[: max(len(texts) // TRIAL_SHARE, BATCHES[-1])]


BENCHMARK = Benchmark(
    "embed-device",
    "a recipe's student on one device, against sentence-transformers",
    (
        Option("--recipe", "jasper-2b", "recipe with the student", resolve=load_recipe),
        TOKENS,
        rows_option(2048),
        PEAK,
        DEVICE,
    ),
    benchmark_embed_device,
    "texts way rows batch seconds rows_per_s tokens_per_s tflops share_of_peak memory_gib padding tokenising times",
)
