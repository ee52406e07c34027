"""Servers in processes of their own: start, health, requests, memory, metrics, the GPU's load, stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness import Sampler, resident_mib
from benchmarks.http_clients import Address, post
from jasper_ray.config import ConfigError
from jasper_ray.serving.ray_serve import free_ports

NAME = "model"
"""The name of the model in requests."""
START_S = 300.0
STOP_S = 60.0
SHOWN = 2_000
"""Characters of a server's output that an error shows."""
REPLICA = "ray::ServeReplica"
"""Start of Ray's title of the processes that hold the model."""
EVERY_S = 0.2
"""Seconds between two samples of metrics."""
PATIENCE_S = 60.0
"""Longest time of one sample, at an overloaded server."""


@dataclass(frozen=True)
class Running:
    """A healthy server."""

    pid: int
    address: Address
    path: str
    """Path of OpenAI's requests for vectors."""
    model: str
    """Name of the model in requests."""

    def requests(self, lines: Sequence[str], inputs: int, encoding: str = "float", **more: object) -> list[bytes]:
        """Build requests with `inputs` texts each, and further fields."""
        return [
            post(self.address, self.path, {**self.body(lines[start : start + inputs], encoding), **more})
            for start in range(0, len(lines) - inputs + 1, inputs)
        ]

    def body(self, texts: Sequence[str], encoding: str = "float") -> dict[str, object]:
        """Build the body that OpenAI's clients send."""
        return {"model": self.model, "input": list(texts), "encoding_format": encoding}

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Return the server's vectors, float32 `[N, D]`."""
        data = json.loads(self.fetch(self.path, json.dumps(self.body(texts)).encode()))["data"]
        return np.array([row["embedding"] for row in sorted(data, key=lambda row: row["index"])], np.float32)

    def fetch(self, path: str, body: bytes | None = None) -> bytes:
        """Get a path, or post a body to it."""
        url = f"http://{self.address.host}:{self.address.port}{path}"
        request = urllib.request.Request(url, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            content: bytes = answer.read()
        return content


def our_server(model: str, *options: str, threads: int | None = None) -> AbstractContextManager[Running]:
    """Start `jobs/serve.py`, with Ray, as users do."""
    port = free_ports(1)[0]
    program = Path(__file__).parents[1] / "serve.py"
    command = [sys.executable, str(program), "--model", model, "--name", NAME, "--port", str(port), *options]
    return server(command, "/v1/embeddings", NAME, port, {"OMP_NUM_THREADS": str(threads)} if threads else {})


@contextmanager
def server(
    command: Sequence[str], path: str, model: str, port: int, environment: Mapping[str, str]
) -> Iterator[Running]:
    """Start a server, wait until `/health` answers, and stop it at the end of the block.

    Raises:
        ConfigError: it ends or is not healthy within minutes; with the end of its output.
    """
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the server
        )
        try:
            wait_until_healthy(process, port, output.fileno())
            yield Running(process.pid, Address(port), path, model)
        finally:
            stop(process)


def wait_until_healthy(process: subprocess.Popen[bytes], port: int, output: int) -> None:
    """Return when the server is healthy."""
    deadline = time.monotonic() + START_S
    while not healthy(port):
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            lines = os.pread(output, 1 << 24, 0).decode(errors="replace")[-SHOWN:]
            fault = f"ended with {process.returncode}" if ended else f"was not up after {START_S:.0f} s"
            raise ConfigError(f"the server {fault}: {process.args!r}\n{lines}")
        time.sleep(0.2)


def healthy(port: int) -> bool:
    """Ask for `/health`."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM, and SIGKILL a minute later."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class PeakMemory(Sampler):
    """Peak MiB of a server's processes: those with the model, and all. Each counts the pages it shares."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.pid = pid
        self.before_mib, self.all_mib = memory(pid)
        self.peak_mib = self.before_mib

    def sample(self) -> None:
        """Keep the peaks."""
        model, together = memory(self.pid)
        self.peak_mib, self.all_mib = max(self.peak_mib, model), max(self.all_mib, together)


def memory(pid: int) -> tuple[float, float]:
    """Return the MiB of the processes with the model, and of all; without replicas the server itself has the model."""
    held: dict[int, float] = {}
    replicas: list[int] = []
    for process in family(pid):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            held[process.pid] = resident_mib(process)
            if " ".join(process.cmdline()).startswith(REPLICA):
                replicas.append(process.pid)
    return sum(held.get(one, 0.0) for one in replicas or [pid]), sum(held.values())


def family(pid: int) -> list[psutil.Process]:
    """List a process and its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


class Counts(NamedTuple):
    """Counters of a server since its start, of all replicas."""

    batches: float
    tokens: float
    """Tokens through the model, without padding."""
    busy_s: float
    """Seconds of the batches."""
    rate: float
    """Tokens/s that the server expects while the model works."""


def counts_on(page: str) -> Counts:
    """Read the counters on a page of metrics."""
    sums: Counter[str] = Counter()
    for family_ in text_string_to_metric_families(page):
        for sample in family_.samples:
            sums[sample.name] += sample.value  # type: ignore[assignment]  # a Counter adds floats as well
    batch = "jasper_ray_batch"
    rate = sums["jasper_ray_drain_tokens_per_second"]
    return Counts(sums[f"{batch}_seconds_count"], sums[f"{batch}_tokens_total"], sums[f"{batch}_seconds_sum"], rate)


def gpu_share() -> float | None:
    """Ask nvidia-smi for the recent utilisation of the first visible GPU; None without a figure."""
    if not shutil.which("nvidia-smi"):
        return None
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0] or "0"
    command = ["nvidia-smi", f"--id={first}", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return int(answer) / 100 if answer.isdecimal() else None


Sample = TypeVar("Sample")
Samples = list[tuple[float, Sample]]
"""Samples and their times, on the clock of `time.perf_counter`."""


@asynccontextmanager
async def sampled(take: Callable[[], Sample]) -> AsyncIterator[Samples[Sample]]:
    """Take samples in another thread until the block ends."""
    samples: Samples[Sample] = []

    async def keep_sampling() -> None:
        while True:
            sample = await asyncio.to_thread(take)
            samples.append((time.perf_counter(), sample))
            await asyncio.sleep(EVERY_S)

    task = asyncio.create_task(keep_sampling())
    try:
        yield samples
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def model_figures(samples: Sequence[tuple[float, Counts]]) -> dict[str, float | None]:
    """Compute tokens/s, batches at once and tokens of a batch; None if too few batches ended.

    `batches_at_once` is the seconds of all batches divided by the elapsed time: the busy share of a model that embeds
    one batch at a time. A batch counts when it ends and may take seconds, so time runs from one end to another.
    """
    ends = [now for before, now in pairwise(samples) if now[1].batches > before[1].batches]
    if len(ends) < 2:
        return {"tokens_per_s": None, "batches_at_once": None, "batch_tokens": None}
    (began_s, first), (ended_s, last) = ends[0], ends[-1]
    seconds, tokens = ended_s - began_s, last.tokens - first.tokens
    return {
        "tokens_per_s": tokens / seconds,
        "batches_at_once": (last.busy_s - first.busy_s) / seconds,
        "batch_tokens": tokens / (last.batches - first.batches),
    }
