"""The student's vision encoder: a tower whose tokens become embeddings of the text body.

The pooler has no parameters: it averages the tower's tokens, taken as an image of one channel, to the number and width
of embeddings that the body reads (arXiv 2412.19048, section 2.2, and the released configuration).
"""

# Shape legend: I images, S side of an image in pixels, T tokens of the tower, C their width, N image tokens, H hidden
# size of the body.

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from jasper_ray.assets import locate
from jasper_ray.config import ConfigError, Settings, first_line
from jasper_ray.images import Preprocessing, from_transformers
from jasper_ray.models.loading import (
    check_architecture,
    declared_config,
    load_module,
    load_weights,
    read_config,
    read_json,
    save_module,
    write_json,
)

if TYPE_CHECKING:  # transformers takes seconds to import; reading settings does not need it
    from transformers import PretrainedConfig, PreTrainedModel

Projector = Literal["none", "linear"]
PROJECTOR = "projector.safetensors"
PLACE = "student.vision"
"""Key of the tower in a recipe, for errors."""


class VisionSettings(Settings):
    """The student's vision tower, and the way from its tokens to the body."""

    base: str | None = None
    """Hub id, local folder or shipped asset of a transformers vision model, or of a model that has one. Default: random
    weights of `architecture`."""
    revision: str | None = None
    """Commit or tag of a hub id."""
    architecture: dict[str, Any] | None = None
    """The tower's transformers configuration (`model_type`, `hidden_size` …). Sizes are then known without a download,
    and the weights of `base` are checked against it when they are loaded."""
    image_tokens: int = Field(gt=0)
    """Embeddings per image."""
    projector: Projector = "none"
    """Map from the tokens to the body's width. `none`: averaging alone, as in the paper; `linear`: a learned matrix."""
    preprocessing: Preprocessing | None = None
    """Image preprocessing. Default: the preprocessor_config.json of `base`."""

    @model_validator(mode="after")
    def _something_is_given(self) -> VisionSettings:
        if self.base is None and (self.architecture is None or self.preprocessing is None):
            raise ConfigError(
                "student.vision: neither base nor both of architecture and preprocessing are given; name a base with "
                "weights, or describe a tower of random ones"
            )
        return self


class Vision(nn.Module):
    """Tower, pooler, and an optional projector."""

    def __init__(
        self,
        tower: PreTrainedModel,
        preprocessing: Preprocessing,
        image_tokens: int,
        hidden_size: int,
        projector: Projector = "none",
    ) -> None:
        super().__init__()
        width, self.unused = probe(tower, preprocessing.size, image_tokens)
        self.tower = tower
        self.preprocessing = preprocessing
        self.image_tokens = image_tokens
        self.hidden_size = hidden_size
        self.projector = nn.Linear(width, hidden_size) if projector == "linear" else None

    @property
    def never_trained(self) -> set[str]:
        """Names of the parameters that no image's vector depends on."""
        return {f"tower.{name}" for name in self.unused}

    def forward(self, pixels_I3SS: Tensor) -> Tensor:
        """Compute the embeddings `[I, N, H]` of images, given as uint8."""
        tokens_ITC = self.tower(pixel_values=self.normalised(pixels_I3SS)).last_hidden_state
        width = tokens_ITC.shape[2] if self.projector else self.hidden_size
        pooled_INC = pooled(tokens_ITC, self.image_tokens, width)
        return self.projector(pooled_INC) if self.projector else pooled_INC

    def summary(self, pixels_I3SS: Tensor) -> Tensor:
        """Compute the tower's own vectors `[I, C]` of images: its pooled output, or the mean of its tokens."""
        output = self.tower(pixel_values=self.normalised(pixels_I3SS))
        pooled_IC: Tensor | None = getattr(output, "pooler_output", None)
        return output.last_hidden_state.mean(dim=1) if pooled_IC is None else pooled_IC

    def normalised(self, pixels_I3SS: Tensor) -> Tensor:
        """Subtract the channels' means from the pixels and divide by their deviations, in the tower's precision."""
        mean = torch.tensor(self.preprocessing.mean, device=pixels_I3SS.device).view(3, 1, 1)
        std = torch.tensor(self.preprocessing.std, device=pixels_I3SS.device).view(3, 1, 1)
        return ((pixels_I3SS.float() / 255 - mean) / std).to(self.tower.dtype)


def pooled(tokens_ITC: Tensor, rows: int, columns: int) -> Tensor:
    """Apply `torch.nn.AdaptiveAvgPool2d((rows, columns))` to each image's tokens, as two products with averages.

    On a GPU torch's own sums gradients in any order (see `torch.use_deterministic_algorithms`) and in the tokens'
    precision. This one computes in fp32 and is reproducible; at the paper's sizes it takes 0.8 billion multiplications
    per image, and the tower's matrices 300.
    """
    over_tokens_NT = window_means(tokens_ITC.shape[1], rows, tokens_ITC.device)
    over_channels_HC = window_means(tokens_ITC.shape[2], columns, tokens_ITC.device)
    return (over_tokens_NT @ tokens_ITC.float() @ over_channels_HC.T).to(tokens_ITC.dtype)


