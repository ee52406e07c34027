"""Serving, ours and Infinity in turn: the same weights, texts, clients and threads, one replica each.

Our server starts as users start it, so its figures include Ray Serve and its proxy. Both answer floats as JSON.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.embed import PRECISION, mixed_lines, precisions
from benchmarks.embed_device import embed_chunk
from benchmarks.harness import MODEL, THREADS, Benchmark, Option, Record, Records, in_fresh_process, rounds_option
from benchmarks.http_clients import closed_loop
from benchmarks.infinity import infinity_program, infinity_server
from benchmarks.servers import Running, our_server
from jasper_ray.assets import locate
from jasper_ray.config import ConfigError
from jasper_ray.encoders import load_encoder
from jasper_ray.encoders.token_budget import USUAL_TOKENS, TokenBudget
from jasper_ray.vectors import Dtype, least_cosine

LINES = 4096
CHARS = 120
"""Longest line, some 30 tokens: short texts, which no model truncates."""
COMPARED = 32
"""Lines whose vectors are compared before measuring."""
LEAST_COSINE = 0.999
"""Smallest accepted cosine of a server's vectors with the model's own in float32."""
WARM_S = 2.0
"""Seconds of load before counting, at every point."""


class Point(NamedTuple):
    """A kind of load."""

    clients: int
    inputs: int
    """Texts of a request."""
    encoding: str = "float"


POINTS = (Point(1, 1), Point(8, 1), Point(32, 1), Point(64, 1), Point(8, 32), Point(8, 32, "base64"))
WIDE = Point(8, 32)
"""The load at which the server is compared with the model alone."""


def benchmark_serve(
    model: str,
    threads: int,
    seconds: float,
    precision: str,
    rounds: int,
    peer_venv: Path | None = None,
    peer_batch: int = 32,
) -> Records:
    """Measure each side, precision and point, and keep the median round by requests/s; and the model alone.

    Ours have `times`, their requests/s relative to Infinity's in the same precision, and `times_float32`, relative to
    Infinity's in float32, its default on CPUs.

    Raises:
        ConfigError: a server does not start, or its vectors are not the model's.
    """
    lines = short_lines(LINES)
    exact_ND = in_fresh_process(run_own, model, lines[:COMPARED])
    program = infinity_program(peer_venv)  # before anything is timed: it may have to be installed
    path = locate(model)
    sides: dict[str, Callable[[Dtype], AbstractContextManager[Running]]] = {
        "ours": lambda dtype: our_server(model, "--precision", dtype, "--threads", str(threads), threads=threads),
        "Infinity": lambda dtype: infinity_server(program, path, dtype, peer_batch, threads),
    }
    measured: dict[tuple[str, str, Point], Records] = {}
    lone: Records = []
    for _ in range(rounds):
        for dtype in precisions(precision):
            for side, start in sides.items():
                with start(dtype) as running:
                    check_vectors(f"{side} in {dtype}", running.vectors(lines[:COMPARED]), exact_ND)
                    for point in POINTS:
                        record = measure(running, lines, point, seconds)
                        measured.setdefault((side, dtype, point), []).append(record)
                        print(f"{side} {dtype}", record, flush=True)  # each takes minutes
                    if side == "ours":  # while the server idles: a machine's speed changes within minutes
                        speeds = in_fresh_process(run_plain, model, lines, threads, dtype)
                        served = measured[side, dtype, WIDE][-1]["texts_per_s"]
                        lone += [against_plain(f"{way} {dtype}", speed, served) for way, speed in speeds.items()]
    best = {key: middle(records) for key, records in measured.items()}
    ways = dict.fromkeys(record["way"] for record in lone)
    return [*with_ratios(best), *(median([record for record in lone if record["way"] == way]) for way in ways)]


def short_lines(rows: int) -> list[str]:
    """Sample lines of at most `CHARS` characters from the sources of the embedding benchmarks."""
    return [line for line in mixed_lines(2 * rows) if len(line) <= CHARS][:rows]


def run_own(model: str, lines: list[str]) -> np.ndarray:
    """Embed with the model itself in float32."""
    return load_encoder(model, "cpu").encode(lines)


def check_vectors(side: str, vectors_ND: np.ndarray, exact_ND: np.ndarray) -> None:
    """Check that a server computes the model's vectors.

    Raises:
        ConfigError: its vectors have other sizes or directions.
    """
    if vectors_ND.shape != exact_ND.shape:
        raise ConfigError(f"{side} gives vectors {vectors_ND.shape}, expected {exact_ND.shape}; is it the same model?")
    cosine = least_cosine(vectors_ND, exact_ND)
    if not cosine >= LEAST_COSINE:
        raise ConfigError(f"{side} has a cosine of {cosine:.5f} with the model's vectors, expected {LEAST_COSINE}")


def measure(running: Running, lines: Sequence[str], point: Point, seconds: float) -> Record:
    """Measure one server at one point; `load_share` is the clients' share of a CPU."""
    requests = running.requests(lines, point.inputs, point.encoding)
    used = time.process_time()
    tally = asyncio.run(closed_loop(running.address, requests, point.clients, seconds, WARM_S))
    return {
        **point._asdict(),
        "requests_per_s": tally.per_s,
        "p50_ms": 1000 * tally.percentile(0.5),
        "p99_ms": 1000 * tally.percentile(0.99),
        "failed": tally.failed,
        "load_share": (time.process_time() - used) / (seconds + WARM_S),
        "texts_per_s": tally.per_s * point.inputs,
    }


