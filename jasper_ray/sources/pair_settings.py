"""What the user says about image–caption pairs: where they lie, how they are written, what is held out."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, field_validator

from jasper_ray.config import ConfigError, Settings
from jasper_ray.sources.settings import path_title


class PairSourceBase(Settings):
    """What every source of pairs has."""

    path: str = Field(min_length=1)
    """A file, a folder, a glob, an asset name, or a URI that pyarrow can open (`s3://`, `gs://`, `hdfs://`, `file://`)."""
    name: str | None = None
    """What counts and errors call this source; by default the file's or folder's name, or all of a glob."""
    prompt: str | None = None
    """Name of the prompt that teachers and student put before captions of this source; none by default."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many distinct pairs of this source, held-out and unusable ones included, chosen by hash; all by
    default. The source is then read twice."""

    @property
    def title(self) -> str:
        """The name, or what stands for it."""
        return self.name or path_title(self.path)


class ParquetPairs(PairSourceBase):
    """Parquet files with a pair a row, as data sets on the Hugging Face hub are written."""

    format: Literal["parquet"]
    image: str = "image"
    """The column of images: the bytes of a file, or a struct with these in its field `bytes`."""
    caption: str = "caption"
    """The column of captions, text."""


class FolderPairs(PairSourceBase):
    """A folder of image files, and a table in it of their captions; `path` is the folder."""

    format: Literal["folder"]
    captions: str = "metadata.jsonl"
    """The table: a `.jsonl` or `.csv` file inside the folder."""
    image: str = "file_name"
    """The key or column of the image's file, a path inside the folder."""
    caption: str = "caption"
    """The key or column of the caption."""

    @field_validator("captions")
    @classmethod
    def _lies_inside(cls, captions: str) -> str:
        if not captions.endswith((".jsonl", ".csv")) or not is_inside(captions):
            raise ConfigError(f"captions is {captions!r}; expected the path of a .jsonl or .csv file inside the folder")
        return captions


class WebdatasetPairs(PairSourceBase):
    """Tar archives in which the members of a pair follow one another and share their name up to its first dot."""

    format: Literal["webdataset"]
    image: str | None = None
    """Extension of the image's member, such as `jpg`; only needed where a pair has several images."""
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
"""Any source of pairs; `format` picks it."""


def is_inside(path: str) -> bool:
    """Whether `path` names something inside a folder: relative, and never a step up."""
    return not path.startswith("/") and ".." not in PurePosixPath(path).parts
