"""Headers as they come from outside, before Ray Serve reads them.

Serve takes some headers for its own: a byte of them that is not UTF-8 would be answered with 500, and a client could
set its own time limit or turn off that its leaving is noticed.
"""

from __future__ import annotations

import uuid

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from jasper_ray.serving.middleware import REQUEST_ID

ASIDE = {
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"x-session-id",
    b"serve-multiplexed-model-id",
    b"serve_multiplexed_model_id",
}


class CleanHeaders:
    """Without those headers, and with a request id that can be logged."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["headers"] = [cleaned(*header) for header in scope["headers"] if header[0].lower() not in ASIDE]
        await self.app(scope, receive, send)


def cleaned(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """The header; a request id that is none becomes one."""
    if name.lower() == b"x-request-id" and not REQUEST_ID.fullmatch(value.decode("latin-1")):
        return name, uuid.uuid4().hex.encode()
    return name, value


def middlewares() -> list[Middleware]:
    """What Ray Serve puts before the application, by the flag that names this function."""
    return [Middleware(CleanHeaders)]
