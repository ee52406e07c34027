"""Bodies of requests and of answers, bounded in size and time, each alone and all together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from anyio import fail_after
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from jasper_ray.serving.errors import Refusal, overloaded, too_large
from jasper_ray.serving.service import Service

SLOW_S = 30.0
"""Time limit for reading a body and for sending an answer."""
SLICE = 1 << 18
"""Bytes of an answer sent at once; the next slice waits until the client has taken this one."""


class BodyMemory:
    """Memory for the bodies and answers of all open requests."""

    def __init__(self, service: Service) -> None:
        limits = service.settings.limits
        self.max_body = int(limits.body_mib * 2**20)
        self.free = int(limits.waiting_mib * 2**20)
        self.service = service

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Read the body and hold its memory until the block ends.

        Raises:
            Refusal: the body is too large or too slow, or the memory is exhausted.
        """
        taken, parts = 0, []
        try:
            self._check(content_length(request))
            try:
                with fail_after(SLOW_S):
                    async for part in request.stream():
                        taken += len(part)
                        self.free -= len(part)
                        self._check(taken)
                        parts.append(part)
            except TimeoutError as error:
                message = f"the body did not arrive within {SLOW_S:g} s; send it again"
                raise Refusal(408, "body_too_slow", message) from error
            body = b"".join(parts)
            parts.clear()
            yield body
        finally:
            self.free += taken

    def answer(self, content: bytes, headers: Mapping[str, str]) -> JSONAnswer:
        """Make an answer of JSON, which holds its memory while it is sent.

        Raises:
            Refusal: the memory does not suffice.
        """
        if len(content) > self.free:
            raise self._refusal()
        return JSONAnswer(self, content, headers)

    def _check(self, size: int) -> None:
        if size > self.max_body:
            raise too_large(f"the body has more than {self.max_body} bytes; split it", code="body_too_large")
        if self.free < 0:
            raise self._refusal()

    def _refusal(self) -> Refusal:
        return overloaded(max(self.service.engine.queue.wait_s, 1.0))


class JSONAnswer(Response):
    """An answer that holds memory until its client has taken it; a client that is too slow is disconnected."""

    def __init__(self, memory: BodyMemory, content: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(content, media_type="application/json", headers=dict(headers))
        self.memory = memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = bytes(self.body)
        self.memory.free -= len(body)
        try:
            with fail_after(SLOW_S):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                for start in range(0, len(body), SLICE):
                    part, more = body[start : start + SLICE], start + SLICE < len(body)
                    await send({"type": "http.response.body", "body": part, "more_body": more})
        except TimeoutError as error:
            raise ClientDisconnect from error
        finally:
            self.memory.free += len(body)


def content_length(request: Request) -> int:
    """Return the length that the header announces; 0 if it is missing or invalid."""
    value = request.headers.get("content-length", "")
    return int(value) if value.isdecimal() and len(value) < 20 else 0
