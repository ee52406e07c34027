"""What the user says about a corpus: where its texts lie, how much of each, what is held out, what is augmented."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field, model_validator

from jasper_ray.config import ConfigError, Settings
from jasper_ray.data.files import shown


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


class Augmentation(Settings):
    """Changes that widen the training texts (Jasper and Stella, section 3.2); decided by a text's hash and the seed."""

    cut_share: float = Field(default=0.0, ge=0, le=1)
    """Share of documents that are cut into short texts; the paper takes 0.30."""
    min_sentences: int = Field(default=1, ge=1)
    """Fewest sentences of a short text; what remains at a document's end may be shorter."""
    max_sentences: int = Field(default=10, ge=1)
    """Most sentences of a short text."""
    shuffle_share: float = Field(default=0.0, ge=0, le=1)
    """Share of texts whose words are shuffled; the paper prints 0.08 %, that is 0.0008."""

    @model_validator(mode="after")
    def _check_sentences(self) -> Augmentation:
        if self.min_sentences > self.max_sentences:
            raise ConfigError(
                f"min_sentences is {self.min_sentences} but max_sentences is {self.max_sentences}; "
                "set min_sentences to at most max_sentences in the corpus' augmentation"
            )
        return self


class Corpus(Settings):
    """The texts of a run: all sources together, mixed, augmented and split into training and held-out texts."""

    sources: tuple[Source, ...] = Field(min_length=1)
    """Where the texts come from. If two sources hold the same text, the earlier one keeps it."""
    holdout: float = Field(default=0.0, ge=0, le=0.5)
    """Share of texts, chosen by the hash of the text, that are kept for evaluation and never trained on."""
    heldout_limit: int = Field(default=1000, ge=1)
    """At most this many held-out texts are written; the others are left out of training all the same."""
    augmentation: Augmentation = Augmentation()
    """How training texts are augmented; not at all by default."""
    shard_rows: int = Field(default=1024, ge=1)
    """Texts in one shard file; only the last shard holds fewer."""

    @model_validator(mode="after")
    def _check_weights(self) -> Corpus:
        without = [source.title for source in self.sources if source.weight is None]
        if 0 < len(without) < len(self.sources):
            raise ConfigError(
                f"sources {', '.join(without)} have no weight while others have one; "
                "give a weight to every source or to none"
            )
        return self
