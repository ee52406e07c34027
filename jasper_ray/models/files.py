"""The files of a student folder: JSON, and a small module's weights as safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from jasper_ray.config import ConfigError
from jasper_ray.models.loading import first_line


def save_module(module: nn.Module, path: Path, prefix: str = "") -> None:
    """Write a module's weights, their names behind `prefix`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{prefix}{name}": value.detach().contiguous() for name, value in module.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt"})


def load_module(module: nn.Module, path: Path, what: str, prefix: str = "") -> None:
    """Give a module the weights in a file; `what` says in errors what they are.

    Raises:
        ConfigError: they are missing, damaged or misshapen.
    """
    try:
        module.load_state_dict({name.removeprefix(prefix): value for name, value in load_file(path).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ConfigError(
            f"no {what} could be loaded from {str(path.parent)!r}: {first_line(error)}; give a whole student folder"
        ) from error


def read_json(path: Path) -> Any:
    """The value in a file; raises `ConfigError` where there is no such file."""
    if not path.is_file():
        raise ConfigError(f"{str(path)!r} is missing; give a whole student folder")
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a value; the folder of `path` is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
