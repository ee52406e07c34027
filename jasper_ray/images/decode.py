"""Decode image files, bytes and PIL images to RGB pixels within limits, or give the reason why not."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from jasper_ray.config import ConfigError

PIXEL_LIMIT = 50_000_000
"""Pixels (width times height) of the largest image that is decoded: 200 MB of memory, and as much again on the way."""

REASONS = ("missing", "empty", "not_an_image", "too_many_pixels", "broken")
"""Why there are no pixels: no file, no bytes, another kind of file, too large, or damaged."""

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF")
"""What is read. Pillow knows more, some of which start other programs (EPS) or are scientific grids."""

_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8")

_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to bring an image upright, by its EXIF orientation."""


class BadImage(ConfigError):
    """An image that cannot be used; `reason` is one of `REASONS`."""

    def __init__(self, message: str, reason: str = "broken") -> None:
        super().__init__(message)  # the message alone, and a default for the reason, so that pickle can rebuild it
        self.reason = reason


def decode(data: bytes, pixel_limit: int = PIXEL_LIMIT) -> Image.Image:
    """The image in mode RGB, upright, with all its pixels in memory: about four times 4 bytes a pixel at the most.

    Its size is read from the header first, and nothing is decoded above `pixel_limit` pixels. Of an animation the first
    frame is taken; what is transparent lies on white; 16-bit values keep their upper eight bits.

    Raises:
        BadImage: there are no pixels to be had, and why.
    """
    if not data:
        raise BadImage("the image has no bytes; write the file anew or leave it out", "empty")
    with _open(data) as image:
        return load(image, pixel_limit)


def load(image: Image.Image, pixel_limit: int = PIXEL_LIMIT) -> Image.Image:
    """`decode` for an image that Pillow has opened, whether its pixels are in memory already or not."""
    width, height = image.size
    if width * height > pixel_limit:
        raise BadImage(
            f"the image has {width} x {height} pixels, more than {pixel_limit:,}; "
            "leave it out, or raise pixel_limit where there is one",
            "too_many_pixels",
        )
    try:
        image.load()
        rgb = _rgb(image)
        turn = _TURNED.get(_orientation(image) or 1)
    except BadImage:
        raise
    except Exception as error:  # damaged files make Pillow's readers fail in any way
        raise _broken(error) from error
    return rgb if turn is None else rgb.transpose(turn)


def fault(data: bytes, pixel_limit: int = PIXEL_LIMIT) -> str | None:
    """Why the image cannot be used, one of `REASONS`; None if it can."""
    try:
        decode(data, pixel_limit)
    except BadImage as error:
        return error.reason
    return None


def _open(data: bytes) -> Image.Image:
    """The image with its header read, and nothing more."""
    try:
        return Image.open(io.BytesIO(data), formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"the image is too large ({error}); leave it out", "too_many_pixels") from error
    except UnidentifiedImageError as error:
        if data.startswith(_BEGINNINGS):
            raise _broken("its header is cut off or damaged") from error
        raise BadImage(
            f"the bytes are no image; expected one of {', '.join(FORMATS)}: leave them out or convert them",
            "not_an_image",
        ) from error
    except Exception as error:
        raise _broken(error) from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow has a reader for: AVIF came with 11.3."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _broken(error: object) -> BadImage:
    said = (str(error) or type(error).__name__).splitlines()[0]
    return BadImage(f"the image is damaged ({said}); write the file anew or leave it out", "broken")


def _rgb(image: Image.Image) -> Image.Image:
    """A decoded image in mode RGB: what is transparent on white, 16-bit values by their upper eight bits."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return _from_16_bits(image)
    if image.mode in ("I", "F"):
        raise BadImage(
            f"the image holds numbers of 32 bits (mode {image.mode}), of which none is agreed to be white; "
            "convert it to 8 or 16 bits",
            "not_an_image",
        )
    return _on_white(image) if image.has_transparency_data else image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, which Pillow itself would cut off at 255."""
    grey_HW = np.asarray(image)
    levels_HW = (grey_HW >> 8).astype(np.uint8)
    if "transparency" in image.info:
        levels_HW[grey_HW == image.info["transparency"]] = 255
    return Image.fromarray(levels_HW).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA") if image.mode != "RGBA" else image
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation; None where there is none, or where the EXIF block is damaged, as its pixels may be fine."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return None


Picture = str | Path | bytes | Image.Image


def open_picture(picture: Picture, pixel_limit: int = PIXEL_LIMIT) -> Image.Image:
    """The image in mode RGB.

    Raises:
        BadImage: there is no such file, or there are no pixels to be had of it.
    """
    if isinstance(picture, Image.Image):
        return load(picture, pixel_limit)
    if isinstance(picture, bytes):
        return decode(picture, pixel_limit)
    try:
        data = Path(picture).read_bytes()
    except OSError as error:
        raise BadImage(
            f"the image {str(picture)!r} cannot be read ({error.strerror}); mend its path", "missing"
        ) from error
    try:
        return decode(data, pixel_limit)
    except BadImage as error:
        raise BadImage(f"{str(picture)!r}: {error}", error.reason) from error
