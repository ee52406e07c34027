"""text-embeddings-inference's words: `/embed`, `/similarity`, `/tokenize`, `/info`, `/health`."""

from __future__ import annotations

from typing import Any, Literal

import jasper_ray
from jasper_ray.serving.errors import bad_request, unavailable
from jasper_ray.serving.inputs import Cut, ImageInput
from jasper_ray.serving.keys import Key
from jasper_ray.serving.service import Service
from jasper_ray.serving.surfaces.base import Answer, Body, Endpoint, Inputs, Size, read_inputs
from jasper_ray.serving.surfaces.openai import NUMBERS


class Cutting(Body):
    """What is done with texts that are too long, and the prompt before all of them."""

    truncate: bool | None = None
    """Whether a text that is too long is cut, rather than refused; it is when nothing is said."""
    truncation_direction: Literal["left", "right", "Left", "Right"] = "right"
    """Which end of the text is cut off."""
    prompt_name: str | None = None
    """Which of the model's prompts stands before every text; empty: none."""

    @property
    def cut(self) -> Cut:
        if self.truncate is False:
            return None
        return "start" if self.truncation_direction.lower() == "left" else "end"


class EmbedBody(Cutting):
    """What `/embed` takes."""

    inputs: Inputs
    normalize: bool = True
    """Must be true: these vectors are unit vectors."""
    dimensions: Size | None = None
    """Size of the vectors: one of the heads', or any below the largest."""


class Pairs(Body):
    """A text and others that it is compared with."""

    source_sentence: str
    sentences: list[str]


class SimilarityBody(Body):
    """What `/similarity` takes."""

    inputs: Pairs
    parameters: Cutting | None = None


class TokenizeBody(Body):
    """What `/tokenize` takes."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None


async def embed(service: Service, body: EmbedBody, caller: Key) -> Answer:
    """Vectors in the order of the inputs."""
    if not body.normalize:
        raise bad_request("vectors have length 1 here; leave normalize out", "normalize")
    inputs = read_inputs(body.inputs, service, body.prompt_name, body.cut, "inputs")
    found = await service.embed(inputs, body.dimensions, caller)
    return Answer(found.x_ND, found.seconds, found.tokens)


async def similarity(service: Service, body: SimilarityBody, caller: Key) -> Answer:
    """The cosine of the source with every sentence."""
    how = body.parameters or Cutting()
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    if len(texts) == 1:
        raise bad_request("there is nothing to compare with; give at least one sentence", "inputs", "empty_input")
    found = await service.embed(read_inputs(texts, service, how.prompt_name, how.cut, "inputs"), None, caller)
    return Answer(found.x_ND[1:] @ found.x_ND[0], found.seconds, found.tokens)


async def tokenize(service: Service, body: TokenizeBody, caller: Key) -> Answer:
    """The tokens of texts; their ids can be embedded as they are."""
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    inputs = read_inputs(texts, service, body.prompt_name, "end", "inputs")
    if any(isinstance(one, ImageInput) for one in inputs):
        raise bad_request("an image has no tokens that could be embedded instead of it", "inputs")
    service.check_inputs(inputs)
    with service.admit(inputs):
        name = service.prompt(body.prompt_name)
        return Answer(await service.preparer.tokens(texts, name, body.add_special_tokens))


async def info(service: Service, body: None, caller: Key) -> Answer:
    """What the server is and allows."""
    limits = service.settings.limits
    content = {
        "model_id": service.name,
        "model_sha": service.identity,
        "model_dtype": service.precision,
        "model_type": {"embedding": {"pooling": "model"}},
        "dimensions": sorted(service.dims),
        "prompts": dict(service.encoder.prompts),
        "max_input_length": service.preparer.max_length,
        "max_client_batch_size": limits.inputs,
        "max_batch_tokens": service.engine.model.budget.tokens,
        "max_request_tokens": limits.request_tokens,
        "max_body_mib": limits.body_mib,
        "auto_truncate": True,
        "tokenization_workers": service.settings.tokenizers,
        "version": jasper_ray.__version__,
    }
    return Answer(content)


async def health(service: Service, body: None, caller: Key) -> Answer:
    """Whether the model answers."""
    if service.engine.model.dead:
        raise unavailable(service.engine.model.dead)
    return Answer({"status": "ok"})


def listed(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


TOKEN = {"type": "object", "required": ["id", "text", "special"], "properties": {"id": {"type": "integer"}}}
ENDPOINTS = (
    Endpoint("POST", "/embed", embed, "Vectors of texts, token ids or images", EmbedBody, listed(NUMBERS)),
    Endpoint("POST", "/similarity", similarity, "Cosines of a text with others", SimilarityBody, NUMBERS),
    Endpoint("POST", "/tokenize", tokenize, "Tokens of texts", TokenizeBody, listed(listed(TOKEN))),
    Endpoint("GET", "/info", info, "What the server is and allows", answer={"type": "object"}),
    Endpoint("GET", "/health", health, "Whether the model answers", answer={"type": "object"}),
)
