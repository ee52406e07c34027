"""What a server says of its model, and what the driver says of the GPU, while clients ask."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import NamedTuple, TypeVar

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.load import Address

EVERY_S = 0.2
"""Seconds between two looks."""
PATIENCE_S = 60.0
"""How long a look may take, at a server that has much else to do."""

Seen = TypeVar("Seen")
Looks = list[tuple[float, Seen]]
"""What was seen, and when, on the clock of `time.perf_counter`."""


class Counts(NamedTuple):
    """What a server has counted since it was started, all replicas together."""

    batches: float
    tokens: float
    """That went through the model, padding left out."""
    busy_s: float
    """Seconds of these batches."""
    rate: float
    """Tokens a second while the model works, as the server itself expects."""


def counts(address: Address) -> Counts:
    """What the server's page of metrics says now."""
    with urllib.request.urlopen(f"http://{address.host}:{address.port}/metrics", timeout=PATIENCE_S) as answer:
        return counts_on(answer.read().decode())


def counts_on(page: str) -> Counts:
    """What a page of metrics says."""
    sums: Counter[str] = Counter()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            sums[sample.name] += sample.value  # type: ignore[assignment]  # floats add up just as well
    batch = "jasper_ray_batch"
    rate = sums["jasper_ray_drain_tokens_per_second"]
    return Counts(sums[f"{batch}_seconds_count"], sums[f"{batch}_tokens_total"], sums[f"{batch}_seconds_sum"], rate)


def gpu_share() -> float | None:
    """The share of the last moments in which the first GPU that we may use worked, as its driver says; None where that
    is not to be had."""
    if not shutil.which("nvidia-smi"):
        return None
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0] or "0"
    command = ["nvidia-smi", f"--id={first}", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return int(told) / 100 if told.isdecimal() else None


@asynccontextmanager
async def looking(look: Callable[[], Seen]) -> AsyncIterator[Looks[Seen]]:
    """Look again and again until the block ends, in another thread; what was seen is in the list."""
    found: Looks[Seen] = []
    task = asyncio.create_task(keep_looking(look, found))
    try:
        yield found
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def keep_looking(look: Callable[[], Seen], found: Looks[Seen]) -> None:
    while True:
        seen = await asyncio.to_thread(look)
        found.append((time.perf_counter(), seen))
        await asyncio.sleep(EVERY_S)


def model_figures(looks: Sequence[tuple[float, Counts]]) -> dict[str, float | None]:
    """Tokens a second, how many batches were in the model at once, and tokens of a batch; None of too few batches.

    `batches_at_once` is the seconds of all batches in units of the time: the model's busy share where they follow each
    other, and up to as many as a server embeds side by side. A batch counts when it ends, and may take seconds: the
    time is from the end of one to the end of another.
    """
    ends = [now for before, now in pairwise(looks) if now[1].batches > before[1].batches]
    if len(ends) < 2:
        return {"tokens_per_s": None, "batches_at_once": None, "batch_tokens": None}
    (began_s, first), (ended_s, last) = ends[0], ends[-1]
    seconds, tokens = ended_s - began_s, last.tokens - first.tokens
    return {
        "tokens_per_s": tokens / seconds,
        "batches_at_once": (last.busy_s - first.busy_s) / seconds,
        "batch_tokens": tokens / (last.batches - first.batches),
    }
