"""The endpoints as an OpenAPI document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

import jasper_ray
from jasper_ray.serving.errors import TYPES
from jasper_ray.serving.surfaces.base import Endpoint

REFS = "#/components/schemas/{model}"
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "code": {"type": "string"},
            },
        },
        "message": {"type": "string"},
    },
}


def document(endpoints: Sequence[Endpoint], name: str) -> dict[str, Any]:
    """All endpoints, what they take and send back, and the one shape of every error."""
    bodies = [(one.body, "validation") for one in endpoints if one.body]
    refs, schemas = models_json_schema(bodies, ref_template=REFS)  # type: ignore[arg-type]
    paths: dict[str, Any] = {}
    for one in endpoints:
        body = refs[one.body, "validation"] if one.body else None
        paths.setdefault(one.path, {})[one.method.lower()] = operation(one, body)
    paths["/metrics"] = {"get": {"summary": "Metrics for Prometheus", "responses": text_answers()}}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"jasper_ray: {name}", "version": jasper_ray.__version__},
        "security": [{"key": []}, {}],
        "paths": paths,
        "components": {
            "schemas": {**schemas.get("$defs", {}), "Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def operation(one: Endpoint, body: dict[str, Any] | None) -> dict[str, Any]:
    """One endpoint, and the schema of what it takes."""
    told = {"200": {"description": "Done", "content": {"application/json": {"schema": one.answer}}}}
    found: dict[str, Any] = {"summary": one.summary, "responses": {**told, **errors()}}
    if body:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    if one.parameter:
        named = {"name": one.parameter, "in": "path", "required": True, "schema": {"type": "string"}}
        found["parameters"] = [named]
    return found


def errors() -> dict[str, Any]:
    """Every status that is not 200."""
    schema = {"$ref": REFS.format(model="Error")}
    told = {"content": {"application/json": {"schema": schema}}}
    return {str(status): {"description": kind.replace("_", " "), **told} for status, kind in TYPES.items()}


def text_answers() -> dict[str, Any]:
    return {"200": {"description": "Done", "content": {"text/plain": {"schema": {"type": "string"}}}}, **errors()}
