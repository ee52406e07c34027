"""text-embeddings-inference's API: `/embed`, `/similarity`, `/tokenize`, `/info`, `/health`."""

from __future__ import annotations

from typing import Literal

import jasper_ray
from jasper_ray.serving.errors import bad_request, unavailable
from jasper_ray.serving.inputs import Cut, ImageInput
from jasper_ray.serving.keys import Key
from jasper_ray.serving.openapi import INTEGER, NUMBERS, array, mapping
from jasper_ray.serving.service import Service
from jasper_ray.serving.surfaces.base import Answer, Body, Endpoint, Inputs, Size, read_inputs


class Truncation(Body):
    """The treatment of texts that are too long, and the prompt for every text."""

    truncate: bool | None = None
    """Truncate a text that is too long; false refuses it. Default: true."""
    truncation_direction: Literal["left", "right", "Left", "Right"] = "right"
    """The end at which a text is truncated."""
    prompt_name: str | None = None
    """The prompt for every text; empty for none."""

    @property
    def cut(self) -> Cut:
        if self.truncate is False:
            return None
        return "start" if self.truncation_direction.lower() == "left" else "end"


class EmbedBody(Truncation):
    """The body of `/embed`."""

    inputs: Inputs
    normalize: bool = True
    """Must be true: all vectors are unit vectors."""
    dimensions: Size | None = None
    """Size of the vectors: a head's, or any below the largest."""


class Pairs(Body):
    """A text, and others to compare with it."""

    source_sentence: str
    sentences: list[str]


class SimilarityBody(Body):
    """The body of `/similarity`."""

    inputs: Pairs
    parameters: Truncation | None = None


class TokenizeBody(Body):
    """The body of `/tokenize`."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None


async def embed(service: Service, body: EmbedBody, caller: Key) -> Answer:
    """Embed the inputs, in their order."""
    if not body.normalize:
        raise bad_request("all vectors are unit vectors; remove normalize, or set it to true", "normalize")
    inputs = read_inputs(body.inputs, service, body.prompt_name, body.cut, "inputs")
    done = await service.embed(inputs, body.dimensions, caller)
    return Answer(done.x_ND, done.seconds, done.tokens)


async def similarity(service: Service, body: SimilarityBody, caller: Key) -> Answer:
    """Compute the cosine of the source with every sentence."""
    options = body.parameters or Truncation()
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    if len(texts) == 1:
        raise bad_request("there are no sentences to compare with; send at least one", "inputs", "empty_input")
    inputs = read_inputs(texts, service, options.prompt_name, options.cut, "inputs")
    done = await service.embed(inputs, None, caller)
    return Answer(done.x_ND[1:] @ done.x_ND[0], done.seconds, done.tokens)


async def tokenize(service: Service, body: TokenizeBody, caller: Key) -> Answer:
    """Tokenise texts; the ids can be embedded as they are."""
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    inputs = read_inputs(texts, service, body.prompt_name, "end", "inputs")
    if any(isinstance(one, ImageInput) for one in inputs):
        raise bad_request("an image has no token ids; expected texts", "inputs")
    service.check_inputs(inputs)
    with service.admit(inputs):
        name = service.prompt(body.prompt_name)
        return Answer(await service.preparer.tokens(texts, name, body.add_special_tokens))


async def info(service: Service, body: None, caller: Key) -> Answer:
    """Describe the model, its precision and the limits."""
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
    """Report that the model answers, or refuse if it is dead."""
    if service.engine.model.dead:
        raise unavailable(service.engine.model.dead)
    return Answer({"status": "ok"})


TOKEN = mapping("id text special", id=INTEGER)
ENDPOINTS = (
    Endpoint("POST", "/embed", embed, "Vectors of texts, token ids or images", EmbedBody, array(NUMBERS)),
    Endpoint("POST", "/similarity", similarity, "Cosines of a text with others", SimilarityBody, NUMBERS),
    Endpoint("POST", "/tokenize", tokenize, "Tokens of texts", TokenizeBody, array(array(TOKEN))),
    Endpoint("GET", "/info", info, "The model, its precision and the limits", answer={"type": "object"}),
    Endpoint("GET", "/health", health, "Health of the model", answer={"type": "object"}),
)
