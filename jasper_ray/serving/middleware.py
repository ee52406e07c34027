"""What stands around every request: its id, the model's name, one line in the log, one count."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Container
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jasper_ray.serving.service import Service

logger = logging.getLogger(__name__)
access = logging.getLogger("jasper_ray.access")

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Front:
    """Around everything: the request's id, the model's name, one line in the log, one count."""

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
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        known = bool(REQUEST_ID.fullmatch(given))
        request_id = given if known else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        status = 0

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], (b"x-jasper-model", self.model)]
                if not given:  # whoever put one there before us also sends it back
                    headers.append((b"x-request-id", request_id.encode()))
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self.app(scope, receive, tell)
        except ClientDisconnect:
            status = 499
        except Exception as error:  # answered already; a server's own log would show what the request said
            self.report(error, request_id)
        finally:
            self.note(scope, state, status or 499, request_id, time.perf_counter() - began)

    def report(self, error: Exception, request_id: str) -> None:
        """Where our own fault lies, without what the request said."""
        place = error.__traceback__
        while place and place.tb_next:
            place = place.tb_next
        where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else "?"
        logger.error("request %s failed: %s at %s", request_id, type(error).__name__, where)

    def note(self, scope: Scope, state: dict[str, Any], status: int, request_id: str, seconds: float) -> None:
        """One line and one count; never a text."""
        path = scope["path"]
        route = path if path in self.paths else ("/v1/models/{name}" if path.startswith("/v1/models/") else "other")
        key = state.get("key", "-")
        self.service.metrics.requests.labels(route, str(status), key).inc()
        if state.get("tokens"):  # what embeds nothing would hide how long embedding takes
            self.service.metrics.phase("total", seconds)
        if access.isEnabledFor(logging.INFO):
            line = {
                "id": request_id,
                "route": route,
                "status": status,
                "key": key,
                "tokens": state.get("tokens", 0),
                "ms": round(1000 * seconds, 1),
            }
            access.info(json.dumps(line))
