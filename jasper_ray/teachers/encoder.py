"""Loaded teachers as encoders: one teacher, several as an ensemble, and the student as teacher of captions."""

# Shape legend: B rows, D size of one teacher's or one head's vectors, E sizes of all heads together.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from jasper_ray.encoders import Encoder, StudentEncoder, load_student
from jasper_ray.encoders.base import known_dim
from jasper_ray.encoders.precision import precise
from jasper_ray.resources import TeacherPool
from jasper_ray.teachers.target import check_vectors, fuse, truncate_dims
from jasper_ray.vectors import Precision

if TYPE_CHECKING:
    from jasper_ray.teachers.settings import Teacher

OWN = "own"
"""Names the student, as teacher of captions, in columns and caches."""


class TeacherEncoder(Encoder):
    """A loaded teacher with its own prompts and truncation, whose vectors are checked."""

    def __init__(self, teacher: Teacher, model: Encoder) -> None:
        self.teacher = teacher
        self.model = model
        self.prompts = teacher.prompts

    @property
    def dims(self) -> tuple[int, ...]:
        return (self.teacher.truncate or self.model.dims[0],)

    def encode(self, texts: Sequence[str], prompt_name: str | None = None, dim: int | None = None) -> np.ndarray:
        """See `Encoder.encode`."""
        known_dim(self.dims, dim)
        return self.encode_mixed(texts, [prompt_name] * len(texts))

    def encode_mixed(self, texts: Sequence[str], prompt_names: Sequence[str | None]) -> np.ndarray:
        """Encode texts that each have their own prompt name, or none, as unit vectors `[B, D]`."""
        prompts = [self.teacher.prompt_text(name) for name in prompt_names]
        vectors_BD = np.empty((len(texts), self.model.dims[0]), np.float32)
        for prompt in sorted(set(prompts)):
            rows = [row for row, own in enumerate(prompts) if own == prompt]
            read = [texts[row] + self.teacher.suffix for row in rows]
            part_ND = self.model.encode(read, prompt)
            check_vectors(part_ND, read, self.teacher.name, self.teacher.declared_dim)
            vectors_BD[rows] = part_ND
        if self.teacher.truncate is not None:
            vectors_BD = truncate_dims(vectors_BD, self.teacher.truncate, self.teacher.name)
            check_vectors(vectors_BD, texts, self.teacher.name, self.teacher.truncate)
        return vectors_BD


class Ensemble(Encoder):
    """Several teachers as one encoder, whose vectors are the target."""

    def __init__(self, teachers: Sequence[TeacherEncoder]) -> None:
        self.teachers = teachers
        self.prompts = {name: text for teacher in teachers for name, text in teacher.prompts.items()}

    @property
    def dims(self) -> tuple[int, ...]:
        return (sum(teacher.dims[0] for teacher in self.teachers),)

    def encode(self, texts: Sequence[str], prompt_name: str | None = None, dim: int | None = None) -> np.ndarray:
        """See `Encoder.encode`."""
        known_dim(self.dims, dim)
        columns = [torch.from_numpy(teacher.encode(texts, prompt_name)) for teacher in self.teachers]
        return fuse(columns, [teacher.teacher.weight for teacher in self.teachers]).numpy()


@dataclass(frozen=True)
class CaptionTeacher:
    """The frozen student as teacher of images: the target of an image is its caption's vector."""

    name: ClassVar[str] = OWN
    folder: Path
    pool: TeacherPool
    dtype: Precision = "auto"
    batch_size: int = 32

    def open(self, device: str | None = None) -> CaptionEncoder:
        """Load the student without its vision encoder."""
        dtype = precise(self.dtype, device)
        return CaptionEncoder(load_student(self.folder, device, dtype, self.batch_size, vision=False))


class CaptionEncoder:
    """A student that encodes captions: the vectors of all heads, side by side."""

    def __init__(self, student: StudentEncoder) -> None:
        self.student = student

    def encode_mixed(self, texts: Sequence[str], prompt_names: Sequence[str | None]) -> np.ndarray:
        """Encode texts that each have their own prompt name, or none, as `[B, E]`; equal rows are encoded once."""
        rows: dict[str | None, dict[str, int]] = {}
        for text, prompt in zip(texts, prompt_names, strict=True):
            known = rows.setdefault(prompt, {})
            known.setdefault(text, len(known))
        encoded = {prompt: self.side_by_side(list(known), prompt) for prompt, known in rows.items()}
        return np.stack([encoded[p][rows[p][text]] for text, p in zip(texts, prompt_names, strict=True)])

    def side_by_side(self, texts: Sequence[str], prompt: str | None) -> np.ndarray:
        heads = self.student.encode_heads(texts, prompt)
        for dim, vectors_BD in heads.items():
            check_vectors(vectors_BD, texts, f"{OWN} head {dim}", dim)
        return np.concatenate([heads[dim] for dim in self.student.student.dims], axis=1)


def split_heads(vectors_BE: Tensor, dims: Sequence[int]) -> dict[int, Tensor]:
    """Split rows that hold the vectors of heads side by side, in the order of `dims`, into float32 unit vectors."""
    parts = vectors_BE.float().split(list(dims), dim=1)
    return {dim: torch.nn.functional.normalize(part_BD, dim=1) for dim, part_BD in zip(dims, parts, strict=True)}
