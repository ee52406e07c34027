"""Bodies of requests as they come in, and of answers as they go out: each of them, and all of them together, within
bounds of size and time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from anyio import fail_after
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from jasper_ray.serving.errors import Refusal, overloaded, too_large
from jasper_ray.serving.service import Service

SLOW_S = 30.0
"""How long a body may take to come, or an answer to be fetched."""
SLICE = 1 << 18
"""Bytes of an answer that are handed on at once; the next wait until the client has taken these."""


class Bodies:
    """Room for the bodies of all requests that are being answered, and for their answers."""

    def __init__(self, service: Service) -> None:
        limits = service.settings.limits
        self.most = int(limits.body_mib * 2**20)
        self.room = int(limits.waiting_mib * 2**20)
        self.service = service

    def read(self, request: Request) -> OneBody:
        """The body, for as long as it is needed."""
        return OneBody(self, request)

    def answer(self, content: bytes, headers: Mapping[str, str]) -> OneAnswer:
        """An answer of JSON, for as long as it takes to send.

        Raises:
            Refusal: there is no room for it.
        """
        if len(content) > self.room:
            raise self.full()
        return OneAnswer(self, content, headers)

    def full(self) -> Refusal:
        """What is told when there is no room now."""
        return overloaded(max(self.service.engine.queue.wait_s, 1.0))


class OneBody:
    """A body that takes room until its request is answered."""

    def __init__(self, bodies: Bodies, request: Request) -> None:
        self.bodies = bodies
        self.request = request
        self.taken = 0

    async def __aenter__(self) -> bytes:
        try:
            self.check(said_length(self.request))
            with fail_after(SLOW_S):
                return b"".join([part async for part in self._parts()])
        except BaseException as error:
            self.bodies.room += self.taken
            if isinstance(error, TimeoutError):
                message = f"the body did not come within {SLOW_S:g} s; send it anew"
                raise Refusal(408, "body_too_slow", message) from error
            raise

    async def _parts(self) -> AsyncIterator[bytes]:
        async for part in self.request.stream():
            self.taken += len(part)
            self.bodies.room -= len(part)
            self.check(self.taken)
            yield part

    async def __aexit__(self, *_: object) -> None:
        self.bodies.room += self.taken

    def check(self, size: int) -> None:
        """Refuse a body that is too large, or one for which there is no room now."""
        if size > self.bodies.most:
            raise too_large(f"the body has more than {self.bodies.most} bytes; send it in parts", code="body_too_large")
        if self.bodies.room < 0:
            raise self.bodies.full()


class OneAnswer(Response):
    """An answer that takes room until its client has taken it; one that takes too long is cut off."""

    def __init__(self, bodies: Bodies, content: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(content, media_type="application/json", headers=dict(headers))
        self.bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = bytes(self.body)
        self.bodies.room -= len(body)
        try:
            with fail_after(SLOW_S):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                for start in range(0, len(body), SLICE):
                    part, more = body[start : start + SLICE], start + SLICE < len(body)
                    await send({"type": "http.response.body", "body": part, "more_body": more})
        except TimeoutError as error:
            raise ClientDisconnect from error
        finally:
            self.bodies.room += len(body)


def said_length(request: Request) -> int:
    """What the header says of the body's size; 0 if it says nothing of use."""
    said = request.headers.get("content-length", "")
    return int(said) if said.isdecimal() and len(said) < 20 else 0
