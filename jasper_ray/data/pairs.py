"""What the user says about image–caption pairs: where they lie, how they are written, what is held out."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, field_validator

from jasper_ray.config import ConfigError, Settings
from jasper_ray.data.settings import path_title
from jasper_ray.images.decode import PIXEL_LIMIT
from jasper_ray.pool import Pool, TeacherPool
from jasper_ray.vectors import Precision

LARGEST_PIXEL_LIMIT = 89_478_485
"""Above so many pixels Pillow has warnings and limits of its own."""


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


class Images(Settings):
    """The image–caption pairs of a run: all sources together, split into training and held-out pairs."""

    sources: tuple[PairSource, ...] = Field(min_length=1)
    """Where the pairs come from. If two sources hold the same pair, the earlier one keeps it."""
    holdout: float = Field(default=0.0, ge=0, le=0.5)
    """Share of images, chosen by the hash of their bytes, that are kept for evaluation and never trained on."""
    heldout_limit: int = Field(default=1000, ge=1)
    """At most this many held-out pairs are kept; the others are left out of training all the same."""
    shard_rows: int = Field(default=256, ge=1)
    """Most pairs in one shard file."""
    pixel_limit: int = Field(default=PIXEL_LIMIT, ge=1, le=LARGEST_PIXEL_LIMIT)
    """Pixels (width times height) of the largest image that is used."""
    bad_share: float = Field(default=0.1, ge=0, le=1)
    """Largest share of pairs that may be unusable and set aside; above it nothing is trained."""
    decoders: Pool = Pool(max_size=4)
    """Processes that decode images while a stage trains."""
    pool: TeacherPool = TeacherPool()
    """Copies of the student that make the captions' vectors."""
    dtype: Precision = "auto"
    """Precision in which they compute, `auto`: the one their device is fast in; the vectors leave in float32."""
    batch_size: int = Field(default=32, gt=0)
    """Captions in one forward pass of theirs."""


def is_inside(path: str) -> bool:
    """Whether `path` names something inside a folder: relative, and never a step up."""
    return not path.startswith("/") and ".." not in PurePosixPath(path).parts
