"""A server that is asked ten times what it can do: what it answers, how long that takes, what memory it holds, and
how fast it is once they have gone."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Sequence
from typing import Any

from benchmarks.load import OK, Address, Flood, Tally, closed_loop, open_loop
from benchmarks.serve import LINES, Bench, short_lines
from benchmarks.servers import PeakMemory
from benchmarks.table import table
from jasper_ray.serving.settings import Limits
from jasper_ray.vectors import Dtype

Records = list[dict[str, Any]]

TIMES = 10
CALM_S = 5.0
"""Seconds in which the speed before and after is taken; and after how many it must be what it was."""
CLIENTS = 32
"""Who ask before and after; enough of them to keep the model busy."""
MOST_OPEN = 8192
"""Connections at most, fewer where the system allows fewer; a request for which there is none is not sent."""
WELCOME = (OK, 429)
COLUMNS = (
    "precision",
    "before_per_s",
    "asked_per_s",
    "sent",
    "unsent",
    "answered",
    "answered_per_s",
    "refused",
    "other",
    "p50_s",
    "p99_s",
    "bound_s",
    "refused_p99_ms",
    "before_mib",
    "peak_mib",
    "all_mib",
    "after_per_s",
    "after_share",
)


def benchmark_overload(bench: Bench, precision: Dtype, inputs: int) -> Records:
    """One record. `bound_s` is what the server promises: the work that may wait, and one request."""
    lines = short_lines(LINES)
    with bench.ours(precision) as running:
        requests = running.requests(lines, inputs)
        record = overload(running.address, running.pid, requests, bench.seconds, Limits().queue_s)
    return [{"precision": precision, **record}]


def overload(
    address: Address, pid: int, requests: Sequence[bytes], seconds: float, queue_s: float, calm_s: float = CALM_S
) -> dict[str, Any]:
    """What a running server does for so many seconds, and shortly before and after."""
    lone = asyncio.run(closed_loop(address, requests, 1, calm_s, calm_s / 4))
    before = asyncio.run(closed_loop(address, requests, CLIENTS, calm_s, calm_s / 2))
    with PeakMemory(pid) as memory:
        flood = asyncio.run(open_loop(address, requests, TIMES * before.per_s, seconds, most_open()))
    after = asyncio.run(closed_loop(address, requests, CLIENTS, calm_s, calm_s))
    return {
        "before_per_s": before.per_s,
        "asked_per_s": TIMES * before.per_s,
        **told(flood),
        "other": sum(unwelcome(tally) for tally in (lone, before, flood, after)),
        "bound_s": queue_s + lone.percentile(0.99),
        "before_mib": memory.before_mib,
        "peak_mib": memory.peak_mib,
        "all_mib": memory.all_mib,
        "after_per_s": after.per_s,
        "after_share": after.per_s / before.per_s if before.per_s else None,
    }


def told(flood: Flood) -> dict[str, Any]:
    """What became of the flood's requests; those that still waited when their clients left are in neither count."""
    return {
        "sent": flood.sent,
        "unsent": flood.unsent,
        "answered": flood.statuses[OK],
        "answered_per_s": flood.per_s,
        "refused": flood.statuses[429],
        "statuses": {str(status): count for status, count in sorted(flood.statuses.items())},
        "p50_s": flood.percentile(0.5),
        "p99_s": flood.percentile(0.99),
        "refused_p99_ms": 1000 * flood.percentile(0.99, 429),
    }


def unwelcome(tally: Tally) -> int:
    """Replies that are neither 200 nor 429, lost connections among them."""
    return sum(count for status, count in tally.statuses.items() if status not in WELCOME)


def most_open() -> int:
    """Connections that may be open at once, after asking the system for as many as it gives."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_OPEN + 256 if hard == resource.RLIM_INFINITY else min(MOST_OPEN + 256, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most - 256


def render(records: Records) -> str:
    """The record as a table."""
    return table(records, COLUMNS)
