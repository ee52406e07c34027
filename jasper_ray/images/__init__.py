"""Images: decoding within limits, and preprocessing for a vision tower."""

from jasper_ray.images.decode import PIXEL_LIMIT, REASONS, BadImage, ImageLike, decode, open_image
from jasper_ray.images.preprocess import Preprocessing, from_transformers

__all__ = [
    "PIXEL_LIMIT",
    "REASONS",
    "BadImage",
    "ImageLike",
    "Preprocessing",
    "decode",
    "from_transformers",
    "open_image",
]
