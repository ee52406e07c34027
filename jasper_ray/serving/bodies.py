"""Bodies of requests as they come in: each of them, and all of them together, within bounds of size and time."""

from __future__ import annotations

from collections.abc import AsyncIterator

from anyio import fail_after
from starlette.requests import Request

from jasper_ray.serving.errors import Refusal, overloaded, too_large
from jasper_ray.serving.service import Service

SLOW_S = 30.0
"""How long a body may take to come."""


class Bodies:
    """Room for the bodies of all requests that are being answered."""

    def __init__(self, service: Service) -> None:
        limits = service.settings.limits
        self.most = int(limits.body_mib * 2**20)
        self.room = int(limits.waiting_mib * 2**20)
        self.service = service

    def read(self, request: Request) -> OneBody:
        """The body, for as long as it is needed."""
        return OneBody(self, request)


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
            raise overloaded(max(self.bodies.service.engine.queue.wait_s, 1.0))


def said_length(request: Request) -> int:
    """What the header says of the body's size; 0 if it says nothing of use."""
    said = request.headers.get("content-length", "")
    return int(said) if said.isdecimal() and len(said) < 20 else 0
