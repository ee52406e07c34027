"""Embedding a corpus on a CPU, ours and the usual ways in turn on the same texts, cores and weights.

Loading models is excluded. Ours is measured on Ray, with reading and writing of files, from the start of the first
chunk to the end of the last. The other two benchmarks measure the cost of more columns, and the cost of Ray with one
actor and with two against a plain loop.
"""

from __future__ import annotations

import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.embed_peers import run_onnx, run_sentence_transformers, single_text_ms
from benchmarks.harness import (
    MODEL,
    THREADS,
    Benchmark,
    Option,
    Record,
    Records,
    in_fresh_process,
    in_turn,
    rounds_option,
    rows_option,
)
from jasper_ray.assets import locate
from jasper_ray.config import ConfigError
from jasper_ray.embedding import EmbedSettings
from jasper_ray.embedding.chunks import plan_spans, read_chunks
from jasper_ray.embedding.inputs import list_inputs
from jasper_ray.embedding.job import embed_corpus
from jasper_ray.embedding.manifest import summary
from jasper_ray.embedding.output import ChunkWriter
from jasper_ray.embedding.preflight import Plan
from jasper_ray.embedding.reading import scan
from jasper_ray.embedding.settings import VectorColumn
from jasper_ray.embedding.store import open_store
from jasper_ray.encoders import load_encoder
from jasper_ray.encoders.precision import fast_precision, precise
from jasper_ray.resources import Pool, Replicas
from jasper_ray.vectors import Dtype, Precision

SOURCES = ("pypi:vader-sentences", "debian:wordnet-sentences", "debian:docs")
"""Tweets, reviews, editorials; definitions and examples; manuals: five to two hundred tokens."""
PRECISION = Option(
    "--precision",
    "auto",
    "precision of every side; auto: float32, and bfloat16 where this CPU is fast in it",
    choices=("auto", "float32", "bfloat16", "both"),
)


def precisions(option: str) -> list[Dtype]:
    """Choose the precisions of `--precision`."""
    both = option == "both" or (option == "auto" and fast_precision("cpu") == "bfloat16")
    return ["float32", "bfloat16"] if both else ["bfloat16"] if option == "bfloat16" else ["float32"]


def benchmark_embed(model: str, rows: int, rounds: int, threads: int, precision: str) -> Records:
    """Measure each way; keep the best round, and as `times` its speed relative to the first way."""
    lines = mixed_lines(rows)
    ways: dict[str, Callable[[], Record]] = {}
    for dtype in precisions(precision):
        peer = partial(in_fresh_process, run_sentence_transformers, model, lines, threads, dtype)
        ways[f"sentence-transformers {dtype}"] = peer
        ways[f"ours {dtype}"] = partial(embed_with_ray, model, threads, {"precision": dtype}, lines)
    if find_spec("onnxruntime"):
        ways["ONNX Runtime float32"] = partial(in_fresh_process, run_onnx, model, lines, threads)
    records = [fastest(measured) for measured in in_turn(ways, rounds).values()]
    return [
        {**record, "rows": rows, "rows_per_s": rows / record["seconds"], **times(record, records)} for record in records
    ]


def benchmark_columns(model: str, rows: int, rounds: int, threads: int) -> Records:
    """Measure one column of vectors, and two sizes in three dtypes; `times` is their speed relative to one."""
    dims = load_encoder(model).dims
    large, small = largest_and_smallest(dims)
    six = [{"dim": dim, "dtype": dtype} for dim in (large, small) for dtype in ("float32", "int8", "binary")]
    columns = {"1 column": [{"dim": large}], "2 sizes x 3 dtypes": six}
    lines = mixed_lines(rows)
    ways = {way: partial(embed_with_ray, model, threads, {"vectors": chosen}, lines) for way, chosen in columns.items()}
    records = [fastest(measured) for measured in in_turn(ways, rounds).values()]
    return [{**record, "rows": rows, **times(record, records)} for record in records]


def benchmark_scale(model: str, rows: int, rounds: int, precision: str) -> Records:
    """Measure one actor and two of one thread each, and the same chunks in a plain loop in one process.

    Figures are medians of the rounds; `times` is the steady speed relative to the plain loop's.
    """
    values = {"model": model, "precision": precision, "block_rows": max(1, math.ceil(rows / 64))}
    lines = mixed_lines(rows)
    ways = {
        "plain loop": partial(in_fresh_process, run_plain_loop, values, lines),
        "1 actor": partial(embed_with_ray, model, 1, values, lines),
        "2 actors": partial(embed_with_ray, model, 2, values, lines),
    }
    records = []
    for way, measured in in_turn(ways, rounds).items():
        names = [name for name in measured[0] if name != "way"]
        medians = {name: statistics.median(record[name] for record in measured) for name in names}
        records.append({"way": way, "rows": rows, **medians})
    return [{**record, "times": record["steady_rows_per_s"] / records[0]["steady_rows_per_s"]} for record in records]


def fastest(records: Records) -> Record:
    """Choose the round that took least."""
    return min(records, key=lambda record: float(record["seconds"]))


def times(record: Record, records: Records) -> dict[str, float]:
    """Compare the speed with the first record's."""
    return {"times": records[0]["seconds"] / record["seconds"]}


