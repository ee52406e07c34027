"""What the surfaces share: endpoints as data, and inputs as clients write them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from jasper_ray.serving.errors import bad_request
from jasper_ray.serving.inputs import Cut, ImageInput, Input, TextInput, TokenInput
from jasper_ray.serving.keys import Key
from jasper_ray.serving.service import Service

IMAGE = "data:image/"


class Body(BaseModel):
    """What is sent: closed to unknown fields, so that a misspelt one is told; no text becomes a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


@dataclass(frozen=True)
class Answer:
    """What is sent back: JSON that may hold arrays."""

    content: Any
    seconds: dict[str, float] = field(default_factory=dict)
    """By phase, for the header."""
    tokens: int = 0


Handler = Callable[[Service, Any, Key], Awaitable[Answer]]


@dataclass(frozen=True)
class Endpoint:
    """A path, what it takes, and what answers it."""

    method: str
    path: str
    handler: Handler
    summary: str
    body: type[Body] | None = None
    answer: dict[str, Any] = field(default_factory=dict)
    """The schema of what is sent back, as OpenAPI has it."""
    parameter: str | None = None
    """The name of what the path holds in braces, if any."""


Size = Annotated[int, Field(ge=1, le=2**31)]
"""Of vectors; bounded here so that no answer repeats a number of thousands of digits."""
TEXT = {"type": "string", "minLength": 1}
IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
Inputs = Annotated[
    Any,
    WithJsonSchema(
        {
            "description": "A text, a list of texts, token ids of /tokenize, or a list of these. "
            "For a model that sees, a text may be an image as a data URI.",
            "anyOf": [
                TEXT,
                {"type": "array", "items": TEXT, "minItems": 1},
                IDS,
                {"type": "array", "items": IDS, "minItems": 1},
            ],
        }
    ),
]
"""One input or many; read by `read_inputs`, which says more of what is wrong than a union of types could."""


def read_inputs(
    value: Any, service: Service, prompt_name: str | None, cut: Cut, name: str = "input"
) -> tuple[Input, ...]:
    """The inputs in a text, a list of texts, token ids, or a list of these.

    Raises:
        Refusal: it is something else.
    """
    if isinstance(value, str):
        return (read_text(value, service, prompt_name, cut),)
    if not isinstance(value, list):
        raise bad_request(f"{name} is {kind_of(value)}; expected a text or token ids, or a list of these", name)
    if not value:
        return ()
    if type(value[0]) is not int:
        service.check_count(len(value))  # before millions of them take memory
    if all(type(one) is int for one in value):
        return (read_ids(value, prompt_name),)
    inputs: list[Input] = []
    for place, one in enumerate(value):
        if isinstance(one, str):
            inputs.append(read_text(one, service, prompt_name, cut))
        elif isinstance(one, list) and all(type(token) is int for token in one):
            inputs.append(read_ids(one, prompt_name))
        else:
            raise bad_request(f"{name}[{place}] is {kind_of(one)}; expected a text or a list of token ids", name)
    return tuple(inputs)


def read_text(text: str, service: Service, prompt_name: str | None, cut: Cut) -> Input:
    """A text, or the image that it writes out."""
    if text[: len(IMAGE)].lower() == IMAGE:
        return ImageInput(data_of(text))
    return TextInput(text, service.prompt(prompt_name), cut)


def read_ids(ids: Sequence[int], prompt_name: str | None) -> TokenInput:
    """Token ids, which hold their prompt already."""
    if prompt_name:
        raise bad_request(
            "token ids are taken as they are; put the prompt before the text and send this", "prompt_name"
        )
    if any(not -(2**31) <= token < 2**31 for token in ids):
        raise bad_request("a token id is no 32-bit number; ids are those of /tokenize", "input")
    return TokenInput(tuple(ids))


def data_of(uri: str) -> bytes:
    """The bytes in a `data:image/…;base64,…` URI."""
    head, comma, data = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise bad_request("an image is not of the form data:image/<type>;base64,<data>", "input", "image_broken")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request("the base64 of an image is broken", "input", "image_broken") from error


def kind_of(value: Any) -> str:
    """What a JSON value is called."""
    names = {bool: "true or false", dict: "an object", float: "a number", int: "a number", list: "a list"}
    return names.get(type(value), "null" if value is None else "a text")
