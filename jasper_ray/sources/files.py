"""The files of a source, local or in any store that pyarrow can open."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
from pyarrow import fs

from jasper_ray.assets import contents, locate
from jasper_ray.config import ConfigError, fingerprint

SUFFIXES = {
    "parquet": (".parquet",),
    "jsonl": (".jsonl", ".json"),
    "csv": (".csv",),
    "text": (".txt",),
    "webdataset": (".tar", ".tar.gz", ".tgz"),
    "folder": ("",),
}
"""Suffixes of the files of a format in a folder; the name of a single file or a glob may have any suffix."""

COMPRESSIONS = ("", ".gz", ".bz2", ".zst")
"""Suffixes after that of texts and tables."""

GLOB_SIGNS = "*?["


class NothingFound(ConfigError):
    """A path that can be listed has no file of the format."""


class FileSource(Protocol):
    """A path to find files at, the name of the source, and its format, a key of `SUFFIXES`."""

    @property
    def path(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def format(self) -> str: ...


@dataclass(frozen=True)
class SourceFiles:
    """The files of one source, sorted by path, and their file system."""

    filesystem: fs.FileSystem
    paths: tuple[str, ...]
    content: str
    """A fingerprint of the contents, from their names, sizes and times; see `find_files`."""
    root: str
    """The deepest folder of the source's path before any glob sign."""
    size: int
    """Bytes of all files."""

    def inside(self, path: str) -> str:
        """Return one of the paths relative to the root."""
        return path.removeprefix(self.root).lstrip("/")


def find_files(source: FileSource) -> SourceFiles:
    """Find one file, all files of the source's format below a folder, or all that match a glob.

    Names that begin with `.` or `_` are skipped in folders and globs. `content` changes if a local file gets another
    name, size or modification time, or an asset other texts. For a remote URI it depends on the path alone, since
    listings of remote stores are not trusted: put changed remote data under a new path.

    Raises:
        ConfigError: there is no such file, or its store does not answer.
    """
    location = locate(source.path)
    filesystem, path = _open_filesystem(source, location)
    try:
        infos = sorted(_list_files(source, filesystem, path), key=lambda info: info.path)
    except OSError as error:
        raise ConfigError(
            f"source '{source.title}': cannot list {printable(location)} ({error}); change its path"
        ) from error
    if not infos:
        suffixes = " or ".join(SUFFIXES[source.format])
        expected = f"a file, a glob that matches one, or a folder with {suffixes} files" if suffixes else "a folder"
        raise NothingFound(
            f"source '{source.title}': found no file at {printable(location)}; expected {expected} "
            f"(its format is {source.format}); change path or format of the source"
        )
    if all(info.size == 0 for info in infos):
        raise ConfigError(
            f"source '{source.title}': {printable(location)} is empty; fill it, or change the source's path"
        )
    return SourceFiles(
        filesystem,
        paths=tuple(info.path for info in infos),
        content=_content(source, location, infos, path),
        root=_root(infos, path),
        size=sum(info.size or 0 for info in infos),
    )


def printable(address: str) -> str:
    """Return a path or URI without its credentials: the user before the host, and the options."""
    return re.sub(r"://[^/@]*@", "://", address.partition("?")[0]) if "://" in address else address


def _content(source: FileSource, location: str, infos: list[fs.FileInfo], path: str) -> str:
    if location != source.path:
        return contents(source.path)
    if "://" in location and not location.startswith("file://"):
        return fingerprint(source.path)
    root = path if len(infos) > 1 or infos[0].path != path else path.rpartition("/")[0]
    return fingerprint([[info.path.removeprefix(root), info.size, info.mtime_ns] for info in infos])


def _open_filesystem(source: FileSource, location: str) -> tuple[fs.FileSystem, str]:
    if "://" not in location:
        return fs.LocalFileSystem(), str(Path(location).expanduser().absolute())
    address, sign, options = location.partition("?")  # in a URI this begins options such as region=, not a glob
    root, pattern = _split_glob(address)
    try:
        filesystem, path = fs.FileSystem.from_uri(root + sign + options)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise ConfigError(
            f"source '{source.title}': pyarrow cannot open {printable(location)} ({error}); "
            "write a path or a URI it knows (file, s3, gs, hdfs, abfs) in the source's path"
        ) from error
    return filesystem, "/".join([path.rstrip("/"), pattern]) if pattern else path


def _list_files(source: FileSource, filesystem: fs.FileSystem, path: str) -> list[fs.FileInfo]:
    info = filesystem.get_file_info(path)
    if source.format == "folder" and info.type != fs.FileType.Directory:
        return []
    if info.type == fs.FileType.File:
        return [info]
    if info.type == fs.FileType.Directory:
        return [info for info in _below(filesystem, path) if info.path.endswith(endings(source.format))]
    if _split_glob(path)[1]:
        infos = _below(filesystem, _split_glob(path)[0] or "/")
        return [info for info in infos if _matches(info.path.split("/"), path.split("/"))]
    return []


def endings(form: str) -> tuple[str, ...]:
    """Return the suffixes of a format's files, compressed ones too."""
    compressions = ("",) if form in ("webdataset", "folder") else COMPRESSIONS
    return tuple(suffix + compression for suffix in SUFFIXES[form] for compression in compressions)


def _below(filesystem: fs.FileSystem, folder: str) -> list[fs.FileInfo]:
    infos = filesystem.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    inside = len(folder.rstrip("/")) + 1
    return [
        info
        for info in infos
        if info.type == fs.FileType.File
        and not any(part.startswith((".", "_")) for part in info.path[inside:].split("/"))
    ]


def _split_glob(path: str) -> tuple[str, str]:
    """Split a path after the deepest folder before any glob sign; without a sign the second part is empty."""
    signs = [path.index(sign) for sign in GLOB_SIGNS if sign in path]
    if not signs:
        return path, ""
    root = path[: min(signs)].rpartition("/")[0]
    return root, path[len(root) + 1 :]


def _matches(parts: list[str], patterns: list[str]) -> bool:
    """Match the parts of a path as a shell does: `*` is inside one folder, `**` is any number of folders."""
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_matches(parts[skipped:], patterns[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])


def _root(infos: list[fs.FileInfo], path: str) -> str:
    if len(infos) == 1 and infos[0].path == path:
        return path.rpartition("/")[0]
    return _split_glob(path)[0] if _split_glob(path)[1] else path
