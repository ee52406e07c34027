"""A server of a small real student without Ray, for tests: uvicorn in a thread of this process."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from jasper_ray.serving.gateway import build_gateway
from jasper_ray.serving.ledger import Ledger
from jasper_ray.serving.opening import open_service
from jasper_ray.serving.service import Service
from jasper_ray.serving.settings import ServeSettings


@contextmanager
def served(
    model: Path | str, change: Callable[[Service], None] | None = None, **settings: Any
) -> Iterator[tuple[str, Service]]:
    """The address of a server that is up, and what it stands on; `change` may alter that before it starts."""
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
    up.wait()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", service
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        service.engine.close()
        service.preparer.close()
