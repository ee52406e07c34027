"""Inputs on their way to the model: texts become tokens, files pixels, in threads of their own."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jasper_ray.config import ConfigError
from jasper_ray.encoders import StudentEncoder, TokenEncoder
from jasper_ray.encoders.base import prompt_text
from jasper_ray.images import BadImage
from jasper_ray.models.tokenizing import Tokenizing
from jasper_ray.serving.errors import Refusal, bad_request, check_size, too_large
from jasper_ray.serving.inputs import ImageInput, Input, Prepared, TextInput, TokenInput
from jasper_ray.serving.settings import Limits

HERE_CHARS = 2000
"""Up to so many characters are read at once, without the way to another thread and back, which takes longer."""


class Preparer:
    """Inputs of a request become what the model takes; each thread has tokenizers of its own, since one that is used
    by two at once fails."""

    def __init__(self, encoder: TokenEncoder, limits: Limits, threads: int) -> None:
        tokenizing = encoder.tokenizing()
        if tokenizing is None:
            raise ConfigError("this model takes texts and no tokens, and cannot be served; give a student or another")
        self.encoder = encoder
        self.limits = limits
        self.tokenizing = tokenizing
        self.vocabulary = len(tokenizing.tokenizer)
        self._threads = ThreadPoolExecutor(threads, "tokenizer")
        self._eyes = ThreadPoolExecutor(threads, "images")
        """Images take a second at worst; no text waits for them."""
        self._own = threading.local()

    @property
    def max_length(self) -> int:
        """Tokens a text may have."""
        return self.tokenizing.max_length

    async def prepare(self, inputs: Sequence[Input]) -> list[Prepared]:
        """What the model takes, in the order of `inputs`.

        Raises:
            Refusal: the first input that is wrong, and its place.
        """
        texts = all(isinstance(one, (TextInput, TokenInput)) for one in inputs)
        if texts and sum(len(one.text) for one in inputs if isinstance(one, TextInput)) <= HERE_CHARS:
            return self.prepared(inputs)
        threads = self._threads if texts else self._eyes
        return await asyncio.get_running_loop().run_in_executor(threads, self.prepared, inputs)

    def prepared(self, inputs: Sequence[Input]) -> list[Prepared]:
        """`prepare`, in this thread."""
        found: list[Prepared | None] = [None] * len(inputs)
        for name in {one.prompt_name for one in inputs if isinstance(one, TextInput)}:
            places = [i for i, one in enumerate(inputs) if isinstance(one, TextInput) and one.prompt_name == name]
            texts = [one for one in inputs if isinstance(one, TextInput) and one.prompt_name == name]
            for place, ready in zip(places, self._texts(texts, places, name), strict=True):
                found[place] = ready
        for place, one in enumerate(inputs):
            if isinstance(one, TokenInput):
                found[place] = self._tokens(one, place)
            elif isinstance(one, ImageInput):
                found[place] = self._image(one, place)
        return [ready for ready in found if ready is not None]

    def _texts(self, texts: Sequence[TextInput], places: Sequence[int], name: str | None) -> list[Prepared]:
        rows = self._ids(self._with_prompt(name), texts, places)
        return [Prepared(np.array(ids, np.int32), len(ids), prompt_name=name) for ids in rows]

    def _ids(
        self, tokenizing: Tokenizing, texts: Sequence[TextInput], places: Sequence[int]
    ) -> Iterator[Sequence[int]]:
        for one, place in zip(texts, places, strict=True):
            self._check_chars(one.text, place)
        rows = tokenizing([one.text for one in texts], truncate=False)
        for one, ids, place in zip(texts, rows, places, strict=True):
            room = min(self.max_length, one.max_tokens or self.max_length)
            short = dataclasses.replace(tokenizing, max_length=room)
            yield ids if len(ids) <= room else cut_text(short, one, len(ids), place)

    def _check_chars(self, text: str, place: int) -> None:
        if len(text) > self.limits.text_chars:
            raise too_large(
                f"input {place} has {len(text)} characters; at most {self.limits.text_chars} are read",
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
        assert isinstance(self.encoder, StudentEncoder)
        try:
            pixels_3SS = self.encoder.pixels(one.data)
        except BadImage as error:
            raise bad_request(f"input {place}: {error}", "input", f"image_{error.reason}") from error
        [ids] = self._ids(self._with_image(self.encoder.image_tokenizing(), one.after, place), [one.after], [place])
        return Prepared(np.array(ids, np.int32), len(ids), pixels_3SS)

    def _with_image(self, image: Tokenizing, after: TextInput, place: int) -> Tokenizing:
        tokenizing = self._of_this_thread("image", image)
        alone = len(tokenizing([""])[0])
        if after.max_tokens is not None and after.max_tokens < alone:
            message = f"input {place} is an image, which takes {alone} tokens, and max_tokens is {after.max_tokens}"
            raise bad_request(f"{message}; raise it, or leave it out", "max_tokens")
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
        found: Tokenizing = getattr(self._own, kind)
        return found

    async def tokens(
        self, texts: Sequence[str], prompt_name: str | None, special: bool
    ) -> list[list[dict[str, object]]]:
        """For each text behind the prompt its tokens: id, text, special, start and stop (characters).

        Raises:
            Refusal: the prompt is unknown, or there are more characters or tokens than a request may have.
        """
        self._with_prompt(prompt_name)  # an unknown one is refused here
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._told, texts, prompt_name, special)

    def _told(self, texts: Sequence[str], prompt_name: str | None, special: bool) -> list[list[dict[str, object]]]:
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
        for threads in (self._threads, self._eyes):
            threads.shutdown(wait=False, cancel_futures=True)


def cut_text(tokenizing: Tokenizing, one: TextInput, length: int, place: int) -> list[int]:
    """The ids of a text that is too long, as many as `tokenizing` allows, or a refusal."""
    if one.cut is None:
        raise too_long(length, tokenizing.max_length, place)
    return without_start(tokenizing, one.text) if one.cut == "start" else tokenizing([one.text])[0]


def without_start(tokenizing: Tokenizing, text: str) -> list[int]:
    """The ids of prompt and text without the text's first ones, as many as are too many.

    Ids are left out, not characters: the rest of a word may have other ids, and more, where it stands alone.
    """
    found = tokenizing.tokenizer(
        tokenizing.prompt + text,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        truncation=False,
        verbose=False,
    )
    ids: list[int] = found["input_ids"]
    marks = zip(found["offset_mapping"], found["special_tokens_mask"], strict=True)
    own = [place for place, ((_, stop), mask) in enumerate(marks) if stop > len(tokenizing.prompt) and not mask]
    excess = len(ids) - tokenizing.max_length
    if excess >= len(own):  # the prompt alone fills the room
        return tokenizing([text])[0]
    return ids[: own[0]] + ids[own[0] + excess :]


def too_long(length: int, room: int, place: int) -> Refusal:
    return too_large(
        f"input {place} has {length} tokens and {room} are allowed; shorten it, or ask for it to be cut",
        "input",
        "context_length_exceeded",
    )
