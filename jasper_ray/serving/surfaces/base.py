"""The shared parts of the surfaces: endpoints as data, and inputs as clients write them."""

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
from jasper_ray.serving.openapi import array
from jasper_ray.serving.service import Service


class Body(BaseModel):
    """A request's body; unknown fields are errors, and no text is converted to a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


@dataclass(frozen=True)
class Answer:
    """An answer: JSON that may contain arrays."""

    content: Any
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by phase, for the server-timing header."""
    tokens: int = 0


Handler = Callable[[Service, Any, Key], Awaitable[Answer]]


@dataclass(frozen=True)
class Endpoint:
    """A path, its body and its handler."""

    method: str
    path: str
    handler: Handler
    summary: str
    body: type[Body] | None = None
    answer: dict[str, Any] = field(default_factory=dict)
    """The JSON schema of the answer."""
    parameter: str | None = None
    """Name of the path's parameter in braces, if any."""


Size = Annotated[int, Field(ge=1, le=2**31)]
"""A vector's size; bounded, so that no error repeats a number of thousands of digits."""
TEXT = {"type": "string", "minLength": 1}
IDS = array({"type": "integer", "minimum": 0}, minItems=1)
Inputs = Annotated[
    Any,
    WithJsonSchema(
        {
            "description": "A text, a list of texts, token ids of /tokenize, or a list of these. "
            "A model with vision takes an image as a data URI in the place of a text.",
            "anyOf": [TEXT, array(TEXT, minItems=1), IDS, array(IDS, minItems=1)],
        }
    ),
]
"""One input or many, parsed by `read_inputs`, whose errors are clearer than those of a union of types."""


def read_inputs(
    value: Any, service: Service, prompt_name: str | None, cut: Cut, name: str = "input"
) -> tuple[Input, ...]:
    """Parse a text, a list of texts, token ids, or a list of these.

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
    for index, one in enumerate(value):
        if isinstance(one, str):
            inputs.append(read_text(one, service, prompt_name, cut))
        elif isinstance(one, list) and all(type(token) is int for token in one):
            inputs.append(read_ids(one, prompt_name))
        else:
            raise bad_request(f"{name}[{index}] is {kind_of(one)}; expected a text or a list of token ids", name)
    return tuple(inputs)


def read_text(text: str, service: Service, prompt_name: str | None, cut: Cut, max_tokens: int | None = None) -> Input:
    """Parse a text, which may be an image as a data URI."""
    if is_data_uri(text):
        return ImageInput(decode_data_uri(text))
    return TextInput(text, service.prompt(prompt_name), cut, max_tokens)


def read_ids(ids: Sequence[int], prompt_name: str | None) -> TokenInput:
    """Parse token ids, which already contain their prompt."""
    if prompt_name:
        raise bad_request("token ids take no prompt; add it to the text before /tokenize", "prompt_name")
    if any(not -(2**31) <= token < 2**31 for token in ids):
        raise bad_request("a token id is not a 32-bit number; expected ids of /tokenize", "input")
    return TokenInput(tuple(ids))


def is_data_uri(text: str) -> bool:
    return text[:11].lower() == "data:image/"


def decode_data_uri(uri: str) -> bytes:
    """Decode a `data:image/…;base64,…` URI."""
    head, comma, data = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise bad_request("an image is not of the form data:image/<type>;base64,<data>", "input", "image_broken")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request("an image has invalid base64", "input", "image_broken") from error


def kind_of(value: Any) -> str:
    """Name a JSON value's type, for errors."""
    names = {bool: "true or false", dict: "an object", float: "a number", int: "a number", list: "a list"}
    return names.get(type(value), "null" if value is None else "a text")
