"""Which models a target is made of, what each takes to run, and what identifies it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from jasper_ray.config import ConfigError, Settings, fingerprint
from jasper_ray.encoders import Encoder, HashEncoder, load_sentence_transformer
from jasper_ray.encoders.precision import precise
from jasper_ray.models.identity import weights_identity
from jasper_ray.resources import TeacherPool
from jasper_ray.vectors import Precision

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class TeacherBase(Settings):
    """What every kind of teacher has."""

    name: Name = ""
    """Names the teacher in columns, files and tables; the last part of `model` when left out."""
    weight: float = Field(default=1.0, gt=0)
    """Its share of the target's similarity, relative to the other teachers'."""
    truncate: int | None = Field(default=None, gt=0)
    """Keep only the first so many dimensions (for teachers trained to allow it), normalised again."""
    prompt: str = ""
    """Text put before every text whose source names no prompt."""
    suffix: str = ""
    """Text put after every text, such as an end-of-text token that the model's card asks for."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """This teacher's text for each prompt name that a source of texts uses; without an entry the text goes in bare."""
    pool: TeacherPool = TeacherPool()

    @model_validator(mode="after")
    def _truncate_shortens(self) -> TeacherBase:
        dim = getattr(self, "dim", None)
        if self.truncate and dim and self.truncate > dim:
            raise ConfigError(
                f"truncate is {self.truncate}, but the vectors have only dim {dim}; change one of the two"
            )
        return self

    def prompt_text(self, prompt_name: str | None) -> str:
        """What this teacher reads before a text of a source with that prompt."""
        return self.prompt if prompt_name is None else self.prompts.get(prompt_name, "")

    @property
    def prompt_texts(self) -> dict[str, str]:
        """Every text it reads before another, by itself: its model is told them by that name."""
        return {text: text for text in ("", self.prompt, *self.prompts.values())}


class SentenceTransformerTeacher(TeacherBase):
    """A sentence-transformers model as teacher."""

    type: Literal["sentence_transformer"] = "sentence_transformer"
    model: str
    """Hub id, local folder or shipped asset (`pypi:all-mpnet-base-v2`)."""
    revision: str | None = None
    """Commit of a hub id. A run pins the commit that it found when none is given."""
    dim: int | None = Field(default=None, gt=0)
    """Size of its vectors, checked when it is loaded; known sizes let a recipe be checked with nothing downloaded."""
    head: int | None = Field(default=None, gt=0)
    """For models that carry several dense layers, as Stella's do: the one in the folder `2_Dense_<head>`."""
    max_length: int | None = Field(default=None, gt=0)
    """Tokens a text is cut to; the model's own limit when left out."""
    dtype: Precision = "auto"
    """Precision it computes in, `auto`: the one its device is fast in; its vectors leave in float32."""
    batch_size: int = Field(default=32, gt=0)
    """Rows in one forward pass. A shard's rows are sorted by length first."""
    trust_remote_code: bool = False
    """Run modelling code that comes with this model. Off unless this recipe says so for this model, and for a hub id
    only with the full commit as `revision`: the code that was read is then the code that runs."""

    @model_validator(mode="before")
    @classmethod
    def _name_from_model(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("name") and isinstance(data.get("model"), str):
            return {**data, "name": folder_name(re.split(r"[/:]", data["model"].rstrip("/"))[-1])}
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

    @property
    def size(self) -> int | None:
        return self.truncate or self.dim

    def at(self, weights: str) -> SentenceTransformerTeacher:
        """This teacher with what `weights_identity` found pinned, so that every process of a run loads the same."""
        kind, _, commit = weights.partition(":")
        return self.model_copy(update={"revision": commit}) if kind == "commit" else self

    def load(self, device: str | None = None) -> Encoder:
        """The model, loaded; heavy.

        Raises:
            ConfigError: nothing loads from there.
        """
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
        """What identifies its weights; reads their bytes or asks the hub.

        Raises:
            ConfigError: there are none.
        """
        return weights_identity(self.model, self.revision)

    def behaviour(self) -> dict[str, Any]:
        """What decides this teacher's vectors, beside its weights."""
        assert self.dtype != "auto", "vectors in a precision that is still to be decided have no identity"
        return self.model_dump(mode="json", exclude={"name", "weight", "pool", "batch_size", "revision", "dim"})


class HashTeacher(TeacherBase):
    """A teacher without weights, for trying the plumbing at size."""

    type: Literal["hash"]
    dim: int = Field(default=64, gt=0)
    """Size of its vectors."""
    name: Name = "hash"

    @property
    def size(self) -> int | None:
        return self.truncate or self.dim

    def at(self, weights: str) -> HashTeacher:
        """Itself: it has no weights."""
        return self

    def load(self, device: str | None = None) -> Encoder:
        """The encoder; light."""
        return HashEncoder(self.dim, self.prompt_texts)

    def weights(self) -> str:
        """It has none."""
        return "none"

    def behaviour(self) -> dict[str, Any]:
        """What decides its vectors."""
        return self.model_dump(mode="json", exclude={"name", "weight", "pool"})


def teacher_kind(value: Any) -> str:
    """The `type` of a teacher as it stands in a recipe or in memory."""
    return (value.get("type") if isinstance(value, dict) else getattr(value, "type", None)) or "sentence_transformer"


Teacher = Annotated[
    Annotated[SentenceTransformerTeacher, Tag("sentence_transformer")] | Annotated[HashTeacher, Tag("hash")],
    Discriminator(teacher_kind),
]
"""Any kind of teacher; `type` picks it, a sentence-transformers model when left out."""


def described(teacher: Teacher, weights: str) -> dict[str, Any]:
    """What teachers.json says of a teacher with these `Teacher.weights`. Teachers of equal `identity` give equal
    vectors."""
    pinned = {**teacher.behaviour(), "weights": weights}
    known = {"name": teacher.name, "weight": teacher.weight, "dim": teacher.size}
    return {**known, "identity": fingerprint(pinned), **pinned}


def folder_name(text: str) -> str:
    """`text` with everything but letters, digits, dot, dash and underscore made a dash."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text) or "teacher"
