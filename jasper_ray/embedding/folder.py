"""An output folder: its files, the origin of its vectors, and its finished chunks.

job.json                     all that decides the vectors; a call that differs in it is refused
ranges-<dim>.json            the ranges of int8 columns of that size
inputs.jsonl                 every input file so far, and its rows
vectors/  rejected/          a file per chunk
records/                     records of the chunks since the last manifest
manifest.json                the counts of everything, when all is done
"""

from __future__ import annotations

import json
import logging
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from jasper_ray.atomic import locked_folder
from jasper_ray.config import ConfigError, Settings, first_line, setting_differences
from jasper_ray.embedding.chunks import is_chunk_name
from jasper_ray.embedding.inputs import InputFile, ScannedFile
from jasper_ray.embedding.manifest import EmbeddingManifest
from jasper_ray.embedding.output import REJECTED, VECTORS, ChunkRecord, record_in
from jasper_ray.embedding.settings import EmbedSettings, VectorColumn
from jasper_ray.embedding.store import Store
from jasper_ray.vectors import Dtype

logger = logging.getLogger(__name__)

AnySettings = TypeVar("AnySettings", bound=Settings)

PROVENANCE, INPUTS, MANIFEST, RECORDS = "job.json", "inputs.jsonl", "manifest.json", "records"


class Resolved(Settings):
    """Settings that were left open, as the first call resolved them."""

    prompt: str
    """Text put before every text."""
    vectors: tuple[VectorColumn, ...]
    precision: Dtype
    agreement: float | None
    """Least cosine of a sample's vectors in this precision with those in float32; None for float32 itself."""
    max_length: int
    """Longest text, in tokens; 0 for a model that takes only texts."""


class Provenance(Settings):
    """The origin of the vectors in a folder."""

    model: str
    """Name of the model; not decisive, since a model may move."""
    weights: str
    """Identity of its weights."""
    asked: dict[str, Any]
    """`EmbedSettings.decisive`."""
    resolved: Resolved


