"""The handwritten digits that scikit-learn installs, as PNG files with English captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jasper_ray.assets.captioned import METADATA, sha256, write_digests, write_metadata

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = ("{}", "the number {}", "the digit {}", "number {}")
"""Short ones: in a long sentence the number is a small part of what its vector says."""


class Digit(NamedTuple):
    """One image with what its line in `metadata.jsonl` says."""

    split: str
    """`train` or `test`."""
    image: Image.Image
    row: dict[str, str]


def write_digits(archives: Sequence[Path], target: Path) -> None:
    """Write the folders `train` and `test` of the 1,797 images of Alpaydin & Kaynak (1998), 8 by 8 grey pixels each.

    `archives` is empty. A digest is that of the 64 pixels, since the bytes of a PNG file depend on the zlib at hand.
    """
    digits, digests = list(read_digits()), {}
    for split in ("train", "test"):
        (target / split).mkdir()
        chosen = [digit for digit in digits if digit.split == split]
        for digit in chosen:
            path = f"{split}/{digit.row['file_name']}"
            digit.image.save(target / path)
            digests[path] = sha256(digit.image.tobytes())
        digests[f"{split}/{METADATA}"] = write_metadata((digit.row for digit in chosen), target / split)
    write_digests(digests, target)


def read_digits() -> Iterator[Digit]:
    """Every image in the data set's order; of each number every fifth is for testing, and the captions take turns."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels_N88 = np.rint(found.images * (255 / 16)).astype(np.uint8)
    seen: Counter[int] = Counter()
    for index, (pixels_88, number) in enumerate(zip(pixels_N88, found.target.tolist(), strict=True)):
        label, nth = NUMBERS[number], seen[number]
        caption = CAPTIONS[nth % len(CAPTIONS)].format(label)
        row = {"file_name": f"{index:04}.png", "caption": caption, "label": label}
        yield Digit("test" if nth % 5 == 4 else "train", Image.fromarray(pixels_88), row)
        seen[number] += 1
