"""Loading transformers models, tokenizers and configurations, from a hub id, a folder or an asset; their code never."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from jasper_ray.assets import locate
from jasper_ray.config import ConfigError

if TYPE_CHECKING:  # transformers takes seconds to import; whoever only reads settings does not wait for it
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_weights(location: str, revision: str | None = None, config: PretrainedConfig | None = None) -> PreTrainedModel:
    """A transformers model in fp32 from safetensors alone.

    Code that comes with weights is never run: a student must load anywhere without it. `config` names the part of a
    larger model that is wanted; the model's own when left out.

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
            "mend the folder or its config.json"
        )
    return body


def load_tokenizer(location: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside a model's weights; one that cannot pad learns to, with its end-of-text token.

    Raises:
        ConfigError: there is none.
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
    """`base`'s own configuration; `place` is where the recipe names it.

    Raises:
        ConfigError: it has none that can be read.
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
    """The configuration that the recipe spells out.

    Raises:
        ConfigError: transformers does not know it.
    """
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
    """Refuse weights that are not what the recipe declares."""
    for key, declared in (architecture or {}).items():
        found = getattr(config, key, None)
        if found != declared:
            raise ConfigError(
                f"{place}.architecture.{key} is {declared!r}, but the weights of {base!r} have {found!r}; "
                "change one of the two"
            )


def first_line(error: Exception) -> str:
    """The first line of an exception's message: libraries append paragraphs of advice."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip()
