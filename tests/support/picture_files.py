"""Image files for the tests: real photos and digits, in every mode, and files that are damaged in known ways."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
from PIL import Image


@cache
def photo(width: int = 160, height: int = 107) -> Image.Image:
    """A flower, by scikit-learn."""
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("flower.jpg")).resize((width, height))


@cache
def digits() -> tuple[tuple[bytes, str], ...]:
    """The 1797 handwritten digits of scikit-learn as PNG files, each with a caption of its own."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = (found.images * 15.9).astype(np.uint8)
    return tuple(
        (written(Image.fromarray(image), "PNG"), f"the digit {label}, number {index}")
        for index, (image, label) in enumerate(zip(images, found.target, strict=True))
    )


def written(image: Image.Image, form: str, **options: Any) -> bytes:
    """The file of an image."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def palette_with_alpha(image: Image.Image) -> bytes:
    """A PNG of 256 colours, of which the darker half is transparent."""
    return written(image.convert("L").convert("P"), "PNG", transparency=bytes([0] * 128 + [255] * 128))


def png(width: int, height: int, bits: int, color: int, pixels: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG whose pixel data is compressed already; `more` are further chunks."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@cache
def bomb(side: int = 15_200) -> bytes:
    """A PNG of 231 million black pixels in a megabyte: the packed bytes of one row again and again."""
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    row = packer.compress(bytes(3 * side + 1)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = side * (3 * side + 1) % 65_521 << 16 | 1  # Adler-32 of so many zeros
    return png(side, side, 8, 2, b"\x78\xda" + row * side + b"\x03\x00" + struct.pack(">I", checksum))
