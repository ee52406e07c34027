"""A folder in any file system that pyarrow knows, with atomic writes."""

from __future__ import annotations

import os
import posixpath
import uuid
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from jasper_ray.config import ConfigError
from jasper_ray.sources.files import printable

APPEAR_WHOLE = ("s3", "gcs", "abfs")
"""Object stores, where an object appears when it is complete. Elsewhere a file is written aside, then renamed."""


@dataclass(frozen=True)
class Store:
    """A folder of files."""

    filesystem: fs.FileSystem
    root: str
    """Its path in that file system."""
    address: str
    """Its address for messages, without secrets."""

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write or replace a file atomically."""
        path = posixpath.join(self.root, name)
        folder, _, last = path.rpartition("/")
        if self.filesystem.type_name in APPEAR_WHOLE:
            self._fill(path, data)
            return
        self.filesystem.create_dir(folder, recursive=True)
        staging = f"{folder}/.{last}.{uuid.uuid4().hex[:8]}"
        try:
            self._fill(staging, data)
            if not self.local and self.holds(name):
                self.filesystem.delete_file(path)  # only a local rename is sure to replace
            self.filesystem.move(staging, path)
        except BaseException:  # Ctrl-C too must not leave half a file
            if self.filesystem.get_file_info(staging).type == fs.FileType.File:
                self.filesystem.delete_file(staging)
            raise

    def _fill(self, path: str, data: bytes | pa.Buffer) -> None:
        with self.filesystem.open_output_stream(path, compression=None) as stream:
            stream.write(data)
        if self.local:  # so that a power cut leaves no empty file under a finished name
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def holds(self, name: str) -> bool:
        return bool(self.filesystem.get_file_info(posixpath.join(self.root, name)).type == fs.FileType.File)

    def read(self, name: str) -> pa.Buffer | None:
        """Read a whole file; None if it does not exist."""
        if not self.holds(name):
            return None
        with self.filesystem.open_input_file(posixpath.join(self.root, name)) as stream:
            return stream.read_buffer()

    def names(self, folder: str) -> list[str]:
        """List the files directly in a folder, sorted, without unfinished ones."""
        return [name for name in self._all_names(folder) if not name.startswith(".")]

    def sweep(self, folder: str) -> None:
        """Remove unfinished files; their writers must have ended."""
        for name in self._all_names(folder):
            if name.startswith("."):
                self.delete(f"{folder}/{name}")

    def _all_names(self, folder: str) -> list[str]:
        selector = fs.FileSelector(posixpath.join(self.root, folder), allow_not_found=True)
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector) if info.is_file)

    def delete(self, name: str) -> None:
        self.filesystem.delete_file(posixpath.join(self.root, name))

    @property
    def local(self) -> Path | None:
        """The folder's path if it is in a local or mounted file system."""
        return Path(self.root) if isinstance(self.filesystem, fs.LocalFileSystem) else None


def open_store(address: str, write: bool = True) -> Store:
    """Open the folder at a path or URI; to `write`, make it if it is missing.

    Raises:
        ConfigError: it cannot be opened or written.
    """
    try:
        if "://" in address:
            filesystem, root = fs.FileSystem.from_uri(address)
        else:
            filesystem, root = fs.LocalFileSystem(), str(Path(address).expanduser().absolute())
        store = Store(filesystem, root.rstrip("/"), printable(address))
        if write:
            store.write(".writable", b"")
            store.delete(".writable")
    except (pa.ArrowException, OSError) as error:
        what = f"cannot {'write to' if write else 'open'} {printable(address)}"
        raise ConfigError(f"{what} ({str(error).splitlines()[0]}); choose another --output") from error
    return store
