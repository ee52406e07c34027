"""From the bytes of a block's images to pixels. Nothing here imports torch: a process that decodes starts quickly."""

# Shape legend: N rows of a block, S side of an image in pixels.

from __future__ import annotations

import time

import numpy as np

from jasper_ray.data.columns import DECODING, PIXELS, seconds_column
from jasper_ray.images import Preprocessing, decode
from jasper_ray.pipelines.shards import Batch


class Decode:
    """Images of a block become pixels."""

    def __init__(self, preprocessing: Preprocessing, pixel_limit: int) -> None:
        self.preprocessing = preprocessing
        self.pixel_limit = pixel_limit

    def __call__(self, batch: Batch) -> Batch:
        began = time.perf_counter()
        size = self.preprocessing.size
        pixels_N3SS = np.empty((len(batch["image"]), 3, size, size), np.uint8)
        for row, image in enumerate(batch["image"]):
            pixels_N3SS[row] = self.preprocessing.pixels(decode(image, self.pixel_limit))
        seconds = (time.perf_counter() - began) / max(1, len(pixels_N3SS))
        kept = {name: column for name, column in batch.items() if name != "image"}
        return {**kept, PIXELS: pixels_N3SS, seconds_column(DECODING): np.full(len(pixels_N3SS), seconds, np.float32)}
