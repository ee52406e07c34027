"""A finished student as an encoder of texts, of images, and of images that a text follows; any head per call."""

# Shape legend: N rows (texts, images, or both), B rows of a batch, H hidden size, D size of a head's vectors.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from jasper_ray.config import ConfigError
from jasper_ray.encoders.base import ImageEncoder, known_dim, prompt_text
from jasper_ray.encoders.token_budget import Encode, TokenBudget
from jasper_ray.images import PIXEL_LIMIT, ImageLike, open_image
from jasper_ray.models.folder import StudentCard, load_student_folder
from jasper_ray.models.student import Student
from jasper_ray.models.tokens import Ids, TokenGroup, Tokenizing, image_opening, with_pixels
from jasper_ray.models.vision import Vision
from jasper_ray.vectors import Dtype, normalise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Texts = Sequence[str] | Sequence[str | None] | None
ImageLikes = Sequence[ImageLike] | Sequence[ImageLike | None] | None


class StudentEncoder(ImageEncoder):
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
        self.prompts = card.prompts
        self.batch_size = batch_size
        self.pixel_limit = pixel_limit

    @property
    def dims(self) -> tuple[int, ...]:
        default = self.card.default_head
        return (default, *(dim for dim in self.student.dims if dim != default))

    @property
    def accepts_images(self) -> bool:
        return self.student.vision is not None

    @property
    def vision(self) -> Vision:
        """The vision encoder."""
        if self.student.vision is None:
            raise ConfigError("this student takes no images: it has no vision/; distil one with a stage on images")
        return self.student.vision

    def encode(
        self, texts: Texts = None, prompt_name: str | None = None, dim: int | None = None, images: ImageLikes = None
    ) -> np.ndarray:
        """Return unit vectors, float32 `[N, dim]`, of texts, of images, or of both.

        With both, row i is image i followed by text i, and either may be None. An image is a path, the bytes of a file,
        or a PIL image. The prompt is put before texts, not before an image without one.

        Raises:
            ConfigError: an unknown `prompt_name` or `dim`, an image that cannot be read, or images for a student
                without vision.
        """
        dim = known_dim(self.dims, dim)
        return self._encode(texts, prompt_name, images, [dim])[dim]

    def encode_heads(
        self, texts: Texts = None, prompt_name: str | None = None, images: ImageLikes = None
    ) -> dict[int, np.ndarray]:
        """Return the vectors of every head, from one pass through the body; arguments as those of `encode`."""
        return self._encode(texts, prompt_name, images, self.dims)

    def encode_images(self, images: Sequence[ImageLike]) -> dict[int, np.ndarray]:
        return self.encode_heads(images=images)

    @torch.inference_mode()
    def pooled(self, texts: Sequence[str], prompt_name: str | None = None) -> torch.Tensor:
        """Return the body's pooled states of texts, float32 `[N, H]`, on the CPU."""
        states = self._in_batches(
            lambda ids: {0: self._pooled(self.tokenizing().group(ids)).float().cpu().numpy()}, texts, prompt_name
        )
        return torch.from_numpy(states[0])

    def tokenizing(self, prompt_name: str | None = None) -> Tokenizing:
        return Tokenizing(self.tokenizer, self.card.max_length, prompt_text(self.prompts, prompt_name))

    @torch.inference_mode()
    def encode_tokens(self, ids: Ids, dims: Sequence[int], prompt_name: str | None = None) -> dict[int, np.ndarray]:
        return self._heads(self.tokenizing().group(ids), dims)

    def image_tokenizing(self) -> Tokenizing:
        return Tokenizing(self.tokenizer, self.card.max_length, image_opening(self.vision.image_tokens))

    def pixels(self, image: ImageLike) -> np.ndarray:
        return self.vision.preprocessing.pixels(open_image(image, self.pixel_limit))

    @torch.inference_mode()
    def encode_pixels(self, ids: Ids, pixels_B3SS: np.ndarray, dims: Sequence[int]) -> dict[int, np.ndarray]:
        group = self.tokenizing().group(ids)
        pixels = torch.from_numpy(pixels_B3SS)
        return self._heads(with_pixels(self.tokenizer, group, pixels, self.vision.image_tokens), dims)

    def _encode(
        self, texts: Texts, prompt_name: str | None, images: ImageLikes, dims: Sequence[int]
    ) -> dict[int, np.ndarray]:
        rows = self._rows(texts, images)
        plain = [(place, text) for place, (text, image) in enumerate(rows) if image is None and text is not None]
        pictured = [(place, text, image) for place, (text, image) in enumerate(rows) if image is not None]
        vectors = {dim: np.empty((len(rows), dim), np.float32) for dim in dims}

        def keep(places: list[int], part: dict[int, np.ndarray]) -> None:
            for dim, vectors_BD in part.items():
                vectors[dim][places] = vectors_BD

        keep(
            [place for place, _ in plain],
            self._in_batches(lambda ids: self.encode_tokens(ids, dims), [text for _, text in plain], prompt_name),
        )
        prompt = prompt_text(self.prompts, prompt_name)
        for start in range(0, len(pictured), self.batch_size):  # each batch is decoded when it is its turn
            batch = pictured[start : start + self.batch_size]
            ids = as_ids(self.image_tokenizing()([prompt + text if text else "" for _, text, _ in batch]))
            pixels_B3SS = np.stack([self.pixels(image) for _, _, image in batch])
            keep([place for place, _, _ in batch], self.encode_pixels(ids, pixels_B3SS, dims))
        return vectors

    def _in_batches(self, encode: Encode, texts: Sequence[str], prompt_name: str | None) -> dict[int, np.ndarray]:
        """Encode texts by `batch_size`, longest first; memory that runs out halves a batch."""
        budget = TokenBudget(self.batch_size * self.card.max_length, self.batch_size)
        return budget.encode(encode, as_ids(self.tokenizing(prompt_name)(texts)))[0]

    def _rows(self, texts: Texts, images: ImageLikes) -> list[tuple[str | None, ImageLike | None]]:
        """Pair texts and images; a row has at least one of them."""
        if isinstance(texts, str) or isinstance(images, (str, bytes, Path)):
            kind, value = ("texts", texts) if isinstance(texts, str) else ("images", images)
            raise TypeError(f"found one of {kind}, {str(value)[:40]!r}, where a list was expected; put it in a list")
        if images is not None:
            _ = self.vision  # refuses a student without
        count = len(texts if texts is not None else images if images is not None else [])
        texts = [None] * count if texts is None else texts
        images = [None] * count if images is None else images
        if len(texts) != len(images):
            raise ConfigError(f"{len(texts)} texts and {len(images)} images were given; give one for each row, or None")
        rows = list(zip(texts, images, strict=True))
        if any(text is None and image is None for text, image in rows):
            raise ConfigError("a row has neither a text nor an image; give it one")
        return rows

    def _pooled(self, group: TokenGroup) -> torch.Tensor:
        return self.student.pooled(group.to(next(self.student.parameters()).device))

    def _heads(self, group: TokenGroup, dims: Sequence[int]) -> dict[int, np.ndarray]:
        pooled_BH = self._pooled(group)
        return {dim: normalise(self.student.heads[str(dim)](pooled_BH).float().cpu().numpy()) for dim in dims}


def as_ids(rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    return [np.array(row, np.int32) for row in rows]


def load_student(
    path: str | Path,
    device: str | None = None,
    dtype: Dtype = "float32",
    batch_size: int = 32,
    vision: bool = True,
    pixel_limit: int = PIXEL_LIMIT,
    max_length: int | None = None,
) -> StudentEncoder:
    """Load the student in the folder `path`. Without `vision` it takes no images and less memory.

    Images of more than `pixel_limit` pixels are refused before they are decoded. `max_length` (tokens) replaces the
    student's own.

    >>> student = load_student("runs/quickstart/student")          # doctest: +SKIP
    >>> student.encode(["a sentence"], dim=256).shape              # doctest: +SKIP
    (1, 256)
    >>> student.encode(images=["seven.png"]).shape                 # doctest: +SKIP
    (1, 384)

    Raises:
        ConfigError: the folder is not a student, or one of its files is damaged.
    """
    student, tokenizer, card = load_student_folder(path, vision)
    card = card.model_copy(update={"max_length": max_length or card.max_length})
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return StudentEncoder(student.to(device, getattr(torch, dtype)), tokenizer, card, batch_size, pixel_limit)
