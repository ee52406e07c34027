"""Load transformers models, tokenizers and configurations from a hub id, folder or asset; read and write model files.

Code that comes with a model is never run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from jasper_ray.assets import locate
from jasper_ray.config import ConfigError, first_line

if TYPE_CHECKING:  # transformers takes seconds to import; reading settings does not need it
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_weights(location: str, revision: str | None = None, config: PretrainedConfig | None = None) -> PreTrainedModel:
    """Load a transformers model in fp32, from safetensors alone.

    `config` selects a part of a larger model; the default is the model's own.

    Raises:
        ConfigError: nothing loads from there, or weights are missing from the files.
    """
    from transformers import AutoModel

    try:
        body, info = AutoModel.from_pretrained(
            location,
            revision=revision,
            **({} if config is None else {"config": config}),
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"no model could be loaded from {location!r}: {first_line(error)}") from error
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ConfigError(
            f"{location!r} lacks {len(missing)} weights that its config.json asks for, {missing[0]} first; "
            "fix the folder or its config.json"
        )
    return body


def load_tokenizer(location: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer; if it has no pad token, use its end-of-text token.

    Raises:
        ConfigError: there is no tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(location, revision=revision)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no tokenizer could be loaded from {location!r}: {first_line(error)}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_config(base: str, revision: str | None, place: str) -> PretrainedConfig:
    """Read the configuration of `base`; `place` is its key in the recipe, for errors.

    Raises:
        ConfigError: no configuration can be read.
    """
    from transformers import AutoConfig

    location = locate(base, revision)
    try:
        return AutoConfig.from_pretrained(location, revision=revision)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{place}.base: no configuration could be read from {base!r} ({first_line(error)}); "
            f"name a folder or hub id that is reachable, or give {place}.architecture"
        ) from error


def declared_config(architecture: Mapping[str, Any], place: str) -> PretrainedConfig:
    """Make the configuration that the recipe declares."""
    from transformers import AutoConfig

    fields = dict(architecture)
    model_type = fields.pop("model_type", None)
    try:
        return AutoConfig.for_model(model_type, **fields)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{place}.architecture: transformers knows no model_type {model_type!r} with these fields "
            f"({first_line(error)}); take them from the model's config.json"
        ) from error


def check_architecture(architecture: Mapping[str, Any] | None, config: PretrainedConfig, base: str, place: str) -> None:
    """Refuse weights that differ from the declared architecture."""
    for key, declared in (architecture or {}).items():
        found = getattr(config, key, None)
        if found != declared:
            raise ConfigError(
                f"{place}.architecture.{key} is {declared!r}, but the weights of {base!r} have {found!r}; "
                "change one of the two"
            )


def save_module(module: nn.Module, path: Path, prefix: str = "") -> None:
    """Write a module's weights as safetensors, with `prefix` before their names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{prefix}{name}": value.detach().contiguous() for name, value in module.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt"})


def load_module(module: nn.Module, path: Path, subject: str, prefix: str = "") -> None:
    """Load a module's weights from safetensors; `subject` names them in errors."""
    try:
        module.load_state_dict({name.removeprefix(prefix): value for name, value in load_file(path).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ConfigError(
            f"no {subject} could be loaded from {str(path.parent)!r}: {first_line(error)}; give a whole student folder"
        ) from error


def read_json(path: Path) -> Any:
    """Read a JSON file of a student folder."""
    if not path.is_file():
        raise ConfigError(f"{str(path)!r} is missing; give a whole student folder")
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
