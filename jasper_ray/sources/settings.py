"""What the user says about a corpus: where its texts lie, how much of each, what is held out, what is augmented."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field

from jasper_ray.config import Settings
from jasper_ray.sources.files import shown


class Source(Settings):
    """One place texts come from."""

    path: str = Field(min_length=1)
    """A file, a folder, a glob, an asset name, or a URI that pyarrow can open (`s3://`, `gs://`, `hdfs://`, `file://`)."""
    format: Literal["parquet", "jsonl", "csv", "text"]
    """How the files are written; `text` takes every line as one text."""
    name: str | None = None
    """What counts and errors call this source; by default the file's or folder's name, or all of a glob."""
    column: str = "text"
    """The column (parquet, csv) or key (jsonl) that holds the text; not looked at for `text`."""
    prompt: str | None = None
    """Name of the prompt that teachers and student put before texts of this source; none by default."""
    weight: float | None = Field(default=None, gt=0)
    """Share of this source in the mixture, relative to the other weights; give it to all sources or to none."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many distinct texts of this source, held-out ones included, chosen by hash; all by default."""

    @property
    def title(self) -> str:
        """The name, or what stands for it."""
        return self.name or path_title(self.path)


def path_title(path: str) -> str:
    """What a source is called that has no name: the file's or folder's name, or all of a glob."""
    path = shown(path)
    stem = PurePosixPath(path).stem
    return (path if set(stem) & set("*?[") else stem) or path
