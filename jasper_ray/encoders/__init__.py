"""Encoders: texts and images to unit vectors."""

from __future__ import annotations

from pathlib import Path

from jasper_ray.assets import locate
from jasper_ray.encoders.base import Encoder, HashEncoder, ImageEncoder, image_encoder
from jasper_ray.encoders.sentence_transformer import load_sentence_transformer
from jasper_ray.encoders.student import StudentEncoder, load_student
from jasper_ray.vectors import Dtype

__all__ = [
    "Encoder",
    "HashEncoder",
    "ImageEncoder",
    "StudentEncoder",
    "image_encoder",
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
    vision: bool = True,
) -> Encoder:
    """Load a student folder, or any sentence-transformers model by folder, hub id or asset name.

    `max_length` (tokens) replaces the model's own limit. Without `vision` a student takes no images and less memory.

    Raises:
        ConfigError: nothing loads from there.
    """
    location = locate(model, revision)
    if any(Path(location).glob("2_Dense_*")):
        return load_student(location, device, dtype, vision=vision, max_length=max_length)
    return load_sentence_transformer(location, revision, device=device, dtype=dtype, max_length=max_length)
