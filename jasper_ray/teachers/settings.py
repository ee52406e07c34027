"""Settings of teachers: the model, what it takes to run, and what identifies its vectors.

A new kind of teacher is a settings class that builds an encoder, and one row of TEACHERS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from jasper_ray.config import ConfigError, Settings, fingerprint
from jasper_ray.encoders import Encoder, HashEncoder, load_sentence_transformer
from jasper_ray.encoders.precision import precise
from jasper_ray.models.identity import weights_identity
from jasper_ray.resources import TeacherPool
from jasper_ray.teachers.encoder import TeacherEncoder
from jasper_ray.vectors import Precision

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class TeacherBase(Settings):
    """Settings that every kind of teacher has; a kind adds its own, `type`, and `load`."""

    without_effect: ClassVar[set[str]] = {"name", "weight", "pool"}
    """Settings that do not change its vectors."""

    name: Name = ""
    """Names the teacher in columns, files and tables. Default: the last part of `model`."""
    weight: float = Field(default=1.0, gt=0)
    """Its share of the target's similarity, relative to the other teachers'."""
    truncate: int | None = Field(default=None, gt=0)
    """Keep only the first so many dimensions (for teachers trained to allow it), normalised again."""
    prompt: str = ""
    """Text put before every text whose source names no prompt."""
    suffix: str = ""
    """Text put after every text, such as an end-of-text token that the model's card asks for."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """This teacher's text for each prompt name that a source of texts uses; a name without an entry adds nothing."""
    pool: TeacherPool = TeacherPool()

    @model_validator(mode="after")
    def _truncate_shortens(self) -> TeacherBase:
        if self.truncate and self.declared_dim and self.truncate > self.declared_dim:
            raise ConfigError(
                f"truncate is {self.truncate}, but the vectors have only dim {self.declared_dim}; change one of the two"
            )
        return self

    def load(self, device: str | None = None) -> Encoder:
        """Load the model.

        Raises:
            ConfigError: nothing loads from there.
        """
        raise NotImplementedError

    def open(self, device: str | None = None) -> TeacherEncoder:
        """Load the teacher and wrap it with output checks."""
        return TeacherEncoder(self, self.load(device))

    @property
    def declared_dim(self) -> int | None:
        """Size of the model's vectors, if the settings give it."""
        return getattr(self, "dim", None)

    @property
    def size(self) -> int | None:
        """Size of the teacher's part of the target, if the settings give it."""
        return self.truncate or self.declared_dim

    def weights(self) -> str:
        """Identify the weights, by reading their bytes or asking the hub.

        Raises:
            ConfigError: there are none.
        """
        return "none"

    def at(self, weights: str) -> Teacher:
        """Pin this teacher to `weights`, the result of `weights()`, so that every process loads the same."""
        return self

    def behaviour(self) -> dict[str, Any]:
        """Return the settings that decide this teacher's vectors, beside its weights."""
        return self.model_dump(mode="json", exclude=self.without_effect)

    def prompt_text(self, prompt_name: str | None) -> str:
        """Return the text that this teacher reads before a text of a source with that prompt."""
        return self.prompt if prompt_name is None else self.prompts.get(prompt_name, "")

    @property
    def prompt_texts(self) -> dict[str, str]:
        """Every text it reads before another, by itself: its model knows them by that name."""
        return {text: text for text in ("", self.prompt, *self.prompts.values())}


