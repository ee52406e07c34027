"""Folders of prepared data: whether one can be written, and how one differs that is there already."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jasper_ray.config import ConfigError, setting_differences
from jasper_ray.corpus.shards import Shard
from jasper_ray.sources.files import SourceFiles


def differences(
    old: dict[str, Any], new: dict[str, Any], contents: Sequence[tuple[str, str]], files: Sequence[SourceFiles]
) -> str:
    """In which settings, or else in which sources' files, prepared data differ from what is asked for now.

    `contents` are names and fingerprints of the sources that the data were made of.
    """
    changed = [name for (name, content), found in zip(contents, files, strict=False) if content != found.content]
    found = setting_differences(old, new) or [f"the files of source {', '.join(changed)} have changed"]
    return "; ".join(found)


def check_writable(folder: Path) -> None:
    """Refuse a folder in which no file can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write to {folder} ({error.strerror}); choose another run folder") from error


def check_visible(folder: Path, shards: Sequence[Shard]) -> None:
    """Refuse a folder in which this process does not see what the workers have written."""
    missing = [shard.file for shard in shards if not (folder / shard.file).is_file()]
    if missing:
        raise ConfigError(
            f"{len(missing)} shards written by workers cannot be seen in {folder}; "
            "choose a run folder that all nodes of the cluster share"
        )
