"""Settings of sources of texts and of image–caption pairs: path, format, columns, limit."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from jasper_ray.config import ConfigError, Settings
from jasper_ray.sources.files import printable


class Source(Settings):
    """Settings of a source of texts."""

    path: str = Field(min_length=1)
    """A file, a folder, a glob, an asset name, or a URI that pyarrow can open (`s3://`, `gs://`, `hdfs://`, `file://`)."""
    format: Literal["parquet", "jsonl", "csv", "text"]
    """Format of the files; in `text` every line is one text."""
    name: str | None = None
    """Name of this source in counts and errors; by default the file's or folder's name, or all of a glob."""
    column: str = "text"
    """Column (parquet, csv) or key (jsonl) of the text; ignored for `text`."""
    prompt: str | None = None
    """Name of the prompt that teachers and student put before texts of this source; none by default."""
    weight: float | None = Field(default=None, gt=0)
    """Share of this source in the mixture, relative to the other weights; give it to all sources or to none."""
    limit: int | None = Field(default=None, ge=1)
    """Most distinct texts of this source, held-out ones included, chosen by hash; all by default."""

    @property
    def title(self) -> str:
        return self.name or path_title(self.path)


def path_title(path: str) -> str:
    """Return the default name of a source: the file's or folder's name, or all of a glob."""
    path = printable(path)
    stem = PurePosixPath(path).stem
    return (path if set(stem) & set("*?[") else stem) or path


class PairSourceBase(Settings):
    """Settings of every source of image–caption pairs."""

    path: str = Field(min_length=1)
    """A file, a folder, a glob, an asset name, or a URI that pyarrow can open (`s3://`, `gs://`, `hdfs://`, `file://`)."""
    name: str | None = None
    """Name of this source in counts and errors; by default the file's or folder's name, or all of a glob."""
    prompt: str | None = None
    """Name of the prompt that teachers and student put before captions of this source; none by default."""
    limit: int | None = Field(default=None, ge=1)
    """Most distinct pairs of this source, held-out and unusable ones included, chosen by hash; all by default. With a
    limit the source is read twice."""
    weight: ClassVar[None] = None
    """Pairs are mixed without weights."""

    @property
    def title(self) -> str:
        return self.name or path_title(self.path)


class ParquetPairs(PairSourceBase):
    """Parquet files with a pair a row, as data sets on the Hugging Face hub are written."""

    format: Literal["parquet"]
    image: str = "image"
    """Column of images: the bytes of a file, or a struct with these in its field `bytes`."""
    caption: str = "caption"
    """Column of captions, text."""


class FolderPairs(PairSourceBase):
    """A folder of image files, and a table in it of their captions; `path` is the folder."""

    format: Literal["folder"]
    captions: str = "metadata.jsonl"
    """The table: a `.jsonl` or `.csv` file inside the folder."""
    image: str = "file_name"
    """Key or column of the image's file, a path inside the folder."""
    caption: str = "caption"
    """Key or column of the caption."""

    @field_validator("captions")
    @classmethod
    def _is_inside(cls, captions: str) -> str:
        if not captions.endswith((".jsonl", ".csv")) or not is_inside(captions):
            raise ConfigError(f"captions is {captions!r}; expected the path of a .jsonl or .csv file inside the folder")
        return captions


class WebdatasetPairs(PairSourceBase):
    """Tar archives in which the members of a pair follow one another and share their name up to its first dot."""

    format: Literal["webdataset"]
    image: str | None = None
    """Extension of the image's member, such as `jpg`; only needed if a pair has several images."""
    caption: str = "txt"
    """Extension of the caption's member, or `json:KEY` for that key of the member `json`."""

    @field_validator("caption")
    @classmethod
    def _names_a_key(cls, caption: str) -> str:
        extension, _, key = caption.partition(":")
        if not extension or (extension == "json") != bool(key):
            raise ConfigError(f"caption is {caption!r}; expected an extension such as txt, or json:KEY")
        return caption


PairSource = Annotated[ParquetPairs | FolderPairs | WebdatasetPairs, Field(discriminator="format")]
"""Any source of pairs; `format` selects it."""


def is_inside(path: str) -> bool:
    """Check that a path is relative and never steps up."""
    return not path.startswith("/") and ".." not in PurePosixPath(path).parts
