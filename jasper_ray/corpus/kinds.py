"""Kinds of data: the differences between preparing texts and preparing image–caption pairs.

A kind is one object, `texts.TEXTS` or `images.IMAGES`. The rest of this room does not know which one it works on.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import ray.data

from jasper_ray.corpus.settings import Corpus, Images
from jasper_ray.corpus.shards import Manifest, Shard
from jasper_ray.sources.files import SourceFiles
from jasper_ray.sources.hashing import HASH_END

PARTS = ("train", "heldout", "rejected")
"""Parts of prepared data, in the order of a sort that writes all of them."""


class Row(NamedTuple):
    """One row of a source, on its way to a shard."""

    id: str
    text: str | None
    part: str = "train"
    image: bytes | None = None
    origin: str | None = None
    """Place of a pair in its source."""
    reason: str | None = None
    """Reason to reject a pair, which then has neither text nor image."""


DataSettings = TypeVar("DataSettings", Corpus, Images)


@dataclass(frozen=True)
class SourceTask(Generic[DataSettings]):
    """Everything that tasks need to make the rows of one source, batch by batch."""

    kind: DataKind[DataSettings, Any]
    settings: DataSettings
    seed: int
    index: int
    """Number of the source."""
    files: SourceFiles
    """Files of the source, without the list of paths, which may be long."""
    bound: int
    """The choice hash of a chosen row is below this."""
    parts: tuple[str, ...]
    """Parts whose rows are made."""

    @property
    def limit(self) -> int | None:
        """Limit of the source."""
        return self.settings.sources[self.index].limit


@dataclass(frozen=True)
class Plan(Generic[DataSettings]):
    """Everything that decides which rows come out."""

    kind: DataKind[DataSettings, Any]
    settings: DataSettings
    seed: int
    files: tuple[SourceFiles, ...]
    bounds: tuple[int, ...] = ()
    """Choice hashes of each source's chosen rows are below these."""

    def map_source(
        self, index: int, function: Callable[..., pa.Table], bound: int = HASH_END, parts: tuple[str, ...] = ()
    ) -> ray.data.Dataset:
        """Apply a function of a scanned batch and a `SourceTask` to source number `index`."""
        files = dataclasses.replace(self.files[index], paths=())
        task = SourceTask(self.kind, self.settings, self.seed, index, files, bound, parts)
        return self.kind.scan(self.settings.sources[index], self.files[index]).map_batches(
            function, fn_kwargs={"task": task}, batch_size=self.kind.batch_rows, batch_format="pyarrow"
        )


class Written:
    """Rows and shards that were written; arrays of counts have an entry for each source."""

    def __init__(self, num_sources: int) -> None:
        self.train: list[Shard] = []
        self.heldout: list[Shard] = []
        self.chosen = {part: np.zeros(num_sources, np.int64) for part in PARTS}
        """Chosen rows, duplicates included; all in the first entry if the kind does not count by source."""
        self.distinct = {part: np.zeros(num_sources, np.int64) for part in PARTS}
        """Distinct rows, held-out ones beyond `heldout_limit` included."""
        self.kept_heldout = np.zeros(num_sources, np.int64)
        """Rows in the held-out shards."""
        self.rejected: list[Counter[str]] = [Counter() for _ in range(num_sources)]
        """Rejected pairs, by reason."""


class DataKind(ABC, Generic[DataSettings, Manifest]):
    """A kind of rows: how its sources are read, and which rows come out of them."""

    setting: str
    """Key of its settings, in a recipe and in its manifest."""
    how_to_run: frozenset[str] = frozenset()
    """Settings that do not change which rows come out."""
    unit: str
    """Name of a row, in messages."""
    places: str
    """Names of the settings that say where rows are, in messages."""
    manifest: type[Manifest]
    columns: tuple[str, ...]
    """Columns of its shards."""
    batch_rows: int
    """Rows that a task handles together; bounds a worker's memory."""
    counts_all: bool
    """True if all sources are counted before rows are chosen, not only those with a limit."""
    counts_by_source: bool
    """True if a row counts its duplicates source by source; a small row would mostly consist of these counts."""
    passes: tuple[tuple[str, ...], ...]
    """Parts that each writing pass over the sources writes."""

    @abstractmethod
    def find(self, source: Any) -> SourceFiles:
        """Find the files of a source."""

    @abstractmethod
    def scan(self, source: Any, files: SourceFiles) -> ray.data.Dataset:
        """Return a lazy dataset with a row for every row of the source's files."""

    @abstractmethod
    def count(self, batch: pa.Table, task: SourceTask[DataSettings]) -> tuple[Counter[str], np.ndarray]:
        """Return counts of a scanned batch, and the choice hashes of its rows, uint64, if the source has a limit.

        `read` counts rows; `bytes` is their size in the sort, by default that of the files.
        """

    @abstractmethod
    def rows(self, batch: pa.Table, task: SourceTask[DataSettings]) -> list[Row]:
        """Return the chosen rows of a scanned batch."""

    @abstractmethod
    def summary(self, plan: Plan[DataSettings], counts: Sequence[Counter[str]], written: Written) -> dict[str, Any]:
        """Return the manifest's counts; `counts` sums up what `count` gave of each source."""

    def check_source(self, source: Any, files: SourceFiles) -> None:
        """Refuse a source whose first rows cannot be read."""

    def check_rejected(self, settings: DataSettings, manifest: Manifest, folder: Path) -> None:
        """Refuse prepared data of which more was rejected than the settings allow."""
