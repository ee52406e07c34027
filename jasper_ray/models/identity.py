"""The identity of a model's weights: the bytes of a folder's files, or a commit on the hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from jasper_ray.assets.cache import MARKER, locate
from jasper_ray.config import ConfigError

DECISIVE = {".safetensors", ".json", ".txt", ".model", ".py"}
"""Suffixes of the files that decide a model's vectors."""


def weights_identity(model: str, revision: str | None) -> str:
    """Identify a model: `sha256:…` over the files of a local folder, or `commit:…` of a hub id.

    Raises:
        ConfigError: a folder without weights, or a hub that cannot be reached.
    """
    location = Path(locate(model, revision))
    if location.is_dir():
        return f"sha256:{folder_digest(location)}"
    return f"commit:{hub_commit(model, revision)}"


def revision_in(identity: str) -> str | None:
    """Extract the commit of a hub model's identity; None for a local model."""
    return identity.removeprefix("commit:") if identity.startswith("commit:") else None


def folder_digest(folder: Path) -> str:
    """Hash the names and bytes of the files that decide a model's vectors.

    Raises:
        ConfigError: a folder without weights, or with a module that has only pickled weights.
    """
    digest = hashlib.sha256()
    paths = list(folder.rglob("*"))
    files = [path for path in paths if path.suffix in DECISIVE and path.name != MARKER]
    if not any(path.suffix == ".safetensors" for path in files):
        raise ConfigError(f"{str(folder)!r} has no .safetensors weights; give a whole model folder")
    check_no_pickle(paths)
    for path in sorted(files):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            for part in iter(lambda: file.read(1 << 22), b""):
                digest.update(part)
    return digest.hexdigest()


def check_no_pickle(files: Sequence[Path]) -> None:
    """Refuse `pytorch_model*.bin` in a folder without safetensors, where it would be loaded."""
    safe = {path.parent for path in files if path.suffix == ".safetensors"}
    pickled = sorted(path for path in files if path.match("pytorch_model*.bin") and path.parent not in safe)
    if pickled:
        raise ConfigError(
            f"{str(pickled[0])!r} holds pickled weights, with no .safetensors beside it; convert them, "
            "or delete the file if the model does not use it"
        )


def hub_commit(model: str, revision: str | None) -> str:
    """Ask the hub for the commit of `revision`."""
    if revision and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        return str(HfApi().model_info(model, revision=revision).sha)
    except OfflineModeIsEnabled as error:
        raise ConfigError(
            f"the hub is offline (HF_HUB_OFFLINE), so the commit of {model!r} is unknown; "
            "give revision, the full commit (40 hex digits), or a local folder as model"
        ) from error
    except Exception as error:  # a dead network raises what the hub's HTTP library raises, which changes with versions
        raise ConfigError(
            f"{model!r} is neither a local folder nor reachable on the hub ({type(error).__name__}); "
            "check the name, or give the folder that holds it"
        ) from error
