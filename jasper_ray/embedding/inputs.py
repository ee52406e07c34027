"""The files of a corpus: find them, recognise changed ones, and check that they fit together."""

from __future__ import annotations

import hashlib
import logging
import os
import posixpath
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pyarrow import fs
from pydantic import Field

from jasper_ray.config import ConfigError, Settings
from jasper_ray.embedding.settings import EmbedSettings, Format
from jasper_ray.sources.files import COMPRESSIONS, NothingFound, SourceFiles, endings, find_files, printable
from jasper_ray.sources.settings import path_title

FORMATS: tuple[Format, ...] = get_args(Format)

logger = logging.getLogger(__name__)


class KnownFile(Settings):
    """An input file as it was when it was first read."""

    name: str
    """Its path, after the name of its file system unless that is the local one."""
    key: str
    """Beginning of the names of its chunks' files."""
    size: int | None
    """Bytes."""
    mtime_ns: int | None
    """Time of its last change."""


class Scan(Settings):
    """The contents of a file."""

    rows: int
    """Rows, good and bad."""
    offsets: tuple[int, ...] = ()
    """Bytes at which its chunks begin; empty for a file that can only be read in its own way, or from its start."""
    types: dict[str, str] = Field(default_factory=dict)
    """Types of the columns that are copied."""
    fault: str = ""
    """Reason why none of it can be read."""


class ScannedFile(Settings):
    """An input file and its contents."""

    file: KnownFile
    scan: Scan


@dataclass(frozen=True)
class InputFile:
    """A file to read."""

    known: KnownFile
    filesystem: fs.FileSystem
    path: str
    """Path in that file system."""
    format: Format

    @property
    def name(self) -> str:
        return self.known.name

    @property
    def compressed(self) -> bool:
        """True if it can only be read from its start."""
        return self.path.endswith(COMPRESSIONS[1:])


@dataclass(frozen=True)
class InputPlace:
    """A place to search for files of a format."""

    path: str
    format: str

    @property
    def title(self) -> str:
        return path_title(self.path)


def list_inputs(settings: EmbedSettings) -> list[InputFile]:
    """List every file that the inputs name, once, sorted by name.

    Raises:
        ConfigError: an input names no file, or files of several formats.
    """
    inputs: dict[str, InputFile] = {}
    for path in settings.inputs:
        form = settings.format or format_of(path)
        for file in input_files(find_files(InputPlace(path, form)), form):
            inputs.setdefault(file.known.name, file)
    return [inputs[name] for name in sorted(inputs)]


def check_apart(inputs: Iterable[str], output: str) -> None:
    """Refuse an output folder within an input folder: the next call would take it for input."""
    place = Path(output).absolute()
    for path in inputs:
        if Path(path).is_dir() and place.is_relative_to(Path(path).absolute()):
            raise ConfigError(
                f"--output {output} is inside of --input {path}, and the next call would embed it; "
                "choose a folder beside it"
            )


def input_files(files: SourceFiles, form: Format) -> list[InputFile]:
    """Describe found files; a file has one name, however its input was spelled, and a key made of that."""
    inputs = []
    for info in files.filesystem.get_file_info(list(files.paths)):
        name = f"{files.filesystem.type_name}://{info.path}"
        if isinstance(files.filesystem, fs.LocalFileSystem):
            name = os.path.normpath(info.path)
        stem = posixpath.basename(name).split(".")[0][:40].lstrip("_") or "file"  # readers skip names that begin with _
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        known = KnownFile(name=name, key=f"{stem}-{digest}", size=info.size, mtime_ns=info.mtime_ns)
        inputs.append(InputFile(known, files.filesystem, info.path, form))
    return inputs


def format_of(path: str) -> Format:
    """Recognise the one format of a path's files by the ends of their names."""
    formats: list[Format] = []
    for form in FORMATS:
        try:
            names = find_files(InputPlace(path, form)).paths
        except NothingFound:
            continue
        if any(name.endswith(endings(form)) for name in names):
            formats.append(form)
    if len(formats) == 1:
        return formats[0]
    if not formats:
        raise ConfigError(
            f"found no file named as parquet, jsonl, csv or txt at {printable(path)}; change --input, or give --format"
        )
    raise ConfigError(f"found files of several formats, {', '.join(formats)}, at {printable(path)}; give --format")


def check_files(scans: Collection[ScannedFile], max_rejected: float) -> None:
    """Refuse files of which too many cannot be read, or that do not fit together."""
    bad = [each for each in scans if each.scan.fault]
    if len(bad) > max_rejected * len(scans):
        raise ConfigError(
            f"{len(bad)} of {len(scans)} files cannot be read, such as {bad[0].file.name}: {bad[0].scan.fault}; "
            "fix or remove these files, or raise --max-rejected"
        )
    readable = [each for each in scans if not each.scan.fault]
    for each in readable:
        if each.scan.types != readable[0].scan.types:
            raise ConfigError(
                f"the copied columns of {each.file.name} are {each.scan.types}, and those of "
                f"{readable[0].file.name} are {readable[0].scan.types}; give them one type, or remove them from "
                "--carry and --id-column"
            )


def check_removed(removed: Mapping[str, bool]) -> None:
    """Refuse files that were removed before all of their rows were embedded; `removed` is True for finished files."""
    if left := [name for name, is_finished in removed.items() if not is_finished]:
        raise ConfigError(
            f"{left[0]} was removed before all of its rows were embedded; put it back, or choose another --output"
        )
    if removed:
        message = "%d input files were removed since the last run (e.g. %s); keeping their vectors"
        logger.info(message, len(removed), next(iter(removed)))
