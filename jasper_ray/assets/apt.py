"""Debian packages, fetched without root and without installing them, by the machine's own apt."""

from __future__ import annotations

import gzip
import logging
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from jasper_ray.assets.download import last_error
from jasper_ray.assets.unpack import read_member
from jasper_ray.config import ConfigError

logger = logging.getLogger(__name__)


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
    return [_fetch(package, folder, f"{name}, package {package}") for package in packages]


def _fetch(package: str, folder: Path, title: str) -> Path:
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
