"""A finished student as an encoder: of texts, of images, of images that a text follows; any head at every call."""

# Shape legend: N rows (texts, images, or both), B rows of a group, H hidden size, D size of a head's vectors.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from jasper_ray.config import ConfigError
from jasper_ray.encoders.base import known_dim, prompt_text, with_prompt
from jasper_ray.images import PIXEL_LIMIT, Picture, open_picture
from jasper_ray.models.folder import StudentCard, load_student_folder
from jasper_ray.models.student import Student
from jasper_ray.models.tokenizing import Ids, Tokenizing
from jasper_ray.models.tokens import TokenGroup, image_groups, length_groups, opening, with_pixels
from jasper_ray.vectors import Dtype, normalise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Texts = Sequence[str] | Sequence[str | None] | None
Pictures = Sequence[Picture | None] | None


class StudentEncoder:
    """A student in inference; `dims` lists its heads, the default one first."""

    def __init__(
        self,
        student: Student,
        tokenizer: PreTrainedTokenizerBase,
        card: StudentCard,
        batch_size: int = 32,
        pixel_limit: int = PIXEL_LIMIT,
    ) -> None:
        self.student = student.eval()
        self.tokenizer = tokenizer
        self.card = card
        self.batch_size = batch_size
        self.pixel_limit = pixel_limit

    @property
    def dims(self) -> tuple[int, ...]:
        default = self.card.default_head
        return (default, *(dim for dim in self.student.dims if dim != default))

    @property
    def prompts(self) -> Mapping[str, str]:
        return self.card.prompts

    @property
    def default_prompt(self) -> str | None:
        return None

    @property
    def pools_prompts(self) -> bool:
        return True

    @property
    def sees(self) -> bool:
        """Whether it takes images."""
        return self.student.vision is not None

    def encode(
        self, texts: Texts = None, prompt_name: str | None = None, dim: int | None = None, images: Pictures = None
    ) -> np.ndarray:
        """Unit vectors, float32 `[N, dim]`, of texts, of images, or of both: row i is then image i followed by text i,
        and either may be None.

        An image is a path, the bytes of a file, or a PIL image. The prompt stands before texts, not before an image
        without one.

        Raises:
            ConfigError: an unknown `prompt_name` or `dim`, an image that cannot be read, or images for a student that
                was not taught to see.
        """
        dim = known_dim(self.dims, dim)
        return self._heads(self.pooled(texts, prompt_name, images), [dim])[dim]

    def encode_heads(
        self, texts: Texts = None, prompt_name: str | None = None, images: Pictures = None
    ) -> dict[int, np.ndarray]:
        """The vectors of every head, from one pass through the body; arguments as those of `encode`."""
        return self._heads(self.pooled(texts, prompt_name, images), self.dims)

    @torch.inference_mode()
    def pooled(self, texts: Texts = None, prompt_name: str | None = None, images: Pictures = None) -> torch.Tensor:
        """The pooled states `[N, H]` that every head reads, in the body's precision."""
        rows = self._rows(texts, images)
        prompted = with_prompt([text or "" for text, _ in rows], self.prompts, prompt_name)
        device = next(self.student.parameters()).device
        pooled_NH = torch.empty(len(rows), self.student.body.config.hidden_size, dtype=self.student.body.dtype)
        pooled_NH = pooled_NH.to(device)
        for group, places_B in self._groups(rows, prompted):
            pooled_NH[places_B.to(device)] = self.student.pooled(group.to(device))
        return pooled_NH

    def tokenizing(self, prompt_name: str | None = None) -> Tokenizing:
        """See `TokenEncoder.tokenizing`."""
        return Tokenizing(self.tokenizer, self.card.max_length, prompt_text(self.prompts, prompt_name))

    @torch.inference_mode()
    def encode_tokens(self, ids: Ids, dims: Sequence[int], prompt_name: str | None = None) -> dict[int, np.ndarray]:
        """See `TokenEncoder.encode_tokens`."""
        ids_BT, mask_BT = self.tokenizing().padded(ids)
        group = TokenGroup(torch.from_numpy(ids_BT), torch.from_numpy(mask_BT))
        return self._heads(self.student.pooled(group.to(next(self.student.parameters()).device)), dims)

    def image_tokenizing(self) -> Tokenizing:
        """How the text after an image becomes tokens: its ids begin with those that stand for the image."""
        image_tokens, max_length = self._image_room
        return Tokenizing(self.tokenizer, max_length, opening(image_tokens))

    def pixels(self, picture: Picture) -> np.ndarray:
        """What the tower reads of an image: uint8 `[3, S, S]`.

        Raises:
            BadImage: there are no pixels to be had of it.
        """
        assert self.student.vision is not None
        return self.student.vision.preprocessing.pixels(open_picture(picture, self.pixel_limit))

    @torch.inference_mode()
    def encode_pixels(self, ids: Ids, pixels_B3SS: np.ndarray, dims: Sequence[int]) -> dict[int, np.ndarray]:
        """Unit vectors, float32 `[B, D]` for each D of `dims`, in one pass of one batch of images, with what
        `image_tokenizing` made of the texts after them."""
        ids_BT, mask_BT = self.tokenizing().padded(ids)
        group = TokenGroup(torch.from_numpy(ids_BT), torch.from_numpy(mask_BT))
        seen = with_pixels(self.tokenizer, group, torch.from_numpy(pixels_B3SS), self._image_room[0])
        return self._heads(self.student.pooled(seen.to(next(self.student.parameters()).device)), dims)

    def _rows(self, texts: Texts, images: Pictures) -> list[tuple[str | None, Picture | None]]:
        """A text, an image, or both, for every row; raises `ConfigError` where a row has neither."""
        if isinstance(texts, str) or isinstance(images, (str, bytes, Path)):
            kind, what = ("texts", texts) if isinstance(texts, str) else ("images", images)
            raise TypeError(f"found one of {kind}, {str(what)[:40]!r}, where a list was expected; put it in a list")
        if images is not None and not self.sees:
            raise ConfigError("this student takes no images: it has no vision/; distil one with a stage on images")
        count = len(texts if texts is not None else images if images is not None else [])
        texts = [None] * count if texts is None else texts
        images = [None] * count if images is None else images
        if len(texts) != len(images):
            raise ConfigError(f"{len(texts)} texts and {len(images)} images were given; give one for each row, or None")
        rows = list(zip(texts, images, strict=True))
        if (None, None) in [(text, None if image is None else 0) for text, image in rows]:
            raise ConfigError("a row has neither a text nor an image; give it one")
        return rows

    def _groups(
        self, rows: Sequence[tuple[str | None, Picture | None]], prompted: Sequence[str]
    ) -> Iterator[tuple[TokenGroup, torch.Tensor]]:
        """What the body sees at once, and which rows these are: texts by length, then images, decoded in time."""
        texts = [row for row, (_, image) in enumerate(rows) if image is None]
        if texts:
            groups, order = length_groups(
                self.tokenizer, [prompted[row] for row in texts], self.card.max_length, self.batch_size
            )
            yield from in_rows(groups, torch.tensor(texts)[order])
        seen = [row for row, (_, image) in enumerate(rows) if image is not None]
        for start in range(0, len(seen), self.batch_size):
            batch = seen[start : start + self.batch_size]
            after = [prompted[row] if rows[row][0] else "" for row in batch]
            groups, order = image_groups(
                self.tokenizer, after, self._pixels([rows[row][1] for row in batch]), *self._image_room, len(batch)
            )
            yield from in_rows(groups, torch.tensor(batch)[order])

    @property
    def _image_room(self) -> tuple[int, int]:
        """Tokens of an image, and of a row."""
        assert self.student.vision is not None
        return self.student.vision.image_tokens, self.card.max_length

    def _pixels(self, pictures: Sequence[Picture | None]) -> torch.Tensor:
        return torch.from_numpy(np.stack([self.pixels(picture) for picture in pictures if picture is not None]))

    @torch.inference_mode()
    def _heads(self, pooled_NH: torch.Tensor, dims: Sequence[int]) -> dict[int, np.ndarray]:
        return {dim: normalise(self.student.heads[str(dim)](pooled_NH).float().cpu().numpy()) for dim in dims}