class SentenceTransformerTeacher(TeacherBase):
    """A sentence-transformers model as teacher."""

    without_effect = TeacherBase.without_effect | {"batch_size", "revision", "dim"}

    type: Literal["sentence_transformer"] = "sentence_transformer"
    model: str
    """Hub id, local folder or shipped asset (`pypi:all-mpnet-base-v2`)."""
    revision: str | None = None
    """Commit of a hub id. Default: the newest, which the run then pins."""
    dim: int | None = Field(default=None, gt=0)
    """Size of its vectors, checked when it is loaded; known sizes let a recipe be checked with nothing downloaded."""
    head: int | None = Field(default=None, gt=0)
    """The dense layer in the folder `2_Dense_<head>`, for models with several, such as Stella's."""
    max_length: int | None = Field(default=None, gt=0)
    """Tokens a text is cut to. Default: the model's own limit."""
    dtype: Precision = "auto"
    """Precision it computes in, `auto`: the one its device is fast in; its vectors leave in float32."""
    batch_size: int = Field(default=32, gt=0)
    """Rows in one forward pass. A shard's rows are sorted by length first."""
    trust_remote_code: bool = False
    """Run modelling code that comes with this model. A hub id then needs the full commit as `revision`: the code that
    was read is then the code that runs."""

    @model_validator(mode="before")
    @classmethod
    def _name_from_model(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("name") and isinstance(data.get("model"), str):
            last = re.split(r"[/:]", data["model"].rstrip("/"))[-1]
            return {**data, "name": re.sub(r"[^A-Za-z0-9._-]+", "-", last) or "teacher"}
        return data

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> SentenceTransformerTeacher:
        here = ":" in self.model or Path(self.model).is_dir()
        if self.trust_remote_code and not here and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ConfigError(
                f"trust_remote_code runs the code that comes with {self.model!r}, which its authors can change; "
                "give revision: the full commit (40 hex digits) whose code you have read"
            )
        return self

    def load(self, device: str | None = None) -> Encoder:
        return load_sentence_transformer(
            self.model,
            self.revision,
            device=device,
            dtype=precise(self.dtype, device),
            max_length=self.max_length,
            batch_size=self.batch_size,
            prompts=self.prompt_texts,
            trust_remote_code=self.trust_remote_code,
            head=self.head,
        )

    def weights(self) -> str:
        return weights_identity(self.model, self.revision)

    def at(self, weights: str) -> SentenceTransformerTeacher:
        kind, _, commit = weights.partition(":")
        return self.model_copy(update={"revision": commit}) if kind == "commit" else self

    def behaviour(self) -> dict[str, Any]:
        assert self.dtype != "auto", "vectors in a precision that is still to be decided have no identity"
        return super().behaviour()


class HashTeacher(TeacherBase):
    """A teacher without weights, to test runs with."""

    type: Literal["hash"]
    dim: int = Field(default=64, gt=0)
    """Size of its vectors."""
    name: Name = "hash"

    def load(self, device: str | None = None) -> Encoder:
        return HashEncoder(self.dim, self.prompt_texts)


TEACHERS: dict[str, type[TeacherBase]] = {"sentence_transformer": SentenceTransformerTeacher, "hash": HashTeacher}
"""Every kind of teacher, by the `type` that a recipe gives it."""


def teacher_kind(value: Any) -> str:
    """Read the `type` of a teacher in a recipe or in memory; the default is a sentence-transformers model."""
    return (value.get("type") if isinstance(value, dict) else getattr(value, "type", None)) or "sentence_transformer"


def any_teacher(kinds: Mapping[str, type[TeacherBase]]) -> Any:
    """Make the type of a setting that takes a teacher of any of the kinds; `type` picks it."""
    members = [Annotated[kind, Tag(name)] for name, kind in kinds.items()]
    return Annotated[reduce(or_, members), Discriminator(teacher_kind)]


if TYPE_CHECKING:
    Teacher = TeacherBase
else:
    Teacher = any_teacher(TEACHERS)


def described(teacher: Teacher, weights: str) -> dict[str, Any]:
    """Make the entry of teachers.json for a teacher with these `weights()`; equal `identity` means equal vectors."""
    pinned = {**teacher.behaviour(), "weights": weights}
    known = {"name": teacher.name, "weight": teacher.weight, "dim": teacher.size}
    return {**known, "identity": fingerprint(pinned), **pinned}
