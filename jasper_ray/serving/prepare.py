"""Preparation of inputs for the model: texts become tokens and files pixels, in threads of their own."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jasper_ray.config import ConfigError
from jasper_ray.encoders import Encoder, image_encoder
from jasper_ray.encoders.base import prompt_text
from jasper_ray.images import BadImage
from jasper_ray.models.tokens import Tokenizing
from jasper_ray.serving.errors import Refusal, bad_request, check_size, too_large
from jasper_ray.serving.inputs import ImageInput, Input, Prepared, TextInput, TokenInput
from jasper_ray.serving.settings import Limits

INLINE_CHARS = 2000
"""Most characters that are tokenised inline: another thread takes longer."""


class Preparer:
    """Prepares the inputs of requests. Each thread has its own tokenizers, since one tokenizer fails in two threads."""

    def __init__(self, encoder: Encoder, limits: Limits, threads: int) -> None:
        tokenizing = encoder.tokenizing()
        if tokenizing is None:
            raise ConfigError("this model takes only texts, not tokens, and cannot be served; give another one")
        self.encoder = encoder
        self.limits = limits
        self.tokenizing = tokenizing
        self.vocabulary = len(tokenizing.tokenizer)
        self._threads = ThreadPoolExecutor(threads, "tokenizer")
        self._image_threads = ThreadPoolExecutor(threads, "images")
        """Separate pool: an image can take a second to decode."""
        self._own = threading.local()

    @property
    def max_length(self) -> int:
        """Longest text, in tokens."""
        return self.tokenizing.max_length

    async def prepare(self, inputs: Sequence[Input]) -> list[Prepared]:
        """Prepare inputs, in their order.

        Raises:
            Refusal: the first wrong input, and its place.
        """
        texts = all(isinstance(one, (TextInput, TokenInput)) for one in inputs)
        if texts and sum(len(one.text) for one in inputs if isinstance(one, TextInput)) <= INLINE_CHARS:
            return self.prepared(inputs)
        threads = self._threads if texts else self._image_threads
        return await asyncio.get_running_loop().run_in_executor(threads, self.prepared, inputs)

    def prepared(self, inputs: Sequence[Input]) -> list[Prepared]:
        """Prepare inputs in this thread."""
        prepared: list[Prepared | None] = [None] * len(inputs)
        for name in {one.prompt_name for one in inputs if isinstance(one, TextInput)}:
            texts = {i: one for i, one in enumerate(inputs) if isinstance(one, TextInput) and one.prompt_name == name}
            rows = self._ids(self._with_prompt(name), list(texts.values()), list(texts))
            for place, ids in zip(texts, rows, strict=True):
                prepared[place] = Prepared(np.array(ids, np.int32), len(ids), prompt_name=name)
        for place, one in enumerate(inputs):
            if isinstance(one, TokenInput):
                prepared[place] = self._tokens(one, place)
            elif isinstance(one, ImageInput):
                prepared[place] = self._image(one, place)
        return [each for each in prepared if each is not None]

    def _ids(
        self, tokenizing: Tokenizing, texts: Sequence[TextInput], places: Sequence[int]
    ) -> Iterator[Sequence[int]]:
        for one, place in zip(texts, places, strict=True):
            self._check_chars(one.text, place)
        rows = tokenizing([one.text for one in texts], truncate=False)
        for one, ids, place in zip(texts, rows, places, strict=True):
            room = min(self.max_length, one.max_tokens or self.max_length)
            short = dataclasses.replace(tokenizing, max_length=room)
            yield ids if len(ids) <= room else truncated(short, one, len(ids), place)

    def _check_chars(self, text: str, place: int) -> None:
        if len(text) > self.limits.text_chars:
            raise too_large(
                f"input {place} has {len(text)} characters; at most {self.limits.text_chars} are allowed",
                "input",
                "text_too_long",
            )

    def _tokens(self, one: TokenInput, place: int) -> Prepared:
        if len(one.ids) > self.max_length:
            raise too_long(len(one.ids), self.max_length, place)
        if max(one.ids) >= self.vocabulary or min(one.ids) < 0:
            raise bad_request(
                f"input {place} has a token id outside of 0 to {self.vocabulary - 1}; ids are those of /tokenize",
                "input",
            )
        return Prepared(np.array(one.ids, np.int32), len(one.ids))

    def _image(self, one: ImageInput, place: int) -> Prepared:
        encoder = image_encoder(self.encoder)
        try:
            pixels_3SS = encoder.pixels(one.data)
        except BadImage as error:
            raise bad_request(f"input {place}: {error}", "input", f"image_{error.reason}") from error
        [ids] = self._ids(self._with_image(encoder.image_tokenizing(), one.after, place), [one.after], [place])
        return Prepared(np.array(ids, np.int32), len(ids), pixels_3SS)

    def _with_image(self, image: Tokenizing, after: TextInput, place: int) -> Tokenizing:
        tokenizing = self._of_this_thread("image", image)
        alone = len(tokenizing([""])[0])
        if after.max_tokens is not None and after.max_tokens < alone:
            message = f"input {place} is an image, which takes {alone} tokens, and max_tokens is {after.max_tokens}"
            raise bad_request(f"{message}; raise or remove it", "max_tokens")
        prompt = self._with_prompt(after.prompt_name).prompt if after.text else ""
        return dataclasses.replace(tokenizing, prompt=tokenizing.prompt + prompt)

    def _with_prompt(self, name: str | None) -> Tokenizing:
        try:
            prompt = prompt_text(self.encoder.prompts, name)
        except ConfigError as error:
            raise bad_request(str(error), "prompt_name") from error
        return dataclasses.replace(self._of_this_thread("text", self.tokenizing), prompt=prompt)

    def _of_this_thread(self, kind: str, tokenizing: Tokenizing) -> Tokenizing:
        if not hasattr(self._own, kind):
            own = dataclasses.replace(tokenizing, tokenizer=copy.deepcopy(tokenizing.tokenizer))
            setattr(self._own, kind, own)
        own = getattr(self._own, kind)
        assert isinstance(own, Tokenizing)
        return own

    async def tokens(
        self, texts: Sequence[str], prompt_name: str | None, special: bool
    ) -> list[list[dict[str, object]]]:
        """List the tokens of each text after the prompt: id, text, special, start and stop (characters).

        Raises:
            Refusal: the prompt is unknown, or there are more characters or tokens than a request may have.
        """
        self._with_prompt(prompt_name)  # an unknown one is refused here
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._listed, texts, prompt_name, special)

    def _listed(self, texts: Sequence[str], prompt_name: str | None, special: bool) -> list[list[dict[str, object]]]:
        for place, text in enumerate(texts):
            self._check_chars(text, place)
        tokenizing = self._with_prompt(prompt_name)
        prompted = [tokenizing.prompt + text for text in texts]
        found = tokenizing.tokenizer(
            prompted,
            add_special_tokens=special,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            truncation=False,
            verbose=False,
        )
        check_size(sum(map(len, found["input_ids"])), self.limits.request_tokens)
        rows = zip(prompted, found["input_ids"], found["offset_mapping"], found["special_tokens_mask"], strict=True)
        return [
            [
                {
                    "id": token,
                    "text": tokenizing.tokenizer.convert_ids_to_tokens(token) if mask else text[start:stop],
                    "special": bool(mask),
                    "start": start,
                    "stop": stop,
                }
                for token, (start, stop), mask in zip(ids, offsets, masks, strict=True)
            ]
            for text, ids, offsets, masks in rows
        ]

    def close(self) -> None:
        """End the threads."""
        for threads in (self._threads, self._image_threads):
            threads.shutdown(wait=False, cancel_futures=True)


def truncated(tokenizing: Tokenizing, one: TextInput, length: int, place: int) -> list[int]:
    """Truncate the ids of a text that is too long.

    Raises:
        Refusal: the input does not allow it.
    """
    if one.cut is None:
        raise too_long(length, tokenizing.max_length, place)
    return without_start(tokenizing, one.text) if one.cut == "start" else tokenizing([one.text])[0]


def without_start(tokenizing: Tokenizing, text: str) -> list[int]:
    """Remove the text's first ids, but not the prompt's, until the rest fits.

    Ids are removed, not characters: the rest of a word alone may have other and more ids.
    """
    encoded = tokenizing.tokenizer(
        tokenizing.prompt + text,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        truncation=False,
        verbose=False,
    )
    ids: list[int] = encoded["input_ids"]
    marks = zip(encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
    own = [place for place, ((_, stop), mask) in enumerate(marks) if stop > len(tokenizing.prompt) and not mask]
    excess = len(ids) - tokenizing.max_length
    if excess >= len(own):  # the prompt alone fills the room
        return tokenizing([text])[0]
    return ids[: own[0]] + ids[own[0] + excess :]


def too_long(length: int, room: int, place: int) -> Refusal:
    return too_large(
        f"input {place} has {length} tokens and {room} are allowed; shorten it, or request truncation",
        "input",
        "context_length_exceeded",
    )
