"""What a user may call an image: the path of a file, its bytes, or an image that Pillow opened."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from jasper_ray.images.decode import PIXEL_LIMIT, BadImage, decode, load

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
