"""The server as an ASGI application: the endpoints, with keys, limits and errors around each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from jasper_ray.serving import metrics
from jasper_ray.serving.bodies import BodyMemory
from jasper_ray.serving.errors import Refusal, bad_request
from jasper_ray.serving.keys import EVERYONE, Key
from jasper_ray.serving.middleware import RequestLog
from jasper_ray.serving.openapi import document
from jasper_ray.serving.service import Service
from jasper_ray.serving.surfaces import cohere, openai, tei
from jasper_ray.serving.surfaces.base import Answer, Endpoint

ENDPOINTS = (*openai.ENDPOINTS, *tei.ENDPOINTS, *cohere.ENDPOINTS)
WITHOUT_KEY = ("/health",)
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def build_gateway(service: Service) -> ASGIApp:
    """Build the application that answers every surface."""
    memory = BodyMemory(service)
    # path parameters may contain slashes, as names of models do
    routes = [
        Route(one.path.replace("}", ":path}"), handler(service, one, memory), methods=[one.method]) for one in ENDPOINTS
    ]
    page = resources.files("jasper_ray.serving").joinpath("page.html").read_text(encoding="utf-8")
    schema = orjson.dumps(document(ENDPOINTS, service.name))

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    async def show_schema(request: Request) -> Response:
        return Response(schema, media_type="application/json")

    async def show_metrics(request: Request) -> Response:
        service.keys.caller(request.headers.get("authorization"))
        pages = await service.ledger.exchange(service.replica, service.metrics_page())
        return Response(metrics.merged(pages), media_type=metrics.CONTENT_TYPE)

    routes += [
        Route("/", show_page),
        Route("/openapi.json", show_schema),
        Route("/metrics", show_metrics),
    ]
    handlers: dict[Any, Any] = {Refusal: refused, 404: not_found, 405: wrong_method, Exception: failed}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False  # a redirect would send clients to any host they named
    return RequestLog(app, service, {one.path for one in routes})


def handler(service: Service, endpoint: Endpoint, memory: BodyMemory) -> Callable[[Request], Awaitable[Response]]:
    """Make the endpoint's handler for Starlette."""

    async def handle(request: Request) -> Response:
        caller = EVERYONE
        if endpoint.path not in WITHOUT_KEY:
            caller = service.keys.caller(request.headers.get("authorization"))
        request.state.key = caller.name
        answer = await call(service, endpoint, memory, request, caller)
        request.state.tokens = answer.tokens
        content = orjson.dumps(answer.content, option=orjson.OPT_SERIALIZE_NUMPY)
        timing = ", ".join(f"{phase};dur={1000 * seconds:.2f}" for phase, seconds in answer.seconds.items())
        return memory.answer(content, {"server-timing": timing} if timing else {})

    return handle


async def call(service: Service, endpoint: Endpoint, memory: BodyMemory, request: Request, caller: Key) -> Answer:
    """Call the endpoint with what its request has: a path parameter, a body, or neither."""
    if endpoint.parameter:
        return await endpoint.handler(service, request.path_params[endpoint.parameter], caller)
    if endpoint.body is None:
        return await endpoint.handler(service, None, caller)
    async with memory.read(request) as data:
        service.engine.check()
        body = parse(data, endpoint.body)
        return await endpoint.handler(service, body, caller)


def parse(data: bytes, kind: type[BaseModel]) -> BaseModel:
    """Parse and validate a body.

    Raises:
        Refusal: it is invalid; the message has the place, and nothing of the texts.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "json_invalid":
        raise bad_request("the body is not valid JSON; expected UTF-8, not nested too deeply, without NaN")
    if fault["type"] == "extra_forbidden":
        known = ", ".join(kind.model_fields)
        raise bad_request(f"unknown field {place[:64]!r}; expected one of {known}", place[:64])
    raise bad_request(f"{place or 'the body'}: {fault['msg'][0].lower()}{fault['msg'][1:]}", place or None)


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return refusal_response(error)


async def not_found(request: Request, error: Exception) -> Response:
    return refusal_response(Refusal(404, "not_found", "unknown path; /openapi.json lists the paths"))


async def wrong_method(request: Request, error: Exception) -> Response:
    response = refusal_response(Refusal(405, "method_not_allowed", "wrong method for this path; see /openapi.json"))
    response.headers["allow"] = (getattr(error, "headers", None) or {}).get("Allow", "")
    return response


async def failed(request: Request, error: Exception) -> Response:
    """Answer for a fault of our own, which `RequestLog` logs."""
    return refusal_response(Refusal(500, "internal_error", "the server failed; see its log"))


def refusal_response(refusal: Refusal) -> Response:
    return Response(orjson.dumps(refusal.body), refusal.status, headers=refusal.headers, media_type="application/json")
