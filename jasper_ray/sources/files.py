"""Finding the files of a source, locally or in any store that pyarrow can open."""

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
"""Which files of a folder belong to a format; a file or glob named outright may be called anything."""

COMPRESSIONS = ("", ".gz", ".bz2", ".zst")
"""What may follow the suffix of texts and tables."""

_GLOB_SIGNS = "*?["


class NothingFound(ConfigError):
    """A place where files can be listed has none of the format."""


class Located(Protocol):
    """A source of texts or of pairs, as far as its files go."""

    @property
    def path(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def format(self) -> str:
        """A key of `SUFFIXES`."""
        ...


@dataclass(frozen=True)
class SourceFiles:
    """The files of one source, sorted by path, and the file system they lie in."""

    filesystem: fs.FileSystem
    paths: tuple[str, ...]
    content: str
    """A fingerprint of what is known about the contents; see `find_files`."""
    root: str
    """The deepest folder that the source's path names without glob signs."""
    size: int
    """Bytes of all files."""

    def inside(self, path: str) -> str:
        """One of the paths, relative to the root."""
        return path.removeprefix(self.root).lstrip("/")


def find_files(source: Located) -> SourceFiles:
    """The files `source` names: one file, all files of its format below a folder, or what a glob matches.

    Names that begin with `.` or `_` are passed over in folders and globs. `content` changes when a local file gets
    another name, size or modification time, or an asset other texts. For a remote URI it is the path alone: what a
    remote store lists is not trusted, so put changed remote data under a new path.

    Raises `ConfigError` if there is no such file or its store does not answer.
    """
    location = locate(source.path)
    filesystem, path = _open_filesystem(source, location)
    try:
        infos = sorted(_list_files(source, filesystem, path), key=lambda info: info.path)
    except OSError as error:
        raise ConfigError(
            f"source '{source.title}': cannot list {shown(location)} ({error}); change its path"
        ) from error
    if not infos:
        raise NothingFound(_nothing_found(source, location))
    if all(info.size == 0 for info in infos):
        raise ConfigError(f"source '{source.title}': {shown(location)} is empty; fill it, or change the source's path")
    return SourceFiles(
        filesystem,
        paths=tuple(info.path for info in infos),
        content=_content(source, location, infos, path),
        root=_root(infos, path),
        size=sum(info.size or 0 for info in infos),
    )


def shown(address: str) -> str:
    """A path or URI as it may be told: without what can be secret in it: a user before the host, and options."""
    return re.sub(r"://[^/@]*@", "://", address.partition("?")[0]) if "://" in address else address


def _content(source: Located, location: str, infos: list[fs.FileInfo], path: str) -> str:
    if location != source.path:
        return contents(source.path)
    if "://" not in location or location.startswith("file://"):
        return _listing(infos, path)
    return fingerprint(source.path)


def _open_filesystem(source: Located, location: str) -> tuple[fs.FileSystem, str]:
    if "://" not in location:
        return fs.LocalFileSystem(), str(Path(location).expanduser().absolute())
    address, sign, options = location.partition("?")  # in a URI this begins options such as region=, not a glob
    root, pattern = _split_glob(address)
    try:
        filesystem, path = fs.FileSystem.from_uri(root + sign + options)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise ConfigError(
            f"source '{source.title}': pyarrow cannot open {shown(location)} ({error}); "
            "write a path or a URI it knows (file, s3, gs, hdfs, abfs) in the source's path"
        ) from error
    return filesystem, "/".join([path.rstrip("/"), pattern]) if pattern else path


def _list_files(source: Located, filesystem: fs.FileSystem, path: str) -> list[fs.FileInfo]:
    info = filesystem.get_file_info(path)
    if source.format == "folder" and info.type != fs.FileType.Directory:
        return []
    if info.type == fs.FileType.File:
        return [info]
    if info.type == fs.FileType.Directory:
        found = _below(filesystem, path)
        return [info for info in found if info.path.endswith(endings(source.format))]
    if _split_glob(path)[1]:
        return [info for info in _below(filesystem, _split_glob(path)[0] or "/") if _matches(info.path, path)]
    return []


def endings(form: str) -> tuple[str, ...]:
    """How the names of a format's files end, compressed ones too."""
    compressions = ("",) if form in ("webdataset", "folder") else COMPRESSIONS
    return tuple(suffix + compression for suffix in SUFFIXES[form] for compression in compressions)


def _below(filesystem: fs.FileSystem, folder: str) -> list[fs.FileInfo]:
    infos = filesystem.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    inside = len(folder.rstrip("/")) + 1
    return [info for info in infos if info.type == fs.FileType.File and not _is_hidden(info.path[inside:])]


def _is_hidden(relative: str) -> bool:
    return any(part.startswith((".", "_")) for part in relative.split("/"))


def _split_glob(path: str) -> tuple[str, str]:
    """The deepest folder that is written without glob signs, and the rest, which is empty if there is no such sign."""
    signs = [path.index(sign) for sign in _GLOB_SIGNS if sign in path]
    if not signs:
        return path, ""
    root = path[: min(signs)].rpartition("/")[0]
    return root, path[len(root) + 1 :]


def _matches(path: str, pattern: str) -> bool:
    """Like a shell: `*` stays within one folder, `**` stands for any number of folders."""
    return _match_parts(path.split("/"), pattern.split("/"))


def _match_parts(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_match_parts(parts[skipped:], patterns[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], patterns[0]) and _match_parts(parts[1:], patterns[1:])


def _root(infos: list[fs.FileInfo], path: str) -> str:
    if len(infos) == 1 and infos[0].path == path:
        return path.rpartition("/")[0]
    return _split_glob(path)[0] if _split_glob(path)[1] else path


def _listing(infos: list[fs.FileInfo], path: str) -> str:
    root = path if len(infos) > 1 or infos[0].path != path else path.rpartition("/")[0]
    return fingerprint([[info.path.removeprefix(root), info.size, info.mtime_ns] for info in infos])


def _nothing_found(source: Located, location: str) -> str:
    suffixes = " or ".join(SUFFIXES[source.format])
    expected = f"a file, a glob that matches one, or a folder with {suffixes} files" if suffixes else "a folder"
    return (
        f"source '{source.title}': found no file at {shown(location)}; expected {expected} "
        f"(its format is {source.format}); change path or format of the source"
    )
