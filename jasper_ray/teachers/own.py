"""The student as its own teacher: where images learn from captions, the target is what the student says of these."""

# Shape legend: B rows, D size of one head's vectors, E sizes of all heads together.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from jasper_ray.encoders import StudentEncoder, load_student
from jasper_ray.encoders.precision import precise
from jasper_ray.resources import TeacherPool
from jasper_ray.teachers.target import check_vectors
from jasper_ray.vectors import Precision

OWN = "own"
"""Names the student as teacher in columns."""


@dataclass(frozen=True)
class OwnTeacher:
    """The student in a folder, which no training touches while it teaches."""

    name: ClassVar[str] = OWN
    folder: Path
    pool: TeacherPool
    dtype: Precision = "auto"
    batch_size: int = 32

    def open(self, device: str | None = None) -> OwnEncoder:
        """The student, loaded; heavy."""
        return OwnEncoder(load_student(self.folder, device, precise(self.dtype, device), self.batch_size, sight=False))


class OwnEncoder:
    """All heads' vectors of a text, side by side."""

    def __init__(self, student: StudentEncoder) -> None:
        self.student = student

    def encode_mixed(self, texts: Sequence[str], prompt_names: Sequence[str | None]) -> np.ndarray:
        """Vectors `[B, E]` of texts that each have their own prompt name, or none; equal rows are encoded once."""
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
    """Each head's unit vectors, float32, of rows in which they stand side by side in the order of `dims`."""
    parts = vectors_BE.float().split(list(dims), dim=1)
    return {dim: torch.nn.functional.normalize(part_BD, dim=1) for dim, part_BD in zip(dims, parts, strict=True)}
