"""The server as an ASGI application: endpoints, and around each of them keys, limits, errors, counting and logs."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources
from typing import Any

import orjson
from anyio import fail_after
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jasper_ray.serving import metrics
from jasper_ray.serving.errors import Refusal, bad_request, overloaded, too_large
from jasper_ray.serving.keys import EVERYONE, Key
from jasper_ray.serving.openapi import document
from jasper_ray.serving.service import Service
from jasper_ray.serving.surfaces import cohere, openai, tei
from jasper_ray.serving.surfaces.base import Answer, Endpoint

logger = logging.getLogger(__name__)
access = logging.getLogger("jasper_ray.access")

ENDPOINTS = (*openai.ENDPOINTS, *tei.ENDPOINTS, *cohere.ENDPOINTS)
WITHOUT_KEY = ("/health",)
SLOW_S = 30.0
"""How long a body may take to come."""
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def build_gateway(service: Service) -> ASGIApp:
    """The application that answers every surface."""
    bodies = Bodies(service)
    routes = [route(service, one, bodies) for one in ENDPOINTS]
    page = resources.files("jasper_ray.serving").joinpath("page.html").read_text(encoding="utf-8")
    schema = orjson.dumps(document(ENDPOINTS, service.name))

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    async def show_schema(request: Request) -> Response:
        return Response(schema, media_type="application/json")

    async def show_metrics(request: Request) -> Response:
        service.keys.caller(request.headers.get("authorization"))
        told = await service.book.exchange(service.replica, service.measured())
        return Response(metrics.merged(told), media_type=metrics.CONTENT_TYPE)

    routes += [
        Route("/", show_page),
        Route("/openapi.json", show_schema),
        Route("/metrics", show_metrics),
    ]
    handlers: dict[Any, Any] = {Refusal: refuse, 404: not_found, 405: wrong_method, Exception: fail}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False  # it would send clients to whatever host they named
    return Front(app, service)


def route(service: Service, endpoint: Endpoint, bodies: Bodies) -> Route:
    """The endpoint at its path; what stands for braces may hold slashes, as names of models do."""
    path = endpoint.path.replace("}", ":path}")
    return Route(path, answering(service, endpoint, bodies), methods=[endpoint.method])


def answering(service: Service, endpoint: Endpoint, bodies: Bodies) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint as Starlette calls it."""

    async def answer(request: Request) -> Response:
        caller = EVERYONE
        if endpoint.path not in WITHOUT_KEY:
            caller = service.keys.caller(request.headers.get("authorization"))
        request.state.key = caller.name
        told = await handle(service, endpoint, bodies, request, caller)
        request.state.tokens = told.tokens
        content = orjson.dumps(told.content, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(content, media_type="application/json", headers=timing(told.seconds))

    return answer


async def handle(service: Service, endpoint: Endpoint, bodies: Bodies, request: Request, caller: Key) -> Answer:
    """What the endpoint answers to a request."""
    if endpoint.parameter:
        return await endpoint.handler(service, request.path_params[endpoint.parameter], caller)
    if endpoint.body is None:
        return await endpoint.handler(service, None, caller)
    async with bodies.read(request) as data:
        service.engine.check()
        body = parse(data, endpoint.body)
        return await endpoint.handler(service, body, caller)


class Bodies:
    """Bodies as they come in: each of them, and all of them together, within bounds."""

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


def parse(data: bytes, kind: type[BaseModel]) -> BaseModel:
    """A body as what the endpoint takes.

    Raises:
        Refusal: it is not JSON, or not of that shape; the place is told, and nothing of its texts.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "json_invalid":
        raise bad_request("the body is no JSON of this kind; it is UTF-8, not too deep, and without NaN")
    if fault["type"] == "extra_forbidden":
        known = ", ".join(kind.model_fields)
        raise bad_request(f"there is no field {place[:64]!r}; known are {known}", place[:64])
    raise bad_request(f"{place or 'the body'}: {fault['msg'][0].lower()}{fault['msg'][1:]}", place or None)


def timing(seconds: dict[str, float]) -> dict[str, str]:
    """How long each phase took, as browsers show it."""
    if not seconds:
        return {}
    return {"server-timing": ", ".join(f"{name};dur={1000 * value:.2f}" for name, value in seconds.items())}


async def refuse(request: Request, error: Exception) -> Response:
    """A refusal as every surface tells it."""
    assert isinstance(error, Refusal)
    return refusal_response(error)


async def not_found(request: Request, error: Exception) -> Response:
    return refusal_response(
        Refusal(404, "not_found", "there is nothing at this path; /openapi.json lists what there is")
    )


async def wrong_method(request: Request, error: Exception) -> Response:
    told = refusal_response(Refusal(405, "method_not_allowed", "this path takes another method; see /openapi.json"))
    told.headers["allow"] = (getattr(error, "headers", None) or {}).get("Allow", "")
    return told


async def fail(request: Request, error: Exception) -> Response:
    """Our own fault; `Front` logs where it lies."""
    return refusal_response(Refusal(500, "internal_error", "the server failed; its log says more"))


def refusal_response(refusal: Refusal) -> Response:
    return Response(orjson.dumps(refusal.body), refusal.status, headers=refusal.headers, media_type="application/json")


class Front:
    """Around everything: the request's id, the model's name, one line in the log, one count."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service
        self.model = f"{service.name}@{service.identity}".encode()
        self.paths = {one.path for one in ENDPOINTS} | {"/", "/metrics", "/openapi.json"}

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
