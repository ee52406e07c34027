"""Encoders: texts to unit vectors."""

from __future__ import annotations

from pathlib import Path

from jasper_ray.assets import locate
from jasper_ray.encoders.base import Encoder, TokenEncoder
from jasper_ray.encoders.hashing import HashEncoder
from jasper_ray.encoders.sentence_transformer import SentenceTransformerEncoder, load_sentence_transformer
from jasper_ray.encoders.student import StudentEncoder, load_student
from jasper_ray.vectors import Dtype

__all__ = [
    "Encoder",
    "HashEncoder",
    "SentenceTransformerEncoder",
    "StudentEncoder",
    "TokenEncoder",
    "load_encoder",
    "load_sentence_transformer",
    "load_student",
]


def load_encoder(
    model: str,
    device: str | None = None,
    dtype: Dtype = "float32",
    *,
    revision: str | None = None,
    max_length: int | None = None,
    sight: bool = True,
) -> TokenEncoder:
    """A student folder with all its heads, or any sentence-transformers model by folder, hub id or asset name.

    `max_length` (tokens) replaces the model's own limit; without `sight` a student's vision takes no memory.

    Raises:
        ConfigError: nothing loads from there.
    """
    location = locate(model, revision)
    if not any(Path(location).glob("2_Dense_*")):
        return load_sentence_transformer(location, revision, device=device, dtype=dtype, max_length=max_length)
    student = load_student(location, device, dtype, sight=sight)
    if max_length:
        student.card = student.card.model_copy(update={"max_length": max_length})
    return student
