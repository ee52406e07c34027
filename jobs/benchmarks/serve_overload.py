"""A server that gets ten times the requests it can answer: its answers, delays and memory, and its speed afterwards."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Sequence

from benchmarks.harness import MODEL, THREADS, Benchmark, Option, Record, Records
from benchmarks.http_clients import BUSY, OK, Address, closed_loop, open_loop
from benchmarks.serve import LINES, short_lines
from benchmarks.servers import PeakMemory, our_server
from jasper_ray.serving.settings import Limits
from jasper_ray.vectors import Dtype

TIMES = 10
CALM_S = 5.0
"""Seconds of each measurement of speed before and after, and seconds of rest after the flood."""
CLIENTS = 32
"""Clients before and after, enough to keep the model busy."""
MOST_OPEN = 8192
"""Limit of connections, unless the system allows fewer; further requests are not sent."""


def benchmark_overload(model: str, threads: int, seconds: float, precision: Dtype, inputs: int) -> Records:
    """Flood our server; `bound_s` is its promise: the longest queue and one request."""
    lines = short_lines(LINES)
    with our_server(model, "--precision", precision, "--threads", str(threads), threads=threads) as running:
        requests = running.requests(lines, inputs)
        record = overload(running.address, running.pid, requests, seconds, Limits().queue_s)
    return [{"precision": precision, **record}]


def overload(
    address: Address, pid: int, requests: Sequence[bytes], seconds: float, queue_s: float, calm_s: float = CALM_S
) -> Record:
    """Measure a running server before, during and after a flood of `seconds`.

    Requests that still wait when the flood ends are in no count.
    """
    lone = asyncio.run(closed_loop(address, requests, 1, calm_s, calm_s / 4))
    before = asyncio.run(closed_loop(address, requests, CLIENTS, calm_s, calm_s / 2))
    with PeakMemory(pid) as memory:
        flood = asyncio.run(open_loop(address, requests, TIMES * before.per_s, seconds, most_open()))
    after = asyncio.run(closed_loop(address, requests, CLIENTS, calm_s, calm_s))
    return {
        "before_per_s": before.per_s,
        "asked_per_s": TIMES * before.per_s,
        "sent": flood.sent,
        "unsent": flood.unsent,
        "answered": flood.statuses[OK],
        "answered_per_s": flood.per_s,
        "refused": flood.statuses[BUSY],
        "statuses": {str(status): count for status, count in sorted(flood.statuses.items())},
        "p50_s": flood.percentile(0.5),
        "p99_s": flood.percentile(0.99),
        "refused_p99_ms": 1000 * flood.percentile(0.99, BUSY),
        "other": sum(tally.unexpected for tally in (lone, before, flood, after)),
        "bound_s": queue_s + lone.percentile(0.99),
        "before_mib": memory.before_mib,
        "peak_mib": memory.peak_mib,
        "all_mib": memory.all_mib,
        "after_per_s": after.per_s,
        "after_share": after.per_s / before.per_s if before.per_s else None,
    }


def most_open() -> int:
    """Raise the system's limit of open files, and return the connections that may be open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_OPEN + 256 if hard == resource.RLIM_INFINITY else min(MOST_OPEN + 256, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most - 256


BENCHMARK = Benchmark(
    "serve-overload",
    "our server under ten times its load: answers, delay, memory",
    (
        Option("--seconds", 60.0, "seconds of overload"),
        Option("--inputs", 8, "texts of a request"),
        Option("--precision", "float32", "precision of the server", choices=("float32", "bfloat16")),
        MODEL,
        THREADS,
    ),
    benchmark_overload,
    "precision before_per_s asked_per_s sent unsent answered answered_per_s refused other p50_s p99_s bound_s "
    "refused_p99_ms before_mib peak_mib all_mib after_per_s after_share",
)
