"""The student: one transformer body, one pooling, and an independent linear head for each size of vector.

The heads all read the same pooled state; none is a prefix of another (arXiv 2412.19048, section 2.2).
"""

# Shape legend: B texts, T tokens, H hidden size of the body, D size of one head's vector.

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from jasper_ray.config import ConfigError, Settings
from jasper_ray.models.body import BodySettings, load_body, meta_body
from jasper_ray.models.pooling import Pooling, pool

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STELLA_PROMPTS = {
    "s2p_query": "Instruct: Given a web search query, retrieve relevant passages that answer the query.\nQuery: ",
    "s2s_query": "Instruct: Retrieve semantically similar text.\nQuery: ",
}


class StudentSettings(Settings):
    """The student's shape and where it starts."""

    body: BodySettings
    pooling: Pooling = "mean"
    heads: tuple[int, ...] = Field(min_length=1)
    """Sizes of the vectors, one independent linear head each. The first is the full head: the size of the target."""
    default_head: int | None = None
    """The head that plain sentence-transformers loads; the full head when left out."""
    max_length: int = Field(gt=0)
    """Tokens a text is cut to."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout inside the body while training. 0: the teachers' vectors are targets without noise."""
    prompts: dict[str, str] = Field(default_factory=lambda: dict(STELLA_PROMPTS))
    """Text put before a text, by name; saved with the student."""

    @model_validator(mode="after")
    def _heads_are_sound(self) -> StudentSettings:
        if len(set(self.heads)) != len(self.heads) or min(self.heads) < 1:
            raise ConfigError(f"student.heads is {list(self.heads)}; sizes must be positive and each appear once")
        if list(self.heads) != sorted(self.heads, reverse=True):
            raise ConfigError(
                f"student.heads is {list(self.heads)}; write the sizes from large to small, the full head first"
            )
        if self.default_head is not None and self.default_head not in self.heads:
            raise ConfigError(
                f"student.default_head is {self.default_head}, which is not among heads {list(self.heads)}"
            )
        return self

    @property
    def first_shown(self) -> int:
        """The head that plain sentence-transformers loads."""
        return self.default_head or self.heads[0]


class Student(nn.Module):
    """Body, pooling and heads. Parameters are named `body.…` and `heads.<dim>.…`."""

    def __init__(self, body: PreTrainedModel, heads: Sequence[int], pooling: Pooling = "mean") -> None:
        super().__init__()
        self.body = body
        self.pooling: Pooling = pooling
        self.heads = nn.ModuleDict({str(dim): nn.Linear(body.config.hidden_size, dim) for dim in heads})
        self.requires_grad_(True)
        pooler = getattr(body, "pooler", None)
        if isinstance(pooler, nn.Module):  # kept so that the saved body is whole; no vector passes through it
            pooler.requires_grad_(False)

    @property
    def dims(self) -> tuple[int, ...]:
        """Sizes of the heads, the full head first."""
        return tuple(int(dim) for dim in self.heads)

    def pooled(self, input_ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The body's pooled state `[B, H]` that every head reads."""
        states_BTH = self.body(input_ids=input_ids_BT, attention_mask=mask_BT).last_hidden_state
        return pool(states_BTH, mask_BT, self.pooling)

    def forward(self, groups: Iterable[tuple[Tensor, Tensor]], dims: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        """Vectors of every head, or of the heads `dims`, in that order: `[B, D]` each, not normalised.

        A batch comes as groups of `(input_ids_BT, mask_BT)` of similar length, each padded to its own longest
        text, so that the body computes little padding; the rows of all groups stand one below the other.
        """
        pooled_BH = torch.cat([self.pooled(ids_BT, mask_BT) for ids_BT, mask_BT in groups])
        return tuple(self.heads[str(dim)](pooled_BH) for dim in dims or self.dims)

    def trainable_names(self, patterns: Sequence[str]) -> list[str]:
        """Names of the parameters that any of the shell-style `patterns` matches (`heads.1024.*`, `body.layers.2?.*`).

        Raises:
            ConfigError: a pattern matches nothing.
        """
        names = [name for name, _ in self.named_parameters() if not name.startswith("body.pooler.")]
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise ConfigError(
                    f"train: the pattern {pattern!r} matches no parameter of the student; "
                    f"its parameters are named like {names[0]}, {names[len(names) // 2]} and {names[-1]}"
                )
        return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]

    def freeze_all_but(self, patterns: Sequence[str]) -> None:
        """Let the matching parameters learn and no others."""
        trainable = set(self.trainable_names(patterns))
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in trainable)

    def set_dropout(self, share: float) -> None:
        """The share of activations dropped while training, everywhere in the body."""
        for module in self.body.modules():
            if isinstance(module, nn.Dropout):
                module.p = share
            for name in ("attention_dropout", "dropout"):  # attention kernels read the share from such a number
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, share)


def build_student(settings: StudentSettings, seed: int) -> Student:
    """The student before any training: the body's weights, random heads drawn from `seed`."""
    torch.manual_seed(seed)
    return Student(load_body(settings.body), settings.heads, settings.pooling)


def meta_student(settings: StudentSettings) -> Student:
    """The student's shape without memory, for counting parameters."""
    body = meta_body(settings.body)
    with torch.device("meta"):
        return Student(body, settings.heads, settings.pooling)
