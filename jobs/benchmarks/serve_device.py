"""Serving at a recipe's true student size: what one replica on one device answers to few clients and to many, and its
share of what the same model does without a server.

The server is started as users start it, with a student of random weights where the recipe declares an architecture, so
that nothing is downloaded. Clients ask as OpenAI's do, for base64, and have texts cut that are too long.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.device_work import Work
from benchmarks.embed_device import check_device, ours, stand_in
from benchmarks.load import Tally, closed_loop
from benchmarks.overload import unwelcome
from benchmarks.process import in_fresh_process
from benchmarks.servers import Running, server
from benchmarks.table import table
from benchmarks.train import check_tokens, without_download
from benchmarks.watch import Counts, Looks, counts, gpu_share, looking, model_figures
from jasper_ray.config import ConfigError
from jasper_ray.models.student import meta_student
from jasper_ray.recipe import Recipe
from jasper_ray.serving.flags import free_ports
from jasper_ray.serving.settings import Limits

Records = list[dict[str, Any]]

logger = logging.getLogger(__name__)

NAME = "student"
"""What clients call the model."""
ROWS = {"cuda": 512, "cpu": 32}
"""Texts of full length; of the others there are as many as have the same number of tokens."""
WARM_S = 2.0
"""Seconds of load before counting, at least."""
ROUNDS = 8
"""How often every client is to be answered within a point, which lasts longer where that takes longer."""
COLUMNS = (
    "texts",
    "clients",
    "inputs",
    "precision",
    "requests_per_s",
    "tokens_per_s",
    "p50_ms",
    "p99_ms",
    "refused",
    "failed",
    "batches_at_once",
    "gpu_busy",
    "batch_tokens",
    "load_share",
    "plain_tokens_per_s",
    "share",
)


@dataclass(frozen=True)
class Asking:
    """How a server is asked."""

    clients: tuple[int, ...]
    """How many ask at once, at each point."""
    inputs: int
    """Texts of a request."""
    seconds: float
    """Of a point, at least."""

    def check(self) -> None:
        """Refuse what asks nothing."""
        if not self.clients or min(self.clients) < 1:
            raise ConfigError(f"--clients is {','.join(map(str, self.clients))}, expected numbers such as 1,4,16")
        if not 1 <= self.inputs <= Limits().inputs:
            raise ConfigError(f"--inputs is {self.inputs}, but a request has 1 to {Limits().inputs} texts; change it")
        if not self.seconds > 0:
            raise ConfigError(f"--seconds is {self.seconds:g}, but every point takes some time; raise it")


def benchmark_serve_device(recipe: Recipe, tokens: int | None, device: str, asking: Asking, program: Path) -> Records:
    """A record for each kind of texts and number of clients, texts of natural length first.

    Args:
        tokens: of every text of full length, and of the longest of the others; the student's max_length when None.
        device: "cuda" or "cpu".
        program: `jobs/serve.py`.

    Raises:
        ConfigError: no GPU where one is asked for, sizes that no text can have, or the server does not start.
    """
    check_device(device)
    asking.check()
    settings = without_download(recipe.student)
    tokens = settings.max_length if tokens is None else tokens
    check_tokens(meta_student(settings), tokens)
    with stand_in(settings, tokens, ROWS[device]) as (folder, both):
        works = both[::-1]
        with started(folder, device, program) as running:
            records = [record for work in works for record in served(running, work, device, asking)]
        plain = {work.name: alone(work, folder, device, records[0]["precision"]) for work in works}
    return [{**record, **against(record, plain[record["texts"]])} for record in records]


def started(folder: str, device: str, program: Path) -> AbstractContextManager[Running]:
    """The server, with Ray."""
    logger.info("starting the server")
    port = free_ports(1)[0]
    command = [sys.executable, str(program), "--model", folder, "--name", NAME, "--port", str(port)]
    command += ["--gpus", "1"] if device == "cuda" else []
    return server(command, "/v1/embeddings", NAME, port, {})


def served(running: Running, work: Work, device: str, asking: Asking) -> Iterator[dict[str, Any]]:
    """The record of each point for the same texts."""
    requests = running.requests(enough(work.texts, asking.inputs), asking.inputs, "base64", truncate=True)
    tokens = asking.inputs * work.tokens / len(work.texts)
    precision = precision_of(running)
    for clients in asking.clients:
        round_s = min(clients * tokens / counts(running.address).rate, Limits().queue_s)  # what waits longer is refused
        found = measure(running, requests, clients, asking.seconds, round_s, on_gpu=device == "cuda")
        yield {"texts": work.name, "inputs": asking.inputs, "precision": precision, **found}
        logger.info("%s, %d clients: %.1f requests/s", work.name, clients, found["requests_per_s"])


def enough(texts: Sequence[str], inputs: int) -> list[str]:
    """The texts, again and again, until they fill a request at least."""
    return [*texts] * -(-inputs // len(texts))


def precision_of(running: Running) -> str:
    """What the server has chosen to compute in."""
    with urllib.request.urlopen(f"http://{running.address.host}:{running.address.port}/info", timeout=60) as answer:
        return str(json.loads(answer.read())["model_dtype"])


def measure(
    running: Running, requests: Sequence[bytes], clients: int, seconds: float, round_s: float, on_gpu: bool
) -> dict[str, Any]:
    """One point. `load_share` is what the clients take of a processor; `refused` were told to come again (429)."""
    warm_s, seconds = max(WARM_S, round_s), max(seconds, ROUNDS * round_s)
    used = time.process_time()
    tally, looks, shares = asyncio.run(asked(running, requests, clients, seconds, warm_s, on_gpu))
    return {
        "clients": clients,
        "seconds": seconds,
        "requests_per_s": tally.per_s,
        **model_figures(looks),
        "p50_ms": 1000 * tally.percentile(0.5),
        "p99_ms": 1000 * tally.percentile(0.99),
        "refused": tally.statuses[429],
        "failed": unwelcome(tally),
        "gpu_busy": fmean(shares) if shares else None,
        "load_share": (time.process_time() - used) / (seconds + warm_s),
    }


async def asked(
    running: Running, requests: Sequence[bytes], clients: int, seconds: float, warm_s: float, on_gpu: bool
) -> tuple[Tally, Looks[Counts], list[float]]:
    """What came back, and what was seen meanwhile of the server and of its GPU."""
    async with (
        looking(lambda: counts(running.address)) as looks,
        looking(lambda: gpu_share() if on_gpu else None) as shares,
    ):
        tally = await closed_loop(running.address, requests, clients, seconds, warm_s)
    timely = [share for at_s, share in shares if tally.began_s <= at_s <= tally.ended_s]
    counted = [(at_s, found) for at_s, found in looks if tally.began_s <= at_s <= tally.ended_s]
    return tally, counted, [share for share in timely if share is not None]


def alone(work: Work, folder: str, device: str, precision: str) -> float:
    """Tokens a second of the model without a server, in what the server computed in."""
    seconds = in_fresh_process(ours, folder, work.texts, device, precision)["seconds"]
    logger.info("%s, without a server: %s tokens/s", work.name, f"{work.tokens / seconds:,.0f}")
    return work.tokens / seconds


def against(record: dict[str, Any], plain: float) -> dict[str, float | None]:
    """What the model does alone, and the server's share of it."""
    served = record["tokens_per_s"]
    return {"plain_tokens_per_s": plain, "share": None if served is None else served / plain}


def render(records: Records) -> str:
    """The records as a table."""
    return table(records, COLUMNS)