def middle(records: Records) -> Record:
    """Choose the record of median speed, with the failures of all."""
    ordered = sorted(records, key=lambda record: float(record["requests_per_s"]))
    return {**ordered[(len(ordered) - 1) // 2], "failed": sum(record["failed"] for record in records)}


def with_ratios(best: dict[tuple[str, str, Point], Record]) -> Iterator[Record]:
    """Add ours' ratios to the records."""
    for (side, precision, point), record in best.items():
        ratios = {}
        if side == "ours":
            for name, of in (("times", precision), ("times_float32", "float32")):
                theirs = best.get(("Infinity", of, point), {}).get("requests_per_s")
                ratios[name] = record["requests_per_s"] / theirs if theirs else None
        yield {"way": f"{side} {precision}", **record, **ratios}


def against_plain(way: str, texts_per_s: float, served: float) -> Record:
    """Record the model alone; `overhead` is the server's time for the same texts relative to the model's."""
    return {"way": way, "texts_per_s": texts_per_s, "overhead": texts_per_s / served if served else math.inf}


def median(records: Records) -> Record:
    """Take the median of a way's figures over the rounds."""
    figures = ("texts_per_s", "overhead")
    return {**records[0], **{name: statistics.median(record[name] for record in records) for name in figures}}


def run_plain(model: str, lines: list[str], threads: int, precision: Dtype) -> dict[str, float]:
    """Measure texts/s without a server: `encode`, and all lines sorted by length in the server's token batches.

    A server never has all lines at once, so the second is the bound of its speed.
    """
    torch.set_num_threads(threads)
    encoder = load_encoder(model, "cpu", precision)
    speeds = {"encode": speed(encoder.encode, lines)}
    if encoder.tokenizing():
        budget = TokenBudget(USUAL_TOKENS["cpu"])
        speeds["sorted batches"] = speed(lambda texts: embed_chunk(texts, encoder, budget), lines)
    return speeds


def speed(encode: Callable[[list[str]], object], lines: list[str]) -> float:
    """Return the texts/s after a warm-up."""
    encode(lines[: len(lines) // 8])
    began = time.perf_counter()
    encode(lines)
    return len(lines) / (time.perf_counter() - began)


BENCHMARK = Benchmark(
    "serve",
    "our server against Infinity's, and the model alone",
    (
        Option("--seconds", 8.0, "seconds of every point"),
        rounds_option(),
        PRECISION,
        Option("--peer-venv", None, "environment with infinity_emb; unset: made once", type=Path, metavar="DIR"),
        Option("--peer-batch", 32, "rows of Infinity's batches; 32 is its own default"),
        MODEL,
        THREADS,
    ),
    benchmark_serve,
    "way clients inputs encoding requests_per_s p50_ms p99_ms failed load_share times times_float32 "
    "texts_per_s overhead",
)
