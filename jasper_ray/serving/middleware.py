"""Middleware: headers cleaned before Ray Serve reads them; then request id, model header, access log and counter."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Container
from typing import Any

from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jasper_ray.serving.errors import safe_traceback
from jasper_ray.serving.service import Service

logger = logging.getLogger(__name__)
access = logging.getLogger("jasper_ray.access")

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
RAY_HEADERS = {
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"x-session-id",
    b"serve-multiplexed-model-id",
    b"serve_multiplexed_model_id",
}
"""Headers that Ray Serve reads: a client could set its own time limit or hide that it left. Serve answers 500 if one of
them is not UTF-8."""


def middlewares() -> list[Middleware]:
    """Return the middleware that Ray Serve runs before the application; a flag names this function."""
    return [Middleware(CleanHeaders)]


class CleanHeaders:
    """Removes Ray Serve's own headers, and replaces a request id that cannot be logged."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["headers"] = [with_valid_id(*one) for one in scope["headers"] if one[0].lower() not in RAY_HEADERS]
        await self.app(scope, receive, send)


def with_valid_id(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Replace an invalid x-request-id; return any other header unchanged."""
    if name.lower() == b"x-request-id" and not REQUEST_ID.fullmatch(value.decode("latin-1")):
        return name, uuid.uuid4().hex.encode()
    return name, value


class RequestLog:
    """Gives each request an id and the model's header, logs one line and counts it."""

    def __init__(self, app: ASGIApp, service: Service, paths: Container[str]) -> None:
        self.app = app
        self.service = service
        self.model = f"{service.name}@{service.identity}".encode()
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        sent_id = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = sent_id if REQUEST_ID.fullmatch(sent_id) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], (b"x-jasper-model", self.model)]
                if not sent_id:  # Ray Serve sends back the id that a request came with
                    headers.append((b"x-request-id", request_id.encode()))
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = 499
        except Exception as error:  # answered already; the web server's own log would quote the request
            logger.error("request %s failed\n%s", request_id, safe_traceback(error))
        finally:
            self.record(scope["path"], state, status or 499, request_id, time.perf_counter() - began)

    def record(self, path: str, state: dict[str, Any], status: int, request_id: str, seconds: float) -> None:
        """Log one line, never a text, and count the request."""
        route = path if path in self.paths else ("/v1/models/{name}" if path.startswith("/v1/models/") else "other")
        key, tokens = state.get("key", "-"), state.get("tokens", 0)
        self.service.metrics.requests.labels(route, str(status), key).inc()
        if tokens:  # requests that embed nothing would hide the time that embedding takes
            self.service.metrics.phase("total", seconds)
        if access.isEnabledFor(logging.INFO):
            line = {"id": request_id, "route": route, "status": status, "key": key, "tokens": tokens}
            access.info(json.dumps({**line, "ms": round(1000 * seconds, 1)}))
