"""Preprocessing of a decoded image to the input of a vision tower, as in its `preprocessor_config.json`."""

# Shape legend: S side of the square of pixels.

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from jasper_ray.config import ConfigError, Settings

Triple = tuple[float, float, float]

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
LONGEST = 64
"""Longest side, in lengths of the shorter one, before a crop: a strip of one pixel's width would otherwise become
gigapixels when its shorter side is enlarged."""


class Preprocessing(Settings):
    """Image preprocessing: resize to a square, then normalise each channel by its mean and deviation."""

    size: int = Field(gt=0)
    """Side of the square, in pixels."""
    fit: Literal["stretch", "crop"] = "stretch"
    """Way to a square. `stretch` resizes both sides to `size`, as SigLIP does; `crop` resizes the shorter side to
    `shorter_side` and takes the centre, as DINOv2 and CLIP do."""
    shorter_side: int | None = Field(default=None, gt=0)
    """Pixels of the shorter side before the crop. Default: `size`."""
    resample: Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"] = "bicubic"
    """Resampling filter."""
    mean: Triple = (0.5, 0.5, 0.5)
    """Mean of red, green and blue, for values from 0 to 1."""
    std: Triple = (0.5, 0.5, 0.5)
    """Standard deviation of red, green and blue."""

    @model_validator(mode="after")
    def _crop_lies_inside(self) -> Preprocessing:
        if self.shorter_side is not None and (self.fit != "crop" or self.shorter_side < self.size):
            raise ConfigError(
                f"preprocessing: shorter_side is {self.shorter_side}, with fit {self.fit} and size {self.size}; "
                "it needs fit crop and must be at least size"
            )
        return self

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Make the pixels `[3, S, S]` of an RGB image, uint8. The tower normalises them on its device, so a quarter
        of the bytes travel."""
        square = image.resize((self.size, self.size), self.filter) if self.fit == "stretch" else self.centre(image)
        return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))

    def centre(self, image: Image.Image) -> Image.Image:
        """Resize the shorter side to `shorter_side`, and take the centre."""
        short = self.shorter_side or self.size
        image = middle(image, LONGEST * min(image.size), LONGEST * min(image.size))
        width, height = image.size
        scaled = (short, short * height // width) if width <= height else (short * width // height, short)
        return middle(image.resize(scaled, self.filter), self.size, self.size)

    @property
    def filter(self) -> Image.Resampling:
        return RESAMPLING[self.resample]

    def as_transformers(self) -> dict[str, Any]:
        square = {"height": self.size, "width": self.size}
        cropping = self.fit == "crop"
        return {
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": self.shorter_side or self.size} if cropping else square,
            "resample": int(self.filter),
            "do_center_crop": cropping,
            **({"crop_size": square} if cropping else {}),
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }


def middle(image: Image.Image, width: int, height: int) -> Image.Image:
    """Crop the centre of an image to at most this width and height."""
    width, height = min(width, image.width), min(height, image.height)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def from_transformers(config: dict[str, Any], origin: str) -> Preprocessing:
    """Convert from a `preprocessor_config.json`.

    Raises:
        ConfigError: it is neither of the two ways of `Preprocessing`.
    """
    cropping = bool(config.get("do_center_crop"))
    size, crop = config.get("size"), config.get("crop_size")
    shorter = size.get("shortest_edge") if isinstance(size, dict) else size
    side = side_of(crop if cropping else size)
    names = {int(value): name for name, value in RESAMPLING.items()}
    known = (
        *(side, shorter if cropping else side, names.get(config.get("resample", int(Image.Resampling.BICUBIC)))),
        *(config.get("image_mean"), config.get("image_std")),
        *(config.get(name, True) for name in ("do_resize", "do_rescale", "do_normalize")),
        abs((config.get("rescale_factor") or 1 / 255) * 255 - 1) < 1e-6,
    )
    if not all(known):
        raise ConfigError(
            f"{origin} does not resize images to a normalised square of fixed size; "
            "write the tower's preprocessing (size, fit, mean, std) into the recipe"
        )
    return Preprocessing(
        size=side,
        fit="crop" if cropping else "stretch",
        shorter_side=shorter if cropping else None,
        resample=known[2],
        mean=tuple(config["image_mean"]),
        std=tuple(config["image_std"]),
    )


def side_of(size: Any) -> Any:
    """Read the side of a square, as processors write it; None if it is no square."""
    if isinstance(size, dict):
        return size.get("width") if size.get("width") == size.get("height") else None
    return size
