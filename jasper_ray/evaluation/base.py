"""The parts of an evaluation set: settings, which read its files and score vectors, and data to encode."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import pyarrow as pa
from pydantic import Field, StrictInt, StrictStr, model_validator

from jasper_ray.config import ConfigError, Settings
from jasper_ray.sources.pairs import read_pairs
from jasper_ray.sources.rows import Rules, records, strict
from jasper_ray.sources.settings import PairSource

Column = Annotated[StrictInt, Field(ge=0)] | StrictStr
"""The name of a column, or its position counted from 0."""

CELLS = 32_000_000
"""Cosines computed at once: 128 MB of float32."""


class Style(NamedTuple):
    """The printed form of a metric, and its best end."""

    decimals: int = 1
    best: Literal["largest", "smallest"] = "largest"


class Score(Settings):
    """The value of one metric for one head on one set."""

    set: str
    metric: str
    dim: int
    value: float


def as_scores(name: str, dim: int, values: Mapping[str, float]) -> list[Score]:
    """Return the metrics of a head on the set called `name` as scores."""
    return [Score(set=name, metric=metric, dim=dim, value=value) for metric, value in values.items()]


# Data


@dataclass(frozen=True)
class TextRequest:
    """Texts to encode, and the name of their prompt."""

    texts: tuple[str, ...]
    prompt: str | None


@dataclass(frozen=True)
class ImageRequest:
    """Images to encode, as the bytes of their files."""

    images: tuple[bytes, ...]


@dataclass(frozen=True, eq=False)
class SetData:
    """An evaluation set in memory."""

    settings: SetSettings
    requests: tuple[Any, ...]
    """`TextRequest` or `ImageRequest`, one for each array of vectors that `SetSettings.score` takes."""
    judgements: Mapping[str, Any]
    """The right answers, by name."""

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def needs_vision(self) -> bool:
        """The set has images, so an encoder without vision skips it."""
        return any(isinstance(request, ImageRequest) for request in self.requests)

    def contents(self) -> dict[str, Any]:
        """Return everything that its scores depend on; stored scores are recognised by a hash of it."""
        return {"name": self.name, "requests": [asdict(request) for request in self.requests], **self.judgements}


# Settings


class SetSettings(Settings, ABC):
    """An evaluation set as settings. Each kind adds its `type`, and is a row of `sets.EVALUATION_SETS`."""

    METRICS: ClassVar[Mapping[str, Style]]
    """The metrics that `score` returns."""

    name: Annotated[str, Field(min_length=1)]
    """Name in reports; unique among the sets."""

    @abstractmethod
    def read(self) -> SetData:
        """Read and check the set's files.

        Raises:
            ConfigError: a file cannot be read or scored.
        """

    @abstractmethod
    def score(self, data: SetData, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the metrics of unit vectors, one array for each of the requests."""

    def resolved(self, folder: Path) -> Self:
        """Return the set with relative paths counted from `folder`."""
        return self.model_copy(update={key: folder / value for key, value in self if isinstance(value, Path)})


class TableSet(SetSettings):
    """A set read from tables."""

    format: Literal["csv", "tsv", "jsonl"]
    """csv (RFC 4180), tsv (no quoting), or jsonl (one object a line)."""
    header: bool = True
    """The first row of a csv or tsv file names the columns."""
    prompt: str | None = None
    """Name of the prompt put before every text; a model that has no prompts at all gets the texts bare."""
    columns: Settings
    """The columns of the values."""

    @model_validator(mode="after")
    def _columns_fit_the_format(self) -> Self:
        named = [isinstance(column, str) for _, column in self.columns]
        if self.format == "jsonl" and not (self.header and all(named)):
            raise ConfigError("the columns of a jsonl file are named, so give `columns` names, and no `header`")
        if not self.header and any(named):
            raise ConfigError("a file without header has no column names, so give `columns` positions counted from 0")
        return self

    def rows(self, path: Path) -> list[tuple[int, tuple[str, ...]]]:
        """Return the line and the fields of each row of a file."""
        return read_fields(path, self.format, [column for _, column in self.columns], self.header)


class ImageSet(SetSettings):
    """A set of images; a model without vision skips it."""

    images: PairSource
    """The images and their texts."""
    prompt: str | None = None
    """Name of the prompt put before every text; a model that has no prompts at all gets the texts bare."""

    @model_validator(mode="after")
    def _one_place_for_the_prompt(self) -> Self:
        if self.images.prompt is not None:
            raise ConfigError(
                f"`images` has the prompt {self.images.prompt!r}; write it as `prompt` of the set instead"
            )
        return self

    def resolved(self, folder: Path) -> Self:
        """Return the set with a relative path counted from `folder`; a scheme (`s3:`, `sklearn:`) is no such path."""
        path = self.images.path
        if not re.match(r"[a-z][a-z0-9+.-]+:", path):
            path = str(folder / Path(path).expanduser())
        return self.model_copy(update={"images": self.images.model_copy(update={"path": path})})

    def pairs(self) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
        """Return the images, and the values of their caption column."""
        pairs = list(read_pairs(self.images))
        if not pairs:
            raise ConfigError(f"evaluation set {self.name!r}: {self.images.path} has no images with captions")
        return tuple(pair.image for pair in pairs), tuple(pair.caption for pair in pairs)


# Files


def read_text(path: Path) -> str:
    """Return the UTF-8 text of `path`, without a byte order mark; every line ends in a plain newline."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"evaluation file {path} cannot be read: {reason}") from error


def read_values(
    path: Path, form: str, columns: Sequence[int | str], header: bool = True
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield the line and the values of `columns` of each row; rows may have more fields, as those of STS-B do."""
    stream = pa.BufferReader(read_text(path).encode())
    return strict(records(stream, form, columns, Rules(header=header, width=False)), str(path))


def read_fields(
    path: Path, form: str, columns: Sequence[int | str], header: bool = True
) -> list[tuple[int, tuple[str, ...]]]:
    """Return the line and the fields of each row, as stripped texts.

    Raises:
        ConfigError: no such file, no rows, a missing column, or an empty field.
    """
    rows = [
        (line, tuple(text_field(v, column, path, line) for v, column in zip(values, columns, strict=True)))
        for line, values in read_values(path, form, columns, header)
    ]
    for line, fields in rows:
        if "" in fields:
            empty = columns[fields.index("")]
            raise ConfigError(f"{path}, line {line}: column {empty!r} is empty; fill it or remove the row")
    if not rows:
        raise ConfigError(f"{path} has no rows")
    return rows


def text_field(value: object, column: int | str, path: Path, line: int) -> str:
    """Return a text or number as stripped text."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ConfigError(f"{path}, line {line}: {column!r} holds {value!r}, expected a text or a number")
    return str(value).strip()
