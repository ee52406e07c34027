"""Serving, ours and Infinity's in turn: the same weights, texts, clients and threads, one replica each.

Ours is started as users start it, and measured with what Ray Serve and its proxy cost. Both answer with floats as JSON.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.embed import mixed_lines
from benchmarks.infinity import NAME, PATH, infinity_command, infinity_environment, infinity_program
from benchmarks.load import closed_loop
from benchmarks.process import in_fresh_process
from benchmarks.servers import Running, server
from benchmarks.table import table
from jasper_ray.assets import locate
from jasper_ray.config import ConfigError
from jasper_ray.encoders import TokenEncoder, load_encoder
from jasper_ray.encoders.token_budget import USUAL_TOKENS, TokenBudget
from jasper_ray.models.tokenizing import Tokenizing
from jasper_ray.serving.flags import free_ports
from jasper_ray.vectors import Dtype, least_cosine

Records = list[dict[str, Any]]
Side = Callable[[Dtype], AbstractContextManager[Running]]
"""Starts a server in a precision."""

LINES = 4096
CHARS = 120
"""Of a line at most, some 30 tokens: short texts, which no model here has to cut."""
COMPARED = 32
"""Lines whose vectors are compared before anything is measured."""
AGREEMENT = 0.999
"""Least cosine of a server's vectors with the model's own in float32."""
WARM_S = 2.0
"""Seconds of load before counting, at every point."""
COLUMNS = (
    "way",
    "clients",
    "inputs",
    "encoding",
    "requests_per_s",
    "p50_ms",
    "p99_ms",
    "failed",
    "load_share",
    "times",
    "times_float32",
    "texts_per_s",
    "overhead",
)


@dataclass(frozen=True)
class Point:
    """How a server is asked."""

    clients: int
    inputs: int
    """Texts of a request."""
    encoding: str = "float"


POINTS = (Point(1, 1), Point(8, 1), Point(32, 1), Point(64, 1), Point(8, 32), Point(8, 32, "base64"))
WIDE = Point(8, 32)
"""Where the server is held against the model alone."""


@dataclass(frozen=True)
class Bench:
    """What both sides are given."""

    model: str
    threads: int
    seconds: float
    program: Path
    """`jobs/serve.py`."""
    peer_venv: Path | None = None
    peer_batch: int = 32

    def ours(self, precision: Dtype) -> AbstractContextManager[Running]:
        """Our server, with Ray."""
        port = free_ports(1)[0]
        command = [sys.executable, str(self.program), "--model", self.model, "--name", NAME, "--port", str(port)]
        command += ["--precision", precision, "--threads", str(self.threads)]
        return server(command, "/v1/embeddings", NAME, port, {"OMP_NUM_THREADS": str(self.threads)})

    def infinity(self, program: Path, precision: Dtype) -> AbstractContextManager[Running]:
        """Infinity's."""
        port = free_ports(1)[0]
        command = infinity_command(program, locate(self.model), port, precision, self.peer_batch)
        return server(command, PATH, NAME, port, infinity_environment(self.threads))


def benchmark_serve(bench: Bench, precisions: Sequence[Dtype], rounds: int) -> Records:
    """A record for each side, precision and point, the median of its rounds by requests/s; and the model alone.

    Ours have `times`, their requests/s in units of Infinity's in the same precision, and `times_float32`, in units of
    Infinity's in float32, its default on processors.

    Raises:
        ConfigError: a server does not start, or its vectors are not the model's.
    """
    lines = short_lines(LINES)
    exact_ND = own_vectors(bench.model, lines[:COMPARED])
    program = infinity_program(bench.peer_venv)  # before anything is timed: it may have to be made
    sides: dict[str, Side] = {"ours": bench.ours, "Infinity": partial(bench.infinity, program)}
    found: dict[tuple[str, str, Point], Records] = {}
    alone: Records = []
    for _ in range(rounds):
        for precision in precisions:
            for side, start in sides.items():
                with start(precision) as running:
                    check_vectors(f"{side} in {precision}", running.vectors(lines[:COMPARED]), exact_ND)
                    for point in POINTS:
                        record = measure(running, lines, point, bench.seconds)
                        found.setdefault((side, precision, point), []).append(record)
                        print(f"{side} {precision}", record, flush=True)  # each takes minutes
                    if side == "ours":  # at once, while the server idles: within minutes a machine's speed changes
                        plain = in_fresh_process(run_plain, bench.model, lines, bench.threads, precision)
                        served = found[side, precision, WIDE][-1]["texts_per_s"]
                        alone += [against_plain(f"{way} {precision}", each, served) for way, each in plain.items()]
    best = {key: middle(records) for key, records in found.items()}
    ways = dict.fromkeys(record["way"] for record in alone)
    return [*with_ratios(best), *(median([record for record in alone if record["way"] == way]) for way in ways)]


