"""The files of a corpus, found again at every call, each with what tells whether it is still the same."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pyarrow import fs

from jasper_ray.config import ConfigError, Settings
from jasper_ray.embedding.settings import EmbedSettings, Format
from jasper_ray.sources.files import COMPRESSIONS, NothingFound, SourceFiles, endings, find_files, printable
from jasper_ray.sources.settings import path_title

FORMATS: tuple[Format, ...] = get_args(Format)


class KnownFile(Settings):
    """An input file as it was when it was first met."""

    name: str
    """Its path, behind the name of its file system unless that is the local one."""
    key: str
    """Begins the names of its blocks' files."""
    size: int | None
    """Bytes."""
    mtime_ns: int | None
    """Time of its last change."""


@dataclass(frozen=True)
class InputFile:
    """A file to read."""

    known: KnownFile
    filesystem: fs.FileSystem
    path: str
    """In that file system."""
    format: Format

    @property
    def name(self) -> str:
        return self.known.name

    @property
    def compressed(self) -> bool:
        """Whether it can only be read from its beginning."""
        return self.path.endswith(COMPRESSIONS[1:])


@dataclass(frozen=True)
class Located:
    """A place to look for files of a format."""

    path: str
    format: str

    @property
    def title(self) -> str:
        return path_title(self.path)


def list_inputs(settings: EmbedSettings) -> list[InputFile]:
    """Every file that the inputs name, once, in the order of their names.

    Raises:
        ConfigError: an input names no file, or files of several formats.
    """
    found: dict[str, InputFile] = {}
    for path in settings.inputs:
        form = settings.format or format_of(path)
        for file in files_of(find_files(Located(path, form)), form):
            found.setdefault(file.known.name, file)
    return [found[name] for name in sorted(found)]


def check_apart(inputs: Iterable[str], output: str) -> None:
    """Refuse an output folder within an input folder: the next call would take it for input.

    Raises:
        ConfigError: it lies there.
    """
    place = Path(output).absolute()
    for path in inputs:
        if Path(path).is_dir() and place.is_relative_to(Path(path).absolute()):
            raise ConfigError(
                f"--output {output} lies in --input {path}, and the next call would embed it; choose a folder beside it"
            )


def files_of(files: SourceFiles, form: Format) -> list[InputFile]:
    infos = files.filesystem.get_file_info(list(files.paths))
    return [
        InputFile(known_file(full_name(files, info.path), info.size, info.mtime_ns), files.filesystem, info.path, form)
        for info in infos
    ]


def full_name(files: SourceFiles, path: str) -> str:
    """A file's one name, however its input was spelled."""
    if isinstance(files.filesystem, fs.LocalFileSystem):
        return os.path.normpath(path)
    return f"{files.filesystem.type_name}://{path}"


def known_file(name: str, size: int | None, mtime_ns: int | None) -> KnownFile:
    stem = (
        posixpath.basename(name).split(".")[0][:40].lstrip("_") or "file"
    )  # readers pass over names that begin with _
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return KnownFile(name=name, key=f"{stem}-{digest}", size=size, mtime_ns=mtime_ns)


def format_of(path: str) -> Format:
    """The one format whose files a path names, told by how their names end.

    Raises:
        ConfigError: none, or several.
    """
    formats: list[Format] = []
    for form in FORMATS:
        try:
            found = find_files(Located(path, form)).paths
        except NothingFound:
            continue
        if any(name.endswith(endings(form)) for name in found):
            formats.append(form)
    if len(formats) == 1:
        return formats[0]
    if not formats:
        raise ConfigError(
            f"found no file named as parquet, jsonl, csv or txt at {printable(path)}; change --input, or give --format"
        )
    raise ConfigError(f"found files of several formats, {', '.join(formats)}, at {printable(path)}; give --format")
