"""Files and folders that appear whole or not at all, whatever happens while they are written; and who may write."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from jasper_ray.config import ConfigError

logger = logging.getLogger(__name__)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to; what is there takes the place of `path` when the block ends well, and vanishes when it fails.

    The folder of `path` is made where it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield staging
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file of text, whole."""
    with whole_file(path) as staging:
        staging.write_text(text, encoding="utf-8")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A fresh folder to fill, which takes the place of `folder` when the block ends well and vanishes when it fails."""
    staging = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    staging.mkdir(parents=True)
    try:
        yield staging
        if folder.exists():
            stale = folder.with_name(f"{staging.name}.stale")
            folder.rename(stale)
            staging.rename(folder)
            shutil.rmtree(stale)
        else:
            staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def locked_folder(folder: Path, refusal: str) -> Iterator[None]:
    """Keep every other process out of a folder; the lock goes with this process, however it ends.

    Raises:
        ConfigError: with `refusal`, where another process works there.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(refusal) from error
    except (OSError, NotImplementedError) as error:
        logger.warning("%s cannot be locked (%s): let only one process at a time work in it", folder, error)
    try:
        yield
    finally:
        lock.release()
