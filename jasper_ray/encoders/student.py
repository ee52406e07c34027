"""A finished student as an encoder, with a choice of head at every call."""

# Shape legend: N texts, B rows of a group, H hidden size, D size of a head's vectors.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from jasper_ray.encoders.base import known_dim, with_prompt
from jasper_ray.encoders.sentence_transformer import Dtype
from jasper_ray.models.folder import StudentCard, load_student_folder
from jasper_ray.models.student import Student
from jasper_ray.models.tokens import length_groups
from jasper_ray.vectors import normalise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class StudentEncoder:
    """A student in inference; `dims` lists its heads, the default one first."""

    def __init__(
        self, student: Student, tokenizer: PreTrainedTokenizerBase, card: StudentCard, batch_size: int = 32
    ) -> None:
        self.student = student.eval()
        self.tokenizer = tokenizer
        self.card = card
        self.batch_size = batch_size

    @property
    def dims(self) -> tuple[int, ...]:
        default = self.card.default_head
        return (default, *(dim for dim in self.student.dims if dim != default))

    @property
    def prompts(self) -> Mapping[str, str]:
        return self.card.prompts

    def encode(self, texts: Sequence[str], prompt_name: str | None = None, dim: int | None = None) -> np.ndarray:
        """See `Encoder.encode`."""
        dim = known_dim(self.dims, dim)
        return self._heads(self.pooled(texts, prompt_name), [dim])[dim]

    def encode_heads(self, texts: Sequence[str], prompt_name: str | None = None) -> dict[int, np.ndarray]:
        """See `Encoder.encode_heads`."""
        return self._heads(self.pooled(texts, prompt_name), self.dims)

    @torch.inference_mode()
    def pooled(self, texts: Sequence[str], prompt_name: str | None = None) -> torch.Tensor:
        """The pooled states `[N, H]` that every head reads, in the body's precision."""
        prompted = with_prompt(texts, self.prompts, prompt_name)
        device = next(self.student.parameters()).device
        if not prompted:
            return torch.empty(0, self.student.body.config.hidden_size, device=device)
        groups, order_N = length_groups(self.tokenizer, prompted, self.card.max_length, self.batch_size)
        rows_NH = torch.cat([self.student.pooled(*group.to(device)) for group in groups])
        pooled_NH = torch.empty_like(rows_NH)
        pooled_NH[order_N.to(device)] = rows_NH
        return pooled_NH

    @torch.inference_mode()
    def _heads(self, pooled_NH: torch.Tensor, dims: Sequence[int]) -> dict[int, np.ndarray]:
        return {dim: normalise(self.student.heads[str(dim)](pooled_NH).float().cpu().numpy()) for dim in dims}


def load_student(
    path: str | Path, device: str | None = None, dtype: Dtype = "float32", batch_size: int = 32
) -> StudentEncoder:
    """The student in the folder `path`, ready to encode.

    >>> student = load_student("runs/quickstart/student")          # doctest: +SKIP
    >>> student.encode(["a sentence"], dim=256).shape              # doctest: +SKIP
    (1, 256)

    Raises:
        ConfigError: the folder is not a student, or a file of it is damaged.
    """
    student, tokenizer, card = load_student_folder(path)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return StudentEncoder(student.to(device, getattr(torch, dtype)), tokenizer, card, batch_size)
