"""An output folder: what lies where, whose vectors these are, and what is finished.

job.json                     what decides the vectors; a call that differs in it is refused
ranges-<dim>.json            what int8 columns of that size were stretched over
inputs.jsonl                 every input file that was ever seen, and its rows
vectors/  rejected/          a file for each block
records/                     what became of the blocks since the manifest was written
manifest.json                the account, when all of it is done
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
from jasper_ray.config import ConfigError, Settings, setting_differences
from jasper_ray.embedding.chunks import is_block_name
from jasper_ray.embedding.files import ScannedFile
from jasper_ray.embedding.inputs import InputFile
from jasper_ray.embedding.manifest import Manifest
from jasper_ray.embedding.output import REJECTED, VECTORS, Record, record_in
from jasper_ray.embedding.settings import EmbedSettings, VectorColumn
from jasper_ray.embedding.store import Store
from jasper_ray.models.loading import first_line
from jasper_ray.vectors import Dtype

logger = logging.getLogger(__name__)

AnySettings = TypeVar("AnySettings", bound=Settings)

JOB, INPUTS, MANIFEST, RECORDS = "job.json", "inputs.jsonl", "manifest.json", "records"


class Resolved(Settings):
    """What was left open in the settings, as the first call decided it."""

    prompt: str
    """The text put before every text."""
    vectors: tuple[VectorColumn, ...]
    precision: Dtype
    agreement: float | None
    """Least cosine of a sample's vectors in this precision with those in float32; None for float32 itself."""
    max_length: int
    """Tokens; 0 for a model that takes texts alone."""


class Job(Settings):
    """Whose vectors lie in a folder."""

    model: str
    """As it was named; not decisive: a model may move."""
    weights: str
    """What identifies it."""
    asked: dict[str, Any]
    """`EmbedSettings.decisive`."""
    resolved: Resolved


class OutputFolder:
    """The folder of one embedded corpus."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def job(self) -> Job | None:
        """Whose vectors lie here; None in a new folder."""
        return self._read(JOB, Job)

    def manifest(self) -> Manifest | None:
        """The account of the last call that ended."""
        return self._read(MANIFEST, Manifest)

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
        """Write one of the files above."""
        self.store.write(name, value.model_dump_json(indent=1).encode())

    def check(self, settings: EmbedSettings, weights: str) -> Job | None:
        """The job of before if it asked for the same; raises `ConfigError` with what differs."""
        job = self.job()
        if job is None:
            return None
        differences = setting_differences(
            {"model's weights": job.weights, **job.asked}, {"model's weights": weights, **settings.decisive()}
        )
        if differences:
            raise ConfigError(
                f"{self.store.address} holds vectors made otherwise: {'; '.join(differences)}; "
                "choose another --output, or ask for the same as before"
            )
        return job

    def known(self) -> dict[str, ScannedFile]:
        """The files that were seen before, by name."""
        return {each.file.name: each for each in self._lines(INPUTS, ScannedFile)}

    def keep_known(self, files: Iterable[ScannedFile]) -> None:
        """Write down which files were seen. Where blocks begin is found again when it is needed."""
        slim = [each.model_copy(update={"scan": each.scan.model_copy(update={"offsets": ()})}) for each in files]
        self.store.write(INPUTS, "".join(each.model_dump_json() + "\n" for each in slim).encode())

    def check_unchanged(
        self, files: Sequence[InputFile], known: Mapping[str, ScannedFile], begun: Container[str]
    ) -> None:
        """Refuse files that changed after some of their rows were embedded; `begun` are keys."""
        for file in files:
            before = known.get(file.known.name)
            if before and before.file != file.known and file.known.key in begun:
                raise ConfigError(
                    f"{file.known.name} has changed since its rows were first embedded here; "
                    "put changed texts into a new file, or choose another --output"
                )

    def sweep(self) -> None:
        """Remove what writers left half done that were killed."""
        for folder in (VECTORS, REJECTED, RECORDS):
            self.store.sweep(folder)

    def finished(self) -> set[str]:
        """Names of the blocks whose vectors are here."""
        return {name for name in self.store.names(VECTORS) if is_block_name(name)}

    def records(self) -> dict[str, Record]:
        """The records of finished blocks, by name: from where they were kept, else from the files themselves.

        A file that tells nothing is removed: its block is not finished.
        """
        manifest = self.manifest()
        kept = {record.name: record for record in manifest.blocks} if manifest else {}
        for part in self.store.names(RECORDS):
            for record in self._lines(f"{RECORDS}/{part}", Record):
                kept[record.name] = record
        found = {name: kept.get(name) or self._told(name) for name in sorted(self.finished())}
        return {name: record for name, record in found.items() if record}

    def _told(self, name: str) -> Record | None:
        data = self.store.read(f"{VECTORS}/{name}")
        assert data is not None, "just listed"
        try:
            return record_in(data)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValidationError) as error:
            logger.warning("%s/%s is damaged (%s) and will be made anew", VECTORS, name, first_line(error))
            self.store.delete(f"{VECTORS}/{name}")
            return None

    def _lines(self, name: str, kind: type[AnySettings]) -> list[AnySettings]:
        data = self.store.read(name)
        try:
            return [kind.model_validate_json(line) for line in data.to_pybytes().splitlines()] if data else []
        except ValidationError as error:
            raise self._damaged(name, error) from error

    def keep_records(self, records: Sequence[Record]) -> None:
        """Write down records that no manifest has yet."""
        if records:
            lines = "".join(record.model_dump_json() + "\n" for record in records)
            self.store.write(f"{RECORDS}/{records[0].name}.jsonl", lines.encode())

    def finish(self, manifest: Manifest) -> None:
        """Write the account; it holds all records from now on."""
        self.write(MANIFEST, manifest)
        for part in self.store.names(RECORDS):
            self.store.delete(f"{RECORDS}/{part}")

    def ranges(self, dims: Iterable[int]) -> dict[int, np.ndarray]:
        """What int8 columns are stretched over, float32 `[2, D]`, by size; raises `ConfigError` where it is missing."""
        found = {}
        for dim in dims:
            data = self.store.read(f"ranges-{dim}.json")
            if data is None:
                raise ConfigError(f"ranges-{dim}.json is missing in {self.store.address}; choose another --output")
            ranges = json.loads(data.to_pybytes())
            found[dim] = np.array([ranges["least"], ranges["largest"]], np.float32)
        return found

    def keep_ranges(self, ranges: Mapping[int, np.ndarray]) -> None:
        """Write what int8 columns are stretched over."""
        for dim, (least_D, largest_D) in ranges.items():
            value = {"least": least_D.tolist(), "largest": largest_D.tolist()}
            self.store.write(f"ranges-{dim}.json", json.dumps(value).encode())

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes out, where the folder can be locked; raises `ConfigError` where one works here."""
        if self.store.local is None:  # an object store has no locks
            return nullcontext()
        return locked_folder(
            self.store.local,
            f"another process is embedding into {self.store.address}; wait for it, or choose another --output",
        )