def in_rows(groups: Sequence[TokenGroup], places_N: torch.Tensor) -> Iterator[tuple[TokenGroup, torch.Tensor]]:
    """Each group with its share of `places_N`."""
    start = 0
    for group in groups:
        rows = len(group.ids_BT)
        yield group, places_N[start : start + rows]
        start += rows


def load_student(
    path: str | Path,
    device: str | None = None,
    dtype: Dtype = "float32",
    batch_size: int = 32,
    sight: bool = True,
    pixel_limit: int = PIXEL_LIMIT,
) -> StudentEncoder:
    """The student in the folder `path`, ready to encode; without `sight` its vision takes no memory.

    Images of more than `pixel_limit` pixels are refused before they are decoded.

    >>> student = load_student("runs/quickstart/student")          # doctest: +SKIP
    >>> student.encode(["a sentence"], dim=256).shape              # doctest: +SKIP
    (1, 256)
    >>> student.encode(images=["seven.png"]).shape                 # doctest: +SKIP
    (1, 384)

    Raises:
        ConfigError: the folder is not a student, or a file of it is damaged.
    """
    student, tokenizer, card = load_student_folder(path, sight)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return StudentEncoder(student.to(device, getattr(torch, dtype)), tokenizer, card, batch_size, pixel_limit)
