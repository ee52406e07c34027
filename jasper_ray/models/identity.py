"""What identifies a model's weights: the bytes of a folder's files, or a commit on the hub."""

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
    """`sha256:…` over the files of a local model, or `commit:…` of a hub id.

    Raises:
        ConfigError: a folder without weights, or a hub that cannot be asked.
    """
    location = Path(locate(model, revision))
    if location.is_dir():
        return f"sha256:{folder_digest(location)}"
    return f"commit:{hub_commit(model, revision)}"


def revision_in(identity: str) -> str | None:
    """The commit that an identity names; None for a local model's."""
    return identity.removeprefix("commit:") if identity.startswith("commit:") else None


def folder_digest(folder: Path) -> str:
    """sha256 over the names and bytes of the files that decide a model's vectors.

    Raises:
        ConfigError: a folder without weights, or with a module whose weights are pickle alone.
    """
    digest = hashlib.sha256()
    found = list(folder.rglob("*"))
    files = [path for path in found if path.suffix in DECISIVE and path.name != MARKER]
    if not any(path.suffix == ".safetensors" for path in files):
        raise ConfigError(f"{str(folder)!r} has no .safetensors weights; give a whole model folder")
    check_no_pickle(found)
    for path in sorted(files):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 22), b""):
                digest.update(block)
    return digest.hexdigest()


def check_no_pickle(files: Sequence[Path]) -> None:
    """Refuse `pytorch_model*.bin`, which would be read because no safetensors lie beside it."""
    safe = {path.parent for path in files if path.suffix == ".safetensors"}
    pickled = sorted(path for path in files if path.match("pytorch_model*.bin") and path.parent not in safe)
    if pickled:
        raise ConfigError(
            f"{str(pickled[0])!r} holds weights as pickle, with no .safetensors beside it; convert them, "
            "or take the file out of the folder if the model does not use it"
        )


def hub_commit(model: str, revision: str | None) -> str:
    """The commit that `revision` of a hub id stands for now."""
    if revision and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        return str(HfApi().model_info(model, revision=revision).sha)
    except OfflineModeIsEnabled as error:
        raise ConfigError(
            f"the hub must not be asked (HF_HUB_OFFLINE) which commit of {model!r} is meant; "
            "give revision, the full commit (40 hex digits), or a local folder as model"
        ) from error
    except Exception as error:  # a dead network raises what the hub's HTTP library raises, which changes with versions
        raise ConfigError(
            f"{model!r} is neither a local folder nor reachable on the hub ({type(error).__name__}); "
            "check the name, or give the folder that holds it"
        ) from error
