"""From a decoded image to the pixels that a vision tower reads, as its `preprocessor_config.json` says."""

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
"""Times the shorter side: far more than a centre crop sees. A strip of one pixel's width would otherwise become
gigapixels when its shorter side is enlarged."""


class Preprocessing(Settings):
    """How an image becomes pixels: brought to a square, then each channel less its mean and over its deviation."""

    size: int = Field(gt=0)
    """Side of the square, in pixels."""
    fit: Literal["stretch", "crop"] = "stretch"
    """`stretch` brings both sides to `size`, as SigLIP does; `crop` brings the shorter side to `shorter_side` and takes
    the centre, as DINOv2 and CLIP do."""
    shorter_side: int | None = Field(default=None, gt=0)
    """Pixels of the shorter side before the crop; `size` when left out."""
    resample: Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"] = "bicubic"
    """How pixels between pixels are made."""
    mean: Triple = (0.5, 0.5, 0.5)
    """Mean of red, green and blue, of values from 0 to 1."""
    std: Triple = (0.5, 0.5, 0.5)
    """Standard deviation of the same."""

    @model_validator(mode="after")
    def _crop_lies_inside(self) -> Preprocessing:
        if self.shorter_side is not None and (self.fit != "crop" or self.shorter_side < self.size):
            raise ConfigError(
                f"preprocessing: shorter_side is {self.shorter_side}, with fit {self.fit} and size {self.size}; "
                "it goes with fit crop and is at least size"
            )
        return self

    def pixels(self, image: Image.Image) -> np.ndarray:
        """The pixels `[3, S, S]` of an RGB image, uint8: the tower takes mean and deviation off where it runs, so that
        a quarter of the bytes travel."""
        square = image.resize((self.size, self.size), self.filter) if self.fit == "stretch" else self.centre(image)
        return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))

    def centre(self, image: Image.Image) -> Image.Image:
        """The centre of the image, after its shorter side was brought to `shorter_side`."""
        short = self.shorter_side or self.size
        image = middle(image, LONGEST * min(image.size), LONGEST * min(image.size))
        width, height = image.size
        scaled = (short, short * height // width) if width <= height else (short * width // height, short)
        return middle(image.resize(scaled, self.filter), self.size, self.size)

    @property
    def filter(self) -> Image.Resampling:
        return RESAMPLING[self.resample]

    def as_transformers(self) -> dict[str, Any]:
        """The same in the words of a `preprocessor_config.json`."""
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
    """The centre of an image, at most so wide and so high."""
    width, height = min(width, image.width), min(height, image.height)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def from_transformers(config: dict[str, Any], origin: str) -> Preprocessing:
    """What a `preprocessor_config.json` says.

    Raises:
        ConfigError: it says something else than one of the two ways of `Preprocessing`.
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
            f"{origin} does not bring images to a normalised square of fixed size; "
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
    """The side of a square, as processors write it; None where it is none."""
    if isinstance(size, dict):
        return size.get("width") if size.get("width") == size.get("height") else None
    return size
