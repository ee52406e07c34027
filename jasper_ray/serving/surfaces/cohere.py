"""Cohere's API: `POST /v2/embed`."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import Field

from jasper_ray.serving.errors import bad_request
from jasper_ray.serving.fetching import fetch
from jasper_ray.serving.inputs import Cut, ImageInput, Input, TextInput
from jasper_ray.serving.keys import Key
from jasper_ray.serving.openapi import NUMBERS, STRING, array, mapping
from jasper_ray.serving.service import Service
from jasper_ray.serving.surfaces.base import Answer, Body, Endpoint, Size, decode_data_uri, is_data_uri, read_text
from jasper_ray.serving.vectors import VectorType, check_type, head_for, typed

InputType = Literal["search_document", "search_query", "classification", "clustering", "image"]

PROMPTS: Mapping[str, tuple[str, ...]] = {
    "search_query": ("s2p_query", "query"),
    "search_document": ("s2p_document", "document", "passage"),
    "classification": ("s2s_query", "classification"),
    "clustering": ("s2s_query", "clustering"),
    "image": (),
}
"""Prompts for each input type; the first that the model has is used."""

CUTS: Mapping[str, Cut] = {"END": "end", "START": "start", "NONE": None}


class ImageUrl(Body):
    """An image as a data URI, or as a URL if the server fetches images."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None
    """Ignored: the model reads every image at its own size."""


class Content(Body):
    """A text or an image of an input."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class MixedInput(Body):
    """A text, an image, or an image with the text after it."""

    content: list[Content] = Field(min_length=1)

    @property
    def has_image(self) -> bool:
        return any(part.type == "image_url" for part in self.content)


class EmbedBody(Body):
    """Cohere's fields, and `prompt_name`."""

    model: str | None = None
    """The model's name, as in `/v1/models`; optional."""
    input_type: InputType
    """The use of the vectors: selects the prompt, if the model has one for it."""
    texts: list[str] | None = None
    images: list[str] | None = None
    """Images as data URIs, or as URLs if the server fetches images."""
    inputs: list[MixedInput] | None = None
    max_tokens: int | None = Field(None, ge=1, le=2**31)
    """Maximum number of tokens of an input; `truncate` decides about the rest."""
    output_dimension: Size | None = None
    embedding_types: list[VectorType] | None = None
    """Types of the vectors. Default: float."""
    truncate: Literal["NONE", "START", "END"] = "END"
    """The end at which a text that is too long is truncated; NONE refuses it."""
    priority: int | None = None
    """Ignored."""
    prompt_name: str | None = None
    """The prompt for every text, instead of the input type's; empty for none."""


async def embed(service: Service, body: EmbedBody, caller: Key) -> Answer:
    """Embed the inputs once, and return their vectors in every requested type."""
    service.check_model(body.model)
    kinds: Iterable[VectorType] = dict.fromkeys(body.embedding_types or ("float",))
    _, dim = head_for(service.dims, body.output_dimension, "output_dimension")
    for kind in kinds:  # before anything is fetched, embedded, or charged
        check_type(dim, kind, service.ranges)
    inputs = await read(service, body)
    done = await service.embed(inputs, body.output_dimension, caller, "output_dimension")
    content = {
        "id": str(uuid.uuid4()),
        "response_type": "embeddings_by_type",
        "embeddings": {kind: typed(done.x_ND, kind, service.ranges) for kind in kinds},
        "texts": body.texts or [],
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": done.tokens}},
    }
    return Answer(content, done.seconds, done.tokens)


async def read(service: Service, body: EmbedBody) -> list[Input]:
    """Parse the one field that has inputs."""
    given = [name for name in ("texts", "images", "inputs") if getattr(body, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise bad_request(f"expected one of texts, images and inputs; found {found}", given[-1] if given else "texts")
    service.check_count(len(getattr(body, given[0])))
    service.check_images(len(body.images or []) + sum(one.has_image for one in body.inputs or []))
    images = ImageReader(service, int(service.settings.limits.body_mib * 2**20))
    if body.texts is not None:
        return [text_input(service, body, one) for one in body.texts]
    if body.images is not None:
        return [ImageInput(await images.read(one), TextInput("", max_tokens=body.max_tokens)) for one in body.images]
    return [await mixed_input(service, body, one, images) for one in body.inputs or ()]


def text_input(service: Service, body: EmbedBody, text: str) -> Input:
    return read_text(text, service, prompt_name(service, body), CUTS[body.truncate], body.max_tokens)


def prompt_name(service: Service, body: EmbedBody) -> str | None:
    """Return the prompt that the body names, else the input type's, else None for the server's default."""
    if body.prompt_name is not None:
        return body.prompt_name
    return next((name for name in PROMPTS[body.input_type] if name in service.encoder.prompts), None)


async def mixed_input(service: Service, body: EmbedBody, one: MixedInput, images: ImageReader) -> Input:
    """Parse a text, an image, or an image with the text after it."""
    texts = [part.text for part in one.content if part.type == "text" and part.text is not None]
    urls = [part.image_url.url for part in one.content if part.type == "image_url" and part.image_url]
    if len(texts) + len(urls) != len(one.content) or len(texts) > 1 or len(urls) > 1:
        raise bad_request("content is not one text, one image_url, or one of each", "inputs")
    if not urls:
        return text_input(service, body, texts[0])
    prompt = service.prompt(prompt_name(service, body))
    after = TextInput(texts[0] if texts else "", prompt, CUTS[body.truncate], body.max_tokens)
    return ImageInput(await images.read(urls[0]), after)


@dataclass
class ImageReader:
    """Reads the images of one request."""

    service: Service
    bytes_left: int
    """Bytes that may still be fetched; fetched images together are bounded like a body."""

    async def read(self, url: str) -> bytes:
        """Decode a data URI, or fetch a URL if this server fetches images."""
        if is_data_uri(url):
            return decode_data_uri(url)
        if not self.service.settings.fetch_images:
            raise bad_request("expected images as data:image/<type>;base64,<data>; this server fetches none", "images")
        data = await fetch(url, self.bytes_left)
        self.bytes_left -= len(data)
        return data


KINDS = {kind: array(STRING if kind == "base64" else NUMBERS) for kind in get_args(VectorType)}
ANSWER = mapping("id embeddings", id=STRING, embeddings=mapping("", **KINDS))
ENDPOINTS = (Endpoint("POST", "/v2/embed", embed, "Vectors of texts or images, in several types", EmbedBody, ANSWER),)
