"""Decode image files, bytes and PIL images to RGB pixels within limits, or give the reason for refusing them."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from jasper_ray.config import ConfigError

PIXEL_LIMIT = 50_000_000
"""Pixels (width times height) of the largest image that is decoded: 200 MB of memory, and as much while decoding."""

REASONS = ("missing", "empty", "not_an_image", "too_many_pixels", "broken")
"""Reasons for refusing an image: no file, no bytes, another kind of file, too large, damaged."""

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF")
"""Formats that are read. Pillow knows more, some of which start other programs (EPS) or are scientific grids."""

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
"""The transposition that brings an image upright, by EXIF orientation. `ImageOps.exif_transpose` does the same, but
fails on some damaged EXIF blocks, whose pixels may be fine."""


class BadImage(ConfigError):
    """An image that cannot be used; `reason` is one of `REASONS`."""

    def __init__(self, message: str, reason: str = "broken") -> None:
        super().__init__(message)  # the message alone, and a default for the reason, so that pickle can rebuild it
        self.reason = reason


def decode(data: bytes, pixel_limit: int = PIXEL_LIMIT) -> Image.Image:
    """Decode an image to mode RGB, upright, in memory: at most about 16 bytes per pixel on the way.

    The size is read from the header first, and an image above `pixel_limit` pixels is not decoded. An animation gives
    its first frame, transparent pixels turn white, and 16-bit values keep their upper eight bits.

    Raises:
        BadImage: the image cannot be used.
    """
    if not data:
        raise BadImage("the image has no bytes; write the file again or remove it", "empty")
    with _open(data) as image:
        return to_rgb(image, pixel_limit)


def to_rgb(image: Image.Image, pixel_limit: int = PIXEL_LIMIT) -> Image.Image:
    """Do the work of `decode` for an image that Pillow has opened, with or without its pixels in memory."""
    width, height = image.size
    if width * height > pixel_limit:
        raise BadImage(
            f"the image has {width} x {height} pixels, more than {pixel_limit:,}; remove it, or raise pixel_limit",
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
    """Find the reason, one of `REASONS`, why an image cannot be used; None if it can."""
    try:
        decode(data, pixel_limit)
    except BadImage as error:
        return error.reason
    return None


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"the image is too large ({error}); remove it", "too_many_pixels") from error
    except UnidentifiedImageError as error:
        if data.startswith(_BEGINNINGS):
            raise _broken("its header is cut off or damaged") from error
        raise BadImage(
            f"the bytes are no image; expected one of {', '.join(FORMATS)}: remove or convert them",
            "not_an_image",
        ) from error
    except Exception as error:
        raise _broken(error) from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """List the `FORMATS` that this Pillow reads: AVIF came with 11.3."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _broken(error: object) -> BadImage:
    message = (str(error) or type(error).__name__).splitlines()[0]
    return BadImage(f"the image is damaged ({message}); write the file again or remove it", "broken")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return _from_16_bits(image)
    if image.mode in ("I", "F"):
        raise BadImage(
            f"the image has 32 bits per channel (mode {image.mode}), whose white is undefined; "
            "convert it to 8 or 16 bits",
            "not_an_image",
        )
    return _on_white(image) if image.has_transparency_data else image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Convert grey of 16 bits, which Pillow itself would clip at 255."""
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
    """Read the EXIF orientation; None if there is none, or if the EXIF block is damaged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return None


ImageLike = str | Path | bytes | Image.Image
"""A path, the bytes of a file, or a PIL image."""


def open_image(image: ImageLike, pixel_limit: int = PIXEL_LIMIT) -> Image.Image:
    """Decode a file, bytes or a PIL image to mode RGB."""
    if isinstance(image, Image.Image):
        return to_rgb(image, pixel_limit)
    if isinstance(image, bytes):
        return decode(image, pixel_limit)
    try:
        data = Path(image).read_bytes()
    except OSError as error:
        raise BadImage(
            f"the image {str(image)!r} cannot be read ({error.strerror}); fix its path", "missing"
        ) from error
    try:
        return decode(data, pixel_limit)
    except BadImage as error:
        raise BadImage(f"{str(image)!r}: {error}", error.reason) from error
