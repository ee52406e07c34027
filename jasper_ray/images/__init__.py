"""Images: decoded within limits, and made into what a vision tower reads."""

from jasper_ray.images.decode import PIXEL_LIMIT, REASONS, BadImage, Picture, decode, open_picture
from jasper_ray.images.preprocess import Preprocessing, from_transformers

__all__ = [
    "PIXEL_LIMIT",
    "REASONS",
    "BadImage",
    "Picture",
    "Preprocessing",
    "decode",
    "from_transformers",
    "open_picture",
]