def largest_and_smallest(dims: Sequence[int]) -> tuple[int, int]:
    """Choose two sizes of vectors of a model; one with a single size is truncated to half."""
    return (max(dims), min(dims)) if len(dims) > 1 else (dims[0], dims[0] // 2)


def mixed_lines(rows: int, seed: int = 3) -> list[str]:
    """Sample distinct lines of all sources.

    Raises:
        ConfigError: the sources have fewer.
    """
    lines = {line for name in SOURCES for line in Path(locate(name)).read_text(encoding="utf-8").splitlines() if line}
    if len(lines) < rows:
        raise ConfigError(f"there are {len(lines)} lines, and --rows {rows} was asked for")
    return random.Random(seed).sample(sorted(lines), rows)


def embed_with_ray(model: str, threads: int, changes: dict[str, Any], lines: list[str]) -> Record:
    """Measure our job with one actor a thread, and single texts."""
    pool = {"min_size": threads, "max_size": threads, "cpus": 0.8, "threads": 1}
    record = in_fresh_process(run_job, {"model": model, "pool": pool, **changes}, lines)
    return {**record, **in_fresh_process(run_single_texts, model, threads, changes.get("precision", "auto"), lines)}


def run_job(values: dict[str, Any], lines: list[str]) -> Record:
    """Run an embedding job over the lines."""
    with tempfile.TemporaryDirectory() as folder:
        settings = EmbedSettings.model_validate({**values, "inputs": [write_lines(folder, lines)]})
        manifest = embed_corpus(settings, f"{folder}/out")
        steady = steady_speed(Path(folder) / "out" / "vectors", settings.block_rows)
    assert manifest.work, summary(manifest)
    return {
        "steady_rows_per_s": steady,
        "seconds": manifest.work.seconds,
        "tokens_per_s": manifest.work.tokens_per_s,
        "padding": manifest.padding_share,
        "busy": manifest.work.busy_share,
    }


def run_single_texts(model: str, threads: int, precision: Precision, lines: list[str]) -> Record:
    """Embed one text at a time, as a server does for its only client."""
    torch.set_num_threads(threads)
    encoder = load_encoder(model, "cpu", precise(precision, "cpu"))
    tokenizing = encoder.tokenizing()
    assert tokenizing

    def embed(line: str) -> object:
        ids = [np.array(row, np.int32) for row in tokenizing([line])]
        return encoder.encode_tokens(ids, encoder.dims[:1])

    return {"one_ms": single_text_ms(embed, lines)}


def run_plain_loop(values: dict[str, Any], lines: list[str]) -> Record:
    """Embed and write the job's chunks one after the other with one thread; reading and tokenising come before."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_lines(folder, lines)
        settings = EmbedSettings.model_validate({**values, "inputs": [path]})
        plan = Plan(settings, Replicas(threads=1), Pool())
        opened = plan.open(settings.precision)  # type: ignore[arg-type]
        encoder = opened.encoder
        writer = ChunkWriter(opened, (VectorColumn(dim=encoder.dims[0]),), {}, open_store(f"{folder}/out"))
        encoder.encode_tokens([np.ones(8, np.int32)], encoder.dims[:1])
        [file] = list_inputs(settings)
        chunks = [
            chunk
            for span in plan_spans(file, scan(file, plan.columns, settings.block_rows), settings.block_rows, ())
            for chunk in read_chunks(span, settings, opened.tokenizing)
        ]
        began = time.perf_counter()
        for chunk in chunks:
            writer.embed(chunk, "plain")
        seconds = time.perf_counter() - began
        steady = steady_speed(Path(folder) / "out/vectors", settings.block_rows)
    return {"seconds": seconds, "steady_rows_per_s": steady}


def write_lines(folder: str, lines: Sequence[str]) -> str:
    """Write the corpus and return its path."""
    corpus = Path(folder) / "lines.txt"
    corpus.write_text("\n".join(lines), encoding="utf-8")
    return str(corpus)


def steady_speed(folder: Path, chunk_rows: int) -> float:
    """Return the rows/s while the middle half of the files was written, when all actors work."""
    written = sorted(path.stat().st_mtime_ns for path in folder.glob("*.parquet"))
    first, last = len(written) // 4, len(written) - 1 - len(written) // 4
    return (last - first) * chunk_rows / (written[last] - written[first]) * 1e9 if last > first else 0.0


WAY_COLUMNS = "way rows seconds rows_per_s tokens_per_s padding busy one_ms times"
EMBED = Benchmark(
    "embed",
    "embedding against sentence-transformers and ONNX Runtime",
    (PRECISION, MODEL, rows_option(50_000), rounds_option(), THREADS),
    benchmark_embed,
    WAY_COLUMNS,
)
EMBED_COLUMNS = Benchmark(
    "embed-columns",
    "one column of vectors against six in one pass",
    (MODEL, rows_option(20_000), rounds_option(), THREADS),
    benchmark_columns,
    WAY_COLUMNS,
)
EMBED_SCALE = Benchmark(
    "embed-scale",
    "one actor, two, and the same work in a plain loop",
    (
        Option("--precision", "float32", "precision of every side", choices=("float32", "bfloat16")),
        MODEL,
        rows_option(8_192),
        rounds_option(),
    ),
    benchmark_scale,
    "way rows seconds steady_rows_per_s busy times",
)