def short_lines(rows: int) -> list[str]:
    """Real lines of at most `CHARS` characters, of all the sources that embedding is measured on."""
    return [line for line in mixed_lines(2 * rows) if len(line) <= CHARS][:rows]


def own_vectors(model: str, lines: Sequence[str]) -> np.ndarray:
    """What the model itself makes of them in float32, in a process of its own."""
    found: Any = in_fresh_process(run_own, model, list(lines))  # type: ignore[arg-type]
    return np.asarray(found)


def run_own(model: str, lines: list[str]) -> np.ndarray:
    return load_encoder(model, "cpu").encode(lines)


def check_vectors(what: str, found_ND: np.ndarray, exact_ND: np.ndarray) -> None:
    """Refuse to measure a server that computes something else."""
    if found_ND.shape != exact_ND.shape:
        raise ConfigError(f"{what} gives vectors {found_ND.shape}, expected {exact_ND.shape}; is it the same model?")
    agreement = least_cosine(found_ND, exact_ND)
    if not agreement >= AGREEMENT:
        raise ConfigError(f"{what} has a cosine of {agreement:.5f} with the model's vectors, expected {AGREEMENT}")


def measure(running: Running, lines: Sequence[str], point: Point, seconds: float) -> dict[str, Any]:
    """One server at one point. `load_share` is what the clients take of a processor."""
    requests = running.requests(lines, point.inputs, point.encoding)
    used = time.process_time()
    tally = asyncio.run(closed_loop(running.address, requests, point.clients, seconds, WARM_S))
    return {
        "clients": point.clients,
        "inputs": point.inputs,
        "encoding": point.encoding,
        "requests_per_s": tally.per_s,
        "p50_ms": 1000 * tally.percentile(0.5),
        "p99_ms": 1000 * tally.percentile(0.99),
        "failed": tally.failed,
        "load_share": (time.process_time() - used) / (seconds + WARM_S),
        "texts_per_s": tally.per_s * point.inputs,
    }


def middle(records: Records) -> dict[str, Any]:
    """The record of median speed; its failures are those of all."""
    ordered = sorted(records, key=lambda record: record["requests_per_s"])
    return {**ordered[(len(ordered) - 1) // 2], "failed": sum(record["failed"] for record in records)}


def with_ratios(best: dict[tuple[str, str, Point], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """All records, ours with their ratios."""
    for (side, precision, point), record in best.items():
        ratios = {}
        if side == "ours":
            for name, of in (("times", precision), ("times_float32", "float32")):
                theirs = best.get(("Infinity", of, point), {}).get("requests_per_s")
                ratios[name] = record["requests_per_s"] / theirs if theirs else None
        yield {"way": f"{side} {precision}", **record, **ratios}


def against_plain(way: str, texts_per_s: float, served: float) -> dict[str, Any]:
    """The model alone, and as `overhead` the server's seconds for the same texts in units of the model's."""
    return {"way": way, "texts_per_s": texts_per_s, "overhead": texts_per_s / served if served else math.inf}


def median(records: Records) -> dict[str, Any]:
    """One way's figures over all rounds."""
    figures = ("texts_per_s", "overhead")
    return {**records[0], **{name: statistics.median(record[name] for record in records) for name in figures}}


def run_plain(model: str, lines: list[str], threads: int, precision: Dtype) -> dict[str, float]:
    """Texts a second without any server: `encode`, and, where the model takes tokens, all lines sorted by length in
    batches of as many tokens as the server's. No server has all lines at once: that is the bound of what one can do."""
    torch.set_num_threads(threads)
    encoder = load_encoder(model, "cpu", precision)
    tokenizing = encoder.tokenizing()
    found = {"encode": speed(encoder.encode, lines)}
    if tokenizing:
        found["sorted batches"] = speed(partial(in_batches, encoder, tokenizing), lines)
    return found


def in_batches(encoder: TokenEncoder, tokenizing: Tokenizing, lines: list[str]) -> None:
    """The lines as tokens through the model, sorted by length."""
    ids = [np.asarray(row, np.int32) for row in tokenizing(lines)]
    TokenBudget(USUAL_TOKENS["cpu"]).encode(lambda batch: encoder.encode_tokens(batch, encoder.dims[:1]), ids)


def speed(encode: Callable[[list[str]], object], lines: list[str]) -> float:
    """Texts a second, after some to warm up."""
    encode(lines[: len(lines) // 8])
    began = time.perf_counter()
    encode(lines)
    return len(lines) / (time.perf_counter() - began)


def render(records: Records) -> str:
    """The records as a table."""
    return table(records, COLUMNS)
