"""The endpoints as an OpenAPI document, and JSON schemas for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

import jasper_ray
from jasper_ray.serving.errors import TYPES

if TYPE_CHECKING:
    from jasper_ray.serving.surfaces.base import Endpoint

REFS = "#/components/schemas/{model}"


def array(item: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return the JSON schema of a list."""
    return {"type": "array", "items": item, **more}


def mapping(required: str, **properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of an object; `required` has names of fields, separated by spaces."""
    return {"type": "object", "required": required.split(), "properties": properties}


INTEGER, STRING = {"type": "integer"}, {"type": "string"}
NUMBERS = array({"type": "number"})
ERROR = mapping(
    "error",
    error=mapping(
        "message type code", message=STRING, type=STRING, param={"anyOf": [STRING, {"type": "null"}]}, code=STRING
    ),
    message=STRING,
)


def document(endpoints: Sequence[Endpoint], name: str) -> dict[str, Any]:
    """Describe all endpoints, their bodies and answers, and the one form of every error."""
    bodies = [(one.body, "validation") for one in endpoints if one.body]
    refs, schemas = models_json_schema(bodies, ref_template=REFS)  # type: ignore[arg-type]
    paths: dict[str, Any] = {}
    for one in endpoints:
        body = refs[one.body, "validation"] if one.body else None
        paths.setdefault(one.path, {})[one.method.lower()] = operation(one, body)
    paths["/metrics"] = {"get": {"summary": "Metrics for Prometheus", "responses": responses("text/plain", STRING)}}
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
    """Describe one endpoint; `body` is the schema of its body."""
    described: dict[str, Any] = {"summary": one.summary, "responses": responses("application/json", one.answer)}
    if body:
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    if one.parameter:
        described["parameters"] = [{"name": one.parameter, "in": "path", "required": True, "schema": STRING}]
    return described


def responses(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Describe an answer with status 200, and every error."""
    error = {"application/json": {"schema": {"$ref": REFS.format(model="Error")}}}
    errors = {str(status): {"description": name.replace("_", " "), "content": error} for status, name in TYPES.items()}
    return {"200": {"description": "Success", "content": {kind: {"schema": schema}}}, **errors}
