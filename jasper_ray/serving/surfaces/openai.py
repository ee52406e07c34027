"""OpenAI's words: `POST /v1/embeddings`, `GET /v1/models`."""

from __future__ import annotations

from typing import Any, Literal

from jasper_ray.serving.keys import Key
from jasper_ray.serving.service import Service
from jasper_ray.serving.surfaces.base import Answer, Body, Endpoint, Inputs, Size, read_inputs
from jasper_ray.serving.vectors import typed


class EmbeddingsBody(Body):
    """What OpenAI's clients send, and two fields more."""

    input: Inputs
    model: str | None = None
    """The model's name, as `/v1/models` tells it; may be left out."""
    dimensions: Size | None = None
    """Size of the vectors: one of the heads', or any below the largest."""
    encoding_format: Literal["float", "base64"] | None = None
    """base64: of little-endian float32."""
    user: str | None = None
    """Not looked at."""
    prompt_name: str | None = None
    """Which of the model's prompts stands before every text; empty: none."""
    truncate: bool = False
    """Whether a text that is too long is cut, rather than refused."""


async def embeddings(service: Service, body: EmbeddingsBody, caller: Key) -> Answer:
    """Vectors in the order of the inputs."""
    service.check_model(body.model)
    inputs = read_inputs(body.input, service, body.prompt_name, "end" if body.truncate else None)
    found = await service.embed(inputs, body.dimensions, caller)
    vectors = typed(found.x_ND, "base64" if body.encoding_format == "base64" else "float", {})
    data = [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(vectors)]
    usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    content = {"object": "list", "data": data, "model": service.name, "usage": usage}
    return Answer(content, found.seconds, found.tokens)


async def models(service: Service, body: None, caller: Key) -> Answer:
    """The one model."""
    return Answer({"object": "list", "data": [card(service)]})


async def model(service: Service, name: str, caller: Key) -> Answer:
    """The model of that name."""
    service.check_model(name)
    return Answer(card(service))


def card(service: Service) -> dict[str, Any]:
    """What clients are told of the model."""
    return {
        "id": service.name,
        "object": "model",
        "created": 0,
        "owned_by": "jasper_ray",
        "fingerprint": service.identity,
        "dimensions": sorted(service.dims),
        "default_dimensions": service.dims[0],
        "max_input_tokens": service.preparer.max_length,
        "max_inputs": service.settings.limits.inputs,
        "prompts": dict(service.encoder.prompts),
        "default_prompt": service.default_prompt,
        "modalities": ["text", "image"] if service.encoder.sees else ["text"],
        "int8_dimensions": sorted(service.ranges),
    }


NUMBERS = {"type": "array", "items": {"type": "number"}}
MODEL = {"type": "object", "required": ["id", "object", "created", "owned_by", "dimensions"]}
EMBEDDINGS = {
    "type": "object",
    "required": ["object", "data", "model", "usage"],
    "properties": {
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["object", "index", "embedding"],
                "properties": {"index": {"type": "integer"}, "embedding": {"anyOf": [NUMBERS, {"type": "string"}]}},
            },
        },
        "model": {"type": "string"},
        "usage": {
            "type": "object",
            "properties": {"prompt_tokens": {"type": "integer"}, "total_tokens": {"type": "integer"}},
        },
    },
}
ENDPOINTS = (
    Endpoint("POST", "/v1/embeddings", embeddings, "Vectors of texts, token ids or images", EmbeddingsBody, EMBEDDINGS),
    Endpoint(
        "GET",
        "/v1/models",
        models,
        "The model that is served, its sizes and prompts",
        answer={"type": "object", "properties": {"data": {"type": "array", "items": MODEL}}},
    ),
    Endpoint("GET", "/v1/models/{name}", model, "The model of that name", answer=MODEL, parameter="name"),
)
