"""Cohere's words: `POST /v2/embed`."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from jasper_ray.serving.errors import bad_request
from jasper_ray.serving.fetching import fetched
from jasper_ray.serving.inputs import Cut, ImageInput, Input, TextInput
from jasper_ray.serving.keys import Key
from jasper_ray.serving.service import Service
from jasper_ray.serving.surfaces.base import IMAGE, Answer, Body, Endpoint, Size, data_of
from jasper_ray.serving.surfaces.openai import NUMBERS
from jasper_ray.serving.vectors import VectorType, check_type, head_for, typed

InputType = Literal["search_document", "search_query", "classification", "clustering", "image"]

PROMPTS: Mapping[str, tuple[str, ...]] = {
    "search_query": ("s2p_query", "query"),
    "search_document": ("s2p_document", "document", "passage"),
    "classification": ("s2s_query", "classification"),
    "clustering": ("s2s_query", "clustering"),
    "image": (),
}
"""For an input type the prompts that mean it; the first that the model has stands before the texts."""

CUTS: Mapping[str, Cut] = {"END": "end", "START": "start", "NONE": None}


class ImageUrl(Body):
    """Where an image lies: a data URI, or an address if the server fetches."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None
    """Not looked at: an image is read at the model's own size."""


class Content(Body):
    """A text or an image of an input."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class MixedInput(Body):
    """An image and the text after it, or one of the two."""

    content: list[Content] = Field(min_length=1)

    @property
    def has_image(self) -> bool:
        return any(part.type == "image_url" for part in self.content)


class EmbedBody(Body):
    """What Cohere's clients send, and one field more."""

    model: str | None = None
    """The model's name, as `/v1/models` tells it; may be left out."""
    input_type: InputType
    """What the vectors are for: decides the prompt, where the model has one of that meaning."""
    texts: list[str] | None = None
    images: list[str] | None = None
    """Data URIs, or addresses if the server fetches."""
    inputs: list[MixedInput] | None = None
    max_tokens: int | None = Field(None, ge=1, le=2**31)
    """Tokens of an input at most; `truncate` says what is done with the rest."""
    output_dimension: Size | None = None
    embedding_types: list[VectorType] | None = None
    """float when nothing is said."""
    truncate: Literal["NONE", "START", "END"] = "END"
    """Which end of a text that is too long is cut off; NONE: it is refused."""
    priority: int | None = None
    """Not looked at."""
    prompt_name: str | None = None
    """Which of the model's prompts stands before every text, instead of the input type's; empty: none."""


async def embed(service: Service, body: EmbedBody, caller: Key) -> Answer:
    """Vectors in every type that was asked for, from one pass through the model."""
    service.check_model(body.model)
    kinds: Iterable[VectorType] = dict.fromkeys(body.embedding_types or ("float",))
    _, dim = head_for(service.dims, body.output_dimension, "output_dimension")
    for kind in kinds:  # before anything is fetched, embedded, or charged
        check_type(dim, kind, service.ranges)
    inputs = await read(service, body)
    found = await service.embed(inputs, body.output_dimension, caller, "output_dimension")
    meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": found.tokens}}
    content = {
        "id": str(uuid.uuid4()),
        "response_type": "embeddings_by_type",
        "embeddings": {kind: typed(found.x_ND, kind, service.ranges) for kind in kinds},
        "texts": body.texts or [],
        "meta": meta,
    }
    return Answer(content, found.seconds, found.tokens)


async def read(service: Service, body: EmbedBody) -> list[Input]:
    """The inputs, from whichever of the three fields has them."""
    given = [name for name in ("texts", "images", "inputs") if getattr(body, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise bad_request(f"give one of texts, images and inputs; found {found}", given[-1] if given else "texts")
    service.check_count(len(getattr(body, given[0])))
    service.check_images(len(body.images or []) + sum(one.has_image for one in body.inputs or []))
    images = Images(service, int(service.settings.limits.body_mib * 2**20))
    if body.texts is not None:
        return [text(service, body, one) for one in body.texts]
    if body.images is not None:
        return [ImageInput(await images.read(one), TextInput("", max_tokens=body.max_tokens)) for one in body.images]
    return [await mixed(service, body, one, images) for one in body.inputs or ()]


def text(service: Service, body: EmbedBody, written: str) -> Input:
    if written[: len(IMAGE)].lower() == IMAGE:
        return ImageInput(data_of(written))
    return TextInput(written, prompt(service, body), CUTS[body.truncate], body.max_tokens)


def prompt(service: Service, body: EmbedBody) -> str | None:
    """The prompt that was named, or the one that means the input type, or the server's own."""
    meant = next((name for name in PROMPTS[body.input_type] if name in service.encoder.prompts), None)
    return service.prompt(meant if body.prompt_name is None else body.prompt_name)


async def mixed(service: Service, body: EmbedBody, one: MixedInput, images: Images) -> Input:
    """An image and the text after it, or one of the two."""
    texts = [part.text for part in one.content if part.type == "text" and part.text is not None]
    urls = [part.image_url.url for part in one.content if part.type == "image_url" and part.image_url]
    if len(texts) + len(urls) != len(one.content) or len(texts) > 1 or len(urls) > 1:
        raise bad_request("content is not one text, one image_url, or one of each", "inputs")
    if not urls:
        return text(service, body, texts[0])
    after = TextInput(texts[0] if texts else "", prompt(service, body), CUTS[body.truncate], body.max_tokens)
    return ImageInput(await images.read(urls[0]), after)


@dataclass
class Images:
    """The images of one request."""

    service: Service
    room: int
    """Bytes that may still be fetched: all of them together, as if they had come in the body."""

    async def read(self, url: str) -> bytes:
        """The bytes of an image in a data URI, or at an address if this server fetches."""
        if url[: len(IMAGE)].lower() == IMAGE:
            return data_of(url)
        if not self.service.settings.fetch_images:
            raise bad_request(
                "an image is no data URI (data:image/<type>;base64,<data>), and this server fetches none itself",
                "images",
            )
        found = await fetched(url, self.room)
        self.room -= len(found)
        return found


KINDS: dict[str, Any] = {
    kind: {"type": "array", "items": {"type": "string"} if kind == "base64" else NUMBERS}
    for kind in ("float", "int8", "uint8", "binary", "ubinary", "base64")
}
ANSWER = {
    "type": "object",
    "required": ["id", "embeddings"],
    "properties": {"id": {"type": "string"}, "embeddings": {"type": "object", "properties": KINDS}},
}
ENDPOINTS = (Endpoint("POST", "/v2/embed", embed, "Vectors of texts or images, in several types", EmbedBody, ANSWER),)
