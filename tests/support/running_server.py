"""Fixtures of the servers' tests: a small real student, served by uvicorn in a thread, without Ray."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import uvicorn

from jasper_ray.embedding.folder import PROVENANCE, OutputFolder, Provenance, Resolved
from jasper_ray.embedding.settings import EmbedSettings, VectorColumn
from jasper_ray.embedding.store import open_store
from jasper_ray.serving.gateway import build_gateway
from jasper_ray.serving.keys import Ledger
from jasper_ray.serving.load import open_service
from jasper_ray.serving.service import Service
from jasper_ray.serving.settings import ServeSettings
from jasper_ray.vectors import int8_ranges

PATIENCE_S = 240


@contextmanager
def command_running(command: Sequence[str], **how: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a command as a process, and kill it with its children when the block ends."""
    with subprocess.Popen(command, text=True, **how) as process:
        own = psutil.Process(process.pid)
        try:
            yield process
        finally:
            with contextlib.suppress(psutil.Error):
                for one in [*own.children(recursive=True), own]:
                    one.kill()


@contextmanager
def served(
    model: Path | str, change: Callable[[Service], None] | None = None, **settings: Any
) -> Iterator[tuple[str, Service]]:
    """Start a server and yield its address and service; `change` may alter the service before."""
    values = {"model": str(model), "name": "small", "open": True, "precision": "float32", "threads": 1, **settings}
    service = open_service(ServeSettings.model_validate(values), Ledger())
    if change:
        change(service)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build_gateway(service), log_level="error", access_log=False))
    up = threading.Event()

    async def serve() -> None:
        service.engine.start()
        up.set()
        await server.serve(sockets=[listening])

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert up.wait(60), "the server does not start"
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", service
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        service.engine.close()
        service.preparer.close()


def output_folder(path: Path, weights: str, dim: int = 96) -> Path:
    """Write an embedding's output folder, with the files that serving reads."""
    columns = (VectorColumn(dim=dim, dtype="int8"), VectorColumn(dim=dim, dtype="binary"))
    asked = EmbedSettings(model="m", inputs=("in",), vectors=columns)
    resolved = Resolved(prompt="", vectors=columns, precision="float32", agreement=None, max_length=64)
    folder = OutputFolder(open_store(str(path)))
    folder.write(PROVENANCE, Provenance(model="m", weights=weights, asked=asked.decisive(), resolved=resolved))
    x_ND = np.random.default_rng(2).normal(size=(50, dim)) / 10
    folder.keep_ranges({dim: int8_ranges(x_ND)})
    return path


def wait_for(what: Callable[[], bool]) -> None:
    """Wait until it holds; a loaded machine takes minutes for what an idle one does in seconds."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < PATIENCE_S, "waited too long"
        time.sleep(0.2)
