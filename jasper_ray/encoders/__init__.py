"""Encoders: texts to unit vectors."""

from __future__ import annotations

from pathlib import Path

from jasper_ray.assets import locate
from jasper_ray.encoders.base import Encoder
from jasper_ray.encoders.hashing import HashEncoder
from jasper_ray.encoders.sentence_transformer import SentenceTransformerEncoder, load_sentence_transformer
from jasper_ray.encoders.student import StudentEncoder, load_student
from jasper_ray.vectors import Dtype

__all__ = [
    "Encoder",
    "HashEncoder",
    "SentenceTransformerEncoder",
    "StudentEncoder",
    "load_encoder",
    "load_sentence_transformer",
    "load_student",
]


def load_encoder(model: str, device: str | None = None, dtype: Dtype = "float32") -> Encoder:
    """A student folder with all its heads, or any sentence-transformers model by folder, hub id or asset name.

    Raises:
        ConfigError: nothing loads from there.
    """
    location = locate(model)
    if any(Path(location).glob("2_Dense_*")):
        return load_student(location, device, dtype)
    return load_sentence_transformer(location, device=device, dtype=dtype)
