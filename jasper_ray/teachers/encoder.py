"""Loaded teachers as encoders: one by itself, and all of them together."""

# Shape legend: B rows, D size of one teacher's vectors.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from jasper_ray.encoders import Encoder
from jasper_ray.encoders.base import known_dim
from jasper_ray.teachers.settings import Teacher
from jasper_ray.teachers.target import check_vectors, cut, fuse


class TeacherEncoder:
    """A loaded teacher as the target sees it: its own prompts, its truncation, and its vectors checked at the door."""

    def __init__(self, teacher: Teacher, model: Encoder) -> None:
        self.teacher = teacher
        self.model = model
        self.prompts = teacher.prompts

    @property
    def dims(self) -> tuple[int, ...]:
        return (self.teacher.truncate or self.model.dims[0],)

    @property
    def sees(self) -> bool:
        return False

    def encode(self, texts: Sequence[str], prompt_name: str | None = None, dim: int | None = None) -> np.ndarray:
        """See `Encoder.encode`."""
        known_dim(self.dims, dim)
        return self.encode_mixed(texts, [prompt_name] * len(texts))

    def encode_heads(self, texts: Sequence[str], prompt_name: str | None = None) -> dict[int, np.ndarray]:
        """See `Encoder.encode_heads`."""
        return {self.dims[0]: self.encode(texts, prompt_name)}

    def encode_mixed(self, texts: Sequence[str], prompt_names: Sequence[str | None]) -> np.ndarray:
        """Unit vectors `[B, D]` of texts that each have their own prompt name, or none."""
        prompts = [self.teacher.prompt_text(name) for name in prompt_names]
        vectors_BD = np.empty((len(texts), self.model.dims[0]), np.float32)
        for prompt in sorted(set(prompts)):
            rows = [row for row, own in enumerate(prompts) if own == prompt]
            read = [texts[row] + self.teacher.suffix for row in rows]
            part_ND = self.model.encode(read, prompt)
            check_vectors(part_ND, read, self.teacher.name, getattr(self.teacher, "dim", None))
            vectors_BD[rows] = part_ND
        if self.teacher.truncate is not None:
            vectors_BD = cut(vectors_BD, self.teacher.truncate, self.teacher.name)
            check_vectors(vectors_BD, texts, self.teacher.name, self.teacher.truncate)
        return vectors_BD


def open_teacher(teacher: Teacher, device: str | None = None) -> TeacherEncoder:
    """Its model, loaded, with the guards at its door; heavy."""
    return TeacherEncoder(teacher, teacher.load(device))


class Together:
    """Several teachers as one encoder: what a perfect student would be."""

    def __init__(self, teachers: Sequence[TeacherEncoder]) -> None:
        self.teachers = teachers
        self.prompts = {name: text for teacher in teachers for name, text in teacher.prompts.items()}

    @property
    def dims(self) -> tuple[int, ...]:
        return (sum(teacher.dims[0] for teacher in self.teachers),)

    @property
    def sees(self) -> bool:
        return False

    def encode(self, texts: Sequence[str], prompt_name: str | None = None, dim: int | None = None) -> np.ndarray:
        """See `Encoder.encode`."""
        known_dim(self.dims, dim)
        columns = [torch.from_numpy(teacher.encode(texts, prompt_name)) for teacher in self.teachers]
        return fuse(columns, [teacher.teacher.weight for teacher in self.teachers]).numpy()

    def encode_heads(self, texts: Sequence[str], prompt_name: str | None = None) -> dict[int, np.ndarray]:
        """See `Encoder.encode_heads`."""
        return {self.dims[0]: self.encode(texts, prompt_name)}
