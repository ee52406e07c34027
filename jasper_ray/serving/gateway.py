"""The server as an ASGI application: endpoints, and around each of them keys, limits and errors."""

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
from jasper_ray.serving.bodies import Bodies
from jasper_ray.serving.errors import Refusal, bad_request
from jasper_ray.serving.keys import EVERYONE, Key
from jasper_ray.serving.middleware import Front
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
    return Front(app, service, {one.path for one in routes})


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
        return bodies.answer(content, timing(told.seconds))

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
