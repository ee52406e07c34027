"""OpenAI's API: `POST /v1/embeddings`, `GET /v1/models`."""

from __future__ import annotations

from typing import Any, Literal

from jasper_ray.serving.keys import Key
from jasper_ray.serving.openapi import INTEGER, NUMBERS, STRING, array, mapping
from jasper_ray.serving.service import Service
from jasper_ray.serving.surfaces.base import Answer, Body, Endpoint, Inputs, Size, read_inputs
from jasper_ray.serving.vectors import typed


class EmbeddingsBody(Body):
    """OpenAI's fields, `prompt_name` and `truncate`."""

    input: Inputs
    model: str | None = None
    """The model's name, as in `/v1/models`; optional."""
    dimensions: Size | None = None
    """Size of the vectors: a head's, or any below the largest."""
    encoding_format: Literal["float", "base64"] | None = None
    """base64 encodes little-endian float32."""
    user: str | None = None
    """Ignored."""
    prompt_name: str | None = None
    """The prompt for every text; empty for none."""
    truncate: bool = False
    """Truncate a text that is too long instead of refusing it."""


async def embeddings(service: Service, body: EmbeddingsBody, caller: Key) -> Answer:
    """Embed the inputs, in their order."""
    service.check_model(body.model)
    inputs = read_inputs(body.input, service, body.prompt_name, "end" if body.truncate else None)
    done = await service.embed(inputs, body.dimensions, caller)
    vectors = typed(done.x_ND, "base64" if body.encoding_format == "base64" else "float", {})
    data = [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(vectors)]
    usage = {"prompt_tokens": done.tokens, "total_tokens": done.tokens}
    return Answer({"object": "list", "data": data, "model": service.name, "usage": usage}, done.seconds, done.tokens)


async def models(service: Service, body: None, caller: Key) -> Answer:
    """List the one model."""
    return Answer({"object": "list", "data": [card(service)]})


async def model(service: Service, name: str, caller: Key) -> Answer:
    """Describe the model of that name."""
    service.check_model(name)
    return Answer(card(service))


def card(service: Service) -> dict[str, Any]:
    """Describe the model: OpenAI's fields, then its sizes, limits and prompts."""
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
        "modalities": ["text", "image"] if service.encoder.accepts_images else ["text"],
        "int8_dimensions": sorted(service.ranges),
    }


MODEL = mapping("id object created owned_by dimensions")
MODELS = mapping("", data=array(MODEL))
EMBEDDING = mapping("object index embedding", index=INTEGER, embedding={"anyOf": [NUMBERS, STRING]})
USAGE = mapping("", prompt_tokens=INTEGER, total_tokens=INTEGER)
EMBEDDINGS = mapping("object data model usage", data=array(EMBEDDING), model=STRING, usage=USAGE)
ENDPOINTS = (
    Endpoint("POST", "/v1/embeddings", embeddings, "Vectors of texts, token ids or images", EmbeddingsBody, EMBEDDINGS),
    Endpoint("GET", "/v1/models", models, "The served model, its sizes and prompts", answer=MODELS),
    Endpoint("GET", "/v1/models/{name}", model, "The model of that name", answer=MODEL, parameter="name"),
)
