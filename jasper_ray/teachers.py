"""Teachers: which models a target is made of, what identifies them, and how their vectors become one target.

The target of a text is its teachers' unit vectors, each scaled by √weight, one beside the other, normalised
again (arXiv 2412.19048, section 2.1). Its Gram matrix is then the weighted mean of the teachers' cosines.
"""

# Shape legend: B rows, D size of one teacher's vectors, E size of the target.

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Discriminator, Field, Tag, model_validator
from torch import Tensor

from jasper_ray.assets.identity import weights_identity
from jasper_ray.config import ConfigError, Settings, fingerprint
from jasper_ray.encoders import Dtype, Encoder, HashEncoder, load_sentence_transformer
from jasper_ray.encoders.base import known_dim
from jasper_ray.vectors import normalise


class ActorPool(Settings):
    """How many copies of a teacher run, and what each takes."""

    min_size: int = Field(default=1, ge=1)
    """Copies that always run."""
    max_size: int = Field(default=1, ge=1)
    """Copies at most; Ray adds them while rows queue up."""
    cpus: float = Field(default=1.0, ge=0)
    """Processors reserved for a copy."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs reserved for a copy; a fraction shares one."""
    threads: int | None = Field(default=None, ge=1)
    """Threads that torch uses in a copy on the CPU; `cpus`, at least 1, when left out."""

    @model_validator(mode="after")
    def _min_is_not_above_max(self) -> ActorPool:
        if self.min_size > self.max_size:
            raise ConfigError(f"min_size {self.min_size} is above max_size {self.max_size}; change one of the two")
        return self

    @property
    def torch_threads(self) -> int:
        return self.threads or max(1, int(self.cpus))


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
    """This teacher's text for each prompt name that a corpus source uses; without an entry the text goes in bare."""
    pool: ActorPool = ActorPool()

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
    dtype: Dtype = "float32"
    """Precision it computes in; its vectors leave in float32."""
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
            dtype=self.dtype,
            max_length=self.max_length,
            batch_size=self.batch_size,
            prompts=self.prompt_texts,
            trust_remote_code=self.trust_remote_code,
            head=self.head,
        )

    def pinned(self) -> dict[str, Any]:
        """What decides this teacher's vectors, weights included; reads the weights' bytes or asks the hub."""
        behaviour = self.model_dump(mode="json", exclude={"name", "weight", "pool", "batch_size", "revision", "dim"})
        return {**behaviour, "weights": weights_identity(self.model, self.revision)}


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

    def pinned(self) -> dict[str, Any]:
        """What decides its vectors."""
        return {**self.model_dump(mode="json", exclude={"name", "weight", "pool"}), "weights": "none"}


def teacher_kind(value: Any) -> str:
    """The `type` of a teacher as it stands in a recipe or in memory."""
    return (value.get("type") if isinstance(value, dict) else getattr(value, "type", None)) or "sentence_transformer"


Teacher = Annotated[
    Annotated[SentenceTransformerTeacher, Tag("sentence_transformer")] | Annotated[HashTeacher, Tag("hash")],
    Discriminator(teacher_kind),
]
"""Any kind of teacher; `type` picks it, a sentence-transformers model when left out."""


def described(teacher: Teacher) -> dict[str, Any]:
    """What teachers.json says of a teacher. Teachers of equal `identity` give equal vectors."""
    pinned = teacher.pinned()
    known = {"name": teacher.name, "weight": teacher.weight, "dim": teacher.size}
    return {**known, "identity": fingerprint(pinned), **pinned}


def folder_name(text: str) -> str:
    """`text` with everything but letters, digits, dot, dash and underscore made a dash."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text) or "teacher"


def check_vectors(vectors_BD: np.ndarray, texts: Sequence[str], teacher: str, dim: int | None) -> None:
    """Stop vectors that would poison a target at the door.

    Raises:
        ConfigError: the row count or size is wrong, or a row is not finite, zero, or not of length 1; it names the
            teacher and the first such text.
    """
    if vectors_BD.ndim != 2 or len(vectors_BD) != len(texts):
        raise ConfigError(f"teacher {teacher!r} returned shape {vectors_BD.shape} for {len(texts)} texts")
    if dim is not None and vectors_BD.shape[1] != dim:
        raise ConfigError(
            f"teacher {teacher!r} returned vectors of size {vectors_BD.shape[1]}, but dim says {dim}; mend dim"
        )
    lengths_B = np.linalg.norm(vectors_BD.astype(np.float32), axis=1)
    faults = (
        ("not finite", ~np.isfinite(lengths_B)),
        ("zero", lengths_B == 0),
        ("not of length 1", abs(lengths_B - 1) > 1e-3),
    )
    for fault, bad_B in faults:
        if bad_B.any():
            text = texts[int(bad_B.argmax())]
            raise ConfigError(
                f"teacher {teacher!r} returned a vector that is {fault} for the text {text[:80]!r} "
                f"({int(bad_B.sum())} of {len(texts)} rows); try dtype float32, or leave such texts out of the corpus"
            )


def fuse(columns: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The target `[B, E]`, float32 unit rows, from one `[B, D]` tensor a teacher, in the recipe's order."""
    parts = [
        torch.nn.functional.normalize(column_BD.float(), dim=1) * weight**0.5
        for column_BD, weight in zip(columns, weights, strict=True)
    ]
    return torch.nn.functional.normalize(torch.cat(parts, dim=1), dim=1)


class TeacherEncoder:
    """A loaded teacher as the target sees it: its own prompts, its truncation, and its vectors checked at the door."""

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


class Together:
    """Several teachers as one encoder: what a perfect student would be."""

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

    def encode_heads(self, texts: Sequence[str], prompt_name: str | None = None) -> dict[int, np.ndarray]:
        """See `Encoder.encode_heads`."""
        return {self.dims[0]: self.encode(texts, prompt_name)}


def cut(vectors_BD: np.ndarray, size: int, teacher: str) -> np.ndarray:
    """The first `size` dimensions, of length 1 again."""
    if size > vectors_BD.shape[1]:
        raise ConfigError(
            f"teacher {teacher!r}: truncate is {size}, but its vectors have only {vectors_BD.shape[1]} dimensions"
        )
    return normalise(vectors_BD[:, :size])