def window_means(length: int, windows: int, device: torch.device) -> Tensor:
    """Make a matrix `[windows, length]` whose row i averages the places from i·length/windows, rounded down, to
    (i+1)·length/windows, rounded up."""
    places_L = torch.arange(length, device=device)
    first_W1 = torch.arange(windows, device=device).unsqueeze(1)
    starts_W1 = first_W1 * length // windows
    ends_W1 = -(-(first_W1 + 1) * length // windows)
    inside_WL = ((places_L >= starts_W1) & (places_L < ends_W1)).float()
    return inside_WL / inside_WL.sum(dim=1, keepdim=True)


def probe(tower: PreTrainedModel, size: int, image_tokens: int) -> tuple[int, frozenset[str]]:
    """Find the width of the tower's tokens, and its parameters that they do not depend on, such as those of a pooler.

    A forward and a backward pass on the meta device compute nothing.

    Raises:
        ConfigError: the tower does not take images of that size, or gives fewer tokens than `image_tokens`.
    """
    with torch.inference_mode(False), torch.enable_grad():  # the caller may have turned gradients off
        shape = meta_tower(tower.config)
        tokens_ITC = tokens_of(shape, size)
        check_tokens(tokens_ITC, size, image_tokens)
        tokens_ITC.sum().backward()
    return tokens_ITC.shape[2], frozenset(name for name, p in shape.named_parameters() if p.grad is None)


def tokens_of(shape: PreTrainedModel, size: int) -> Tensor:
    """Compute the tokens of one image on the meta device."""
    try:
        pixels = torch.zeros(1, 3, size, size, device="meta")
        return shape(pixel_values=pixels).last_hidden_state
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"student.vision: {type(shape).__name__} does not take images of {size} x {size} pixels "
            f"({first_line(error)}); change preprocessing.size or the tower"
        ) from error


def check_tokens(tokens_ITC: Tensor, size: int, image_tokens: int) -> None:
    """Refuse an output that is no sequence of tokens, such as a convolutional tower's, or a sequence too short."""
    if tokens_ITC.ndim != 3:
        raise ConfigError(
            f"student.vision: the tower's output for an image has shape {tuple(tokens_ITC.shape[1:])}, and "
            "(tokens, width) was expected; use a vision transformer"
        )
    if tokens_ITC.shape[1] < image_tokens:
        raise ConfigError(
            f"student.vision: image_tokens is {image_tokens}, but the tower makes {tokens_ITC.shape[1]} tokens of an "
            f"image of {size} x {size} pixels; lower image_tokens"
        )


def build_vision(settings: VisionSettings, hidden_size: int) -> Vision:
    """Make the vision encoder before training; torch's generator draws random weights.

    Raises:
        ConfigError: nothing loads from `base`, it differs from the declared architecture, or images of that size do not
            fit.
    """
    from transformers import AutoModel

    if settings.base is None:
        tower = AutoModel.from_config(declared_config(settings.architecture or {}, PLACE), dtype=torch.float32)
    else:
        config = base_config(settings)
        check_architecture(settings.architecture, config, settings.base, PLACE)
        tower = load_weights(locate(settings.base, settings.revision), settings.revision, config)
    return Vision(tower, preprocessing_of(settings), settings.image_tokens, hidden_size, settings.projector)


def meta_vision(settings: VisionSettings, hidden_size: int) -> Vision:
    """Make the vision encoder on torch's meta device, without memory; nothing is downloaded if the settings declare
    architecture and preprocessing."""
    tower = meta_tower(
        declared_config(settings.architecture, PLACE) if settings.architecture else base_config(settings)
    )
    with torch.device("meta"):
        return Vision(tower, preprocessing_of(settings), settings.image_tokens, hidden_size, settings.projector)


def meta_tower(config: PretrainedConfig) -> PreTrainedModel:
    from transformers import AutoModel

    with torch.device("meta"):
        tower: PreTrainedModel = AutoModel.from_config(config)
    return tower


def base_config(settings: VisionSettings) -> PretrainedConfig:
    """Read the tower's configuration from `base`: all of it, or `vision_config` of a model that also reads texts."""
    config = read_config(settings.base or "", settings.revision, PLACE)
    return getattr(config, "vision_config", config)


def preprocessing_of(settings: VisionSettings) -> Preprocessing:
    """Take the recipe's preprocessing, or read that of `base`."""
    if settings.preprocessing is not None:
        return settings.preprocessing
    from transformers import ImageProcessingMixin

    location = locate(settings.base or "", settings.revision)
    try:
        config, _ = ImageProcessingMixin.get_image_processor_dict(location, revision=settings.revision)
    except OSError as error:
        raise ConfigError(
            f"student.vision: {settings.base!r} has no preprocessor_config.json ({first_line(error)}); "
            "write the tower's preprocessing into the recipe"
        ) from error
    return from_transformers(config, f"preprocessor_config.json of {settings.base!r}")


def save_vision(vision: Vision, folder: Path) -> None:
    """Write the vision encoder as a transformers vision model, with the pooler's settings in `sight.json`."""
    vision.tower.save_pretrained(folder)
    if vision.projector is not None:
        save_module(vision.projector, folder / PROJECTOR)
    sight = {"image_tokens": vision.image_tokens, "projector": "none" if vision.projector is None else "linear"}
    write_json(folder / "sight.json", sight)
    write_json(folder / "preprocessor_config.json", vision.preprocessing.as_transformers())


def load_vision(folder: Path, hidden_size: int) -> Vision:
    """Load the vision encoder that `save_vision` wrote."""
    sight = read_json(folder / "sight.json")
    tower = load_weights(str(folder))
    vision = Vision(tower, read_preprocessing(folder), sight["image_tokens"], hidden_size, sight["projector"])
    if vision.projector is not None:
        load_module(vision.projector, folder / PROJECTOR, "projector")
    return vision


def read_preprocessing(folder: Path) -> Preprocessing:
    """Read the preprocessing of the vision encoder in a folder, without its weights."""
    path = folder / "preprocessor_config.json"
    return from_transformers(read_json(path), str(path))