class OutputFolder:
    """The folder of one embedded corpus."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def provenance(self) -> Provenance | None:
        """Read the origin of the vectors; None in a new folder."""
        return self._read(PROVENANCE, Provenance)

    def manifest(self) -> EmbeddingManifest | None:
        return self._read(MANIFEST, EmbeddingManifest)

    def _read(self, name: str, kind: type[Any]) -> Any:
        data = self.store.read(name)
        try:
            return None if data is None else kind.model_validate_json(data.to_pybytes())
        except ValidationError as error:
            raise self._damaged(name, error) from error

    def _damaged(self, name: str, error: ValidationError) -> ConfigError:
        faults = error.error_count()
        return ConfigError(
            f"{name} in {self.store.address} is damaged or of another version ({faults} faults); "
            "choose another --output"
        )

    def write(self, name: str, value: Settings) -> None:
        self.store.write(name, value.model_dump_json(indent=1).encode())

    def check(self, settings: EmbedSettings, weights: str) -> Provenance | None:
        """Read the origin of the vectors, and compare it with the settings.

        Raises:
            ConfigError: the settings differ.
        """
        before = self.provenance()
        if before is None:
            return None
        differences = setting_differences(
            {"model's weights": before.weights, **before.asked}, {"model's weights": weights, **settings.decisive()}
        )
        if differences:
            raise ConfigError(
                f"{self.store.address} holds vectors of other settings: {'; '.join(differences)}; "
                "choose another --output, or the settings of before"
            )
        return before

    def known(self) -> dict[str, ScannedFile]:
        """Read the input files of earlier calls, by name."""
        return {each.file.name: each for each in self._lines(INPUTS, ScannedFile)}

    def keep_known(self, files: Iterable[ScannedFile]) -> None:
        """Write the input files. The offsets of chunks are not kept; another scan finds them."""
        slim = [each.model_copy(update={"scan": each.scan.model_copy(update={"offsets": ()})}) for each in files]
        self.store.write(INPUTS, "".join(each.model_dump_json() + "\n" for each in slim).encode())

    def check_unchanged(
        self, files: Sequence[InputFile], known: Mapping[str, ScannedFile], begun: Container[str]
    ) -> None:
        """Refuse files that changed after some of their rows were embedded; `begun` holds their keys."""
        for file in files:
            before = known.get(file.known.name)
            if before and before.file != file.known and file.known.key in begun:
                raise ConfigError(
                    f"{file.known.name} has changed since its rows were first embedded here; "
                    "put changed texts into a new file, or choose another --output"
                )

    def sweep(self) -> None:
        """Remove the unfinished files of killed writers."""
        for folder in (VECTORS, REJECTED, RECORDS):
            self.store.sweep(folder)

    def finished(self) -> set[str]:
        """List the chunks whose vectors are stored, by name."""
        return {name for name in self.store.names(VECTORS) if is_chunk_name(name)}

    def records(self) -> dict[str, ChunkRecord]:
        """Read the records of finished chunks, by name: kept ones, else those in the files of vectors.

        A file without a record is removed: its chunk is not finished.
        """
        manifest = self.manifest()
        kept = {record.name: record for record in manifest.blocks} if manifest else {}
        for part in self.store.names(RECORDS):
            for record in self._lines(f"{RECORDS}/{part}", ChunkRecord):
                kept[record.name] = record
        records = {name: kept.get(name) or self._record_in(name) for name in sorted(self.finished())}
        return {name: record for name, record in records.items() if record}

    def _record_in(self, name: str) -> ChunkRecord | None:
        data = self.store.read(f"{VECTORS}/{name}")
        assert data is not None, "just listed"
        try:
            return record_in(data)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValidationError) as error:
            logger.warning("%s/%s is damaged (%s), embedding its rows again", VECTORS, name, first_line(error))
            self.store.delete(f"{VECTORS}/{name}")
            return None

    def _lines(self, name: str, kind: type[AnySettings]) -> list[AnySettings]:
        data = self.store.read(name)
        try:
            return [kind.model_validate_json(line) for line in data.to_pybytes().splitlines()] if data else []
        except ValidationError as error:
            raise self._damaged(name, error) from error

    def keep_records(self, records: Sequence[ChunkRecord]) -> None:
        if records:
            lines = "".join(record.model_dump_json() + "\n" for record in records)
            self.store.write(f"{RECORDS}/{records[0].name}.jsonl", lines.encode())

    def finish(self, manifest: EmbeddingManifest) -> None:
        """Write the manifest, which replaces the kept records."""
        self.write(MANIFEST, manifest)
        for part in self.store.names(RECORDS):
            self.store.delete(f"{RECORDS}/{part}")

    def ranges(self, dims: Iterable[int]) -> dict[int, np.ndarray]:
        """Read the ranges of int8 columns, float32 `[2, D]`, by size."""
        ranges = {}
        for dim in dims:
            data = self.store.read(f"ranges-{dim}.json")
            if data is None:
                raise ConfigError(f"ranges-{dim}.json is missing in {self.store.address}; choose another --output")
            value = json.loads(data.to_pybytes())
            ranges[dim] = np.array([value["least"], value["largest"]], np.float32)
        return ranges

    def keep_ranges(self, ranges: Mapping[int, np.ndarray]) -> None:
        for dim, (least_D, largest_D) in ranges.items():
            value = {"least": least_D.tolist(), "largest": largest_D.tolist()}
            self.store.write(f"ranges-{dim}.json", json.dumps(value).encode())

    def locked(self) -> AbstractContextManager[None]:
        """Lock the folder against other processes, if its file system has locks."""
        if self.store.local is None:  # an object store has no locks
            return nullcontext()
        return locked_folder(
            self.store.local,
            f"another process is embedding into {self.store.address}; wait for it, or choose another --output",
        )
