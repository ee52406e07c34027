"""Atomic writes of files and folders, and a folder lock."""

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
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which replaces `path` when the block ends and is removed if it fails.

    The folder of `path` is created if missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield staging
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as staging:
        staging.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, which replaces `folder` when the block ends and is removed if it fails."""
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
    """Keep other processes out of a folder until the block or this process ends.

    Raises:
        ConfigError: with `refusal`, if another process holds the lock.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(refusal) from error
    except (OSError, NotImplementedError) as error:
        logger.warning("%s cannot be locked (%s): let only one process at a time use it", folder, error)
    try:
        yield
    finally:
        lock.release()
