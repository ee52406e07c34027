"""Serving at a recipe's true student size: one replica on one device with few clients and with many.

The result is compared with the same model without a server. The server starts as users start it, with a student of
random weights where the recipe declares an architecture, so nothing is downloaded. Clients ask for base64, as OpenAI's
do, and let the server truncate texts that are too long.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.device import check_device, check_tokens, without_download
from benchmarks.device_workload import Workload, stand_in
from benchmarks.embed_device import embed_by_us
from benchmarks.harness import DEVICE, TOKENS, Benchmark, Option, Record, Records, in_fresh_process
from benchmarks.http_clients import BUSY, Tally, closed_loop
from benchmarks.servers import Counts, Running, Samples, counts_on, gpu_share, model_figures, our_server, sampled
from jasper_ray.config import ConfigError
from jasper_ray.models.student import meta_student
from jasper_ray.recipe import Recipe, load_recipe
from jasper_ray.serving.settings import Limits

logger = logging.getLogger(__name__)

ROWS = {"cuda": 512, "cpu": 32}
"""Texts of full length; the others have as many tokens in total."""
WARM_S = 2.0
"""Least seconds of load before counting."""
ROUNDS = 8
"""Answers that every client should get within a point, which lasts longer if necessary."""


@dataclass(frozen=True)
class Load:
    """The load of the server."""

    clients: tuple[int, ...]
    """Clients at once, at each point."""
    inputs: int
    """Texts of a request."""
    seconds: float
    """Least seconds of a point."""

    def check(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: no request could be sent.
        """
        if not self.clients or min(self.clients) < 1:
            raise ConfigError(f"--clients is {','.join(map(str, self.clients))}, expected numbers such as 1,4,16")
        if not 1 <= self.inputs <= Limits().inputs:
            raise ConfigError(f"--inputs is {self.inputs}, but a request has 1 to {Limits().inputs} texts; change it")
        if not self.seconds > 0:
            raise ConfigError(f"--seconds is {self.seconds:g}, but every point takes some time; raise it")


def benchmark_serve_device(
    recipe: Recipe, tokens: int | None, device: str, clients: tuple[int, ...], inputs: int, seconds: float
) -> Records:
    """Measure each workload and number of clients, texts of natural length first.

    Args:
        tokens: tokens of a text of full length, and the longest of the others; None: the student's max_length.

    Raises:
        ConfigError: there is no GPU, no text can have these sizes, or the server does not start.
    """
    load = Load(clients, inputs, seconds)
    check_device(device)
    load.check()
    settings = without_download(recipe.student)
    tokens = settings.max_length if tokens is None else tokens
    check_tokens(meta_student(settings), tokens)
    with stand_in(settings, tokens, ROWS[device]) as (folder, workloads):
        logger.info("starting the server")
        with our_server(folder, *(["--gpus", "1"] if device == "cuda" else [])) as running:
            records = [record for work in workloads[::-1] for record in served(running, work, device, load)]
        precision = records[0]["precision"]
        plain = {work.name: without_server(work, folder, device, precision) for work in workloads[::-1]}
    return [{**record, **against_plain(record, plain[record["texts"]])} for record in records]


def served(running: Running, workload: Workload, device: str, load: Load) -> Iterator[Record]:
    """Measure each point of a workload."""
    texts = workload.texts * -(-load.inputs // len(workload.texts))  # enough for a request
    requests = running.requests(texts, load.inputs, "base64", truncate=True)
    tokens = load.inputs * workload.tokens / len(workload.texts)
    precision = str(json.loads(running.fetch("/info"))["model_dtype"])
    for clients in load.clients:
        round_s = min(clients * tokens / counts(running).rate, Limits().queue_s)  # longer waits are refused
        record = measure(running, requests, clients, load.seconds, round_s, on_gpu=device == "cuda")
        yield {"texts": workload.name, "inputs": load.inputs, "precision": precision, **record}
        logger.info("%s, %d clients: %.1f requests/s", workload.name, clients, record["requests_per_s"])


def counts(running: Running) -> Counts:
    """Read the server's counters."""
    return counts_on(running.fetch("/metrics").decode())


def measure(
    running: Running, requests: Sequence[bytes], clients: int, seconds: float, round_s: float, on_gpu: bool
) -> Record:
    """Measure one point; `load_share` is the clients' share of a CPU, `refused` counts the answers 429."""
    warm_s, seconds = max(WARM_S, round_s), max(seconds, ROUNDS * round_s)
    used = time.process_time()
    tally, samples, shares = asyncio.run(ask_and_sample(running, requests, clients, seconds, warm_s, on_gpu))
    return {
        "clients": clients,
        "seconds": seconds,
        "requests_per_s": tally.per_s,
        **model_figures(samples),
        "p50_ms": 1000 * tally.percentile(0.5),
        "p99_ms": 1000 * tally.percentile(0.99),
        "refused": tally.statuses[BUSY],
        "failed": tally.unexpected,
        "gpu_busy": fmean(shares) if shares else None,
        "load_share": (time.process_time() - used) / (seconds + warm_s),
    }


async def ask_and_sample(
    running: Running, requests: Sequence[bytes], clients: int, seconds: float, warm_s: float, on_gpu: bool
) -> tuple[Tally, Samples[Counts], list[float]]:
    """Run the clients, and sample the server's counters and the GPU's share within the counted time."""
    async with (
        sampled(lambda: counts(running)) as samples,
        sampled(lambda: gpu_share() if on_gpu else None) as shares,
    ):
        tally = await closed_loop(running.address, requests, clients, seconds, warm_s)
    counted = [(at_s, sample) for at_s, sample in samples if tally.began_s <= at_s <= tally.ended_s]
    timely = [share for at_s, share in shares if tally.began_s <= at_s <= tally.ended_s]
    return tally, counted, [share for share in timely if share is not None]


def without_server(workload: Workload, folder: str, device: str, precision: str) -> float:
    """Return the model's tokens/s without a server, in the server's precision."""
    seconds = in_fresh_process(embed_by_us, folder, workload.texts, device, precision)["seconds"]
    logger.info("%s, without a server: %s tokens/s", workload.name, f"{workload.tokens / seconds:,.0f}")
    return float(workload.tokens / seconds)


def against_plain(record: Record, plain: float) -> dict[str, float | None]:
    """Compare the server's tokens/s with the model's."""
    tokens_per_s = record["tokens_per_s"]
    return {"plain_tokens_per_s": plain, "share": None if tokens_per_s is None else tokens_per_s / plain}


def numbers(written: str) -> tuple[int, ...]:
    """Read `1,4,16`."""
    return tuple(int(number) for number in written.split(","))


BENCHMARK = Benchmark(
    "serve-device",
    "our server with a recipe's student on one device, against the model alone",
    (
        Option("--recipe", "jasper-2b", "recipe with the student", resolve=load_recipe),
        TOKENS,
        Option("--inputs", 1, "texts of a request"),
        Option("--clients", "1,4,16,64,256", "clients at once, at each point", type=numbers, metavar="N,N"),
        Option("--seconds", 8.0, "least seconds of a point"),
        DEVICE,
    ),
    benchmark_serve_device,
    "texts clients inputs precision requests_per_s tokens_per_s p50_ms p99_ms refused failed batches_at_once "
    "gpu_busy batch_tokens load_share plain_tokens_per_s share",
)
