"""Bodies of requests and of answers, bounded in size and time, each alone and all together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

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

    def read(self, request: Request) -> RequestBody:
        """Read the body and hold its memory until the block ends."""
        return RequestBody(self, request)

    def answer(self, content: bytes, headers: Mapping[str, str]) -> JSONAnswer:
        """Make an answer of JSON, which holds its memory while it is sent.

        Raises:
            Refusal: the memory does not suffice.
        """
        if len(content) > self.free:
            raise self.refusal()
        return JSONAnswer(self, content, headers)

    def refusal(self) -> Refusal:
        """Return the 429 for exhausted memory."""
        return overloaded(max(self.service.engine.queue.wait_s, 1.0))


class RequestBody:
    """A body that holds memory until its request is answered."""

    def __init__(self, memory: BodyMemory, request: Request) -> None:
        self.memory = memory
        self.request = request
        self.taken = 0

    async def __aenter__(self) -> bytes:
        try:
            self.check(content_length(self.request))
            with fail_after(SLOW_S):
                return b"".join([part async for part in self._parts()])
        except BaseException as error:
            self.memory.free += self.taken
            if isinstance(error, TimeoutError):
                message = f"the body did not arrive within {SLOW_S:g} s; send it again"
                raise Refusal(408, "body_too_slow", message) from error
            raise

    async def _parts(self) -> AsyncIterator[bytes]:
        async for part in self.request.stream():
            self.taken += len(part)
            self.memory.free -= len(part)
            self.check(self.taken)
            yield part

    async def __aexit__(self, *_: object) -> None:
        self.memory.free += self.taken

    def check(self, size: int) -> None:
        """Refuse a body that is too large, or any body if the memory is exhausted."""
        if size > self.memory.max_body:
            raise too_large(f"the body has more than {self.memory.max_body} bytes; split it", code="body_too_large")
        if self.memory.free < 0:
            raise self.memory.refusal()


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
