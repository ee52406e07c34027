"""Real models, texts and images from package registries, so that a first run needs pip and no model hub."""

from jasper_ray.assets.cache import contents, locate

__all__ = ["contents", "locate"]
