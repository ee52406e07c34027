"""Folders of PNG files with a `metadata.jsonl` of captions: the digits of scikit-learn and the stamps of Tux Paint."""

from __future__ import annotations

import hashlib
import json
import logging
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jasper_ray.assets.download import open_package, path_inside, read_member

logger = logging.getLogger(__name__)

METADATA = "metadata.jsonl"
DIGESTS = "digests.txt"
"""One line a file, `<sha256>  <path>`: the hash of this list identifies the captions and every image."""


def write_metadata(rows: Iterable[Mapping[str, str]], folder: Path) -> str:
    """Write one JSON object a line, `file_name` (inside `folder`) and `caption` first; return the file's sha256."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    content = "".join(f"{line}\n" for line in lines).encode()
    (folder / METADATA).write_bytes(content)
    logger.info("%d images with captions", len(lines))
    return sha256(content)


def write_digests(digests: Mapping[str, str], folder: Path) -> None:
    """Write the sha256 of each path, in the order of paths."""
    (folder / DIGESTS).write_text("".join(f"{digests[path]}  {path}\n" for path in sorted(digests)), encoding="utf-8")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = ("{}", "the number {}", "the digit {}", "number {}")
"""Short captions: in a long sentence the number would be a small part of the vector."""


def write_digits(archives: Sequence[Path], target: Path) -> None:
    """Write the folders `train` and `test` of the 1,797 images of Alpaydin & Kaynak (1998), 8 by 8 grey pixels each.

    `archives` is empty. Digests are of the 64 pixels, since the bytes of a PNG file depend on the installed zlib.
    """
    digests = {}
    rows: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for split in rows:
        (target / split).mkdir()
    for split, image, row in read_digits():
        path = f"{split}/{row['file_name']}"
        image.save(target / path)
        digests[path] = sha256(image.tobytes())
        rows[split].append(row)
    for split in rows:
        digests[f"{split}/{METADATA}"] = write_metadata(rows[split], target / split)
    write_digests(digests, target)


def read_digits() -> Iterator[tuple[str, Image.Image, dict[str, str]]]:
    """Split, image and row of `metadata.jsonl` of every digit, in the data set's order.

    Every fifth image of each number is for testing, and the captions alternate.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels_N88 = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    seen: Counter[int] = Counter()
    for index, (pixels_88, number) in enumerate(zip(pixels_N88, digits.target.tolist(), strict=True)):
        label, nth = NUMBERS[number], seen[number]
        caption = CAPTIONS[nth % len(CAPTIONS)].format(label)
        row = {"file_name": f"{index:04}.png", "caption": caption, "label": label}
        yield "test" if nth % 5 == 4 else "train", Image.fromarray(pixels_88), row
        seen[number] += 1


STAMPS = "./usr/share/tuxpaint/stamps/"
SYMBOLS = f"{STAMPS}symbols/"
"""Letters, numbers, coins, notes, chess pieces: their captions name or explain a sign and do not describe the image."""


def write_stamps(archives: Sequence[Path], target: Path) -> None:
    """Write every captioned image outside of `SYMBOLS` under its path in the package; 538 of 796 in Debian 12.

    Images without a caption are mirrored copies of others.
    """
    (package,) = archives
    rows, digests = [], {}
    with open_package(package) as files:
        for name, caption in captions(files).items():
            path = path_inside(name.removeprefix(STAMPS), str(package))
            image = read_member(files, name)
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(image)
            digests[str(path)] = sha256(image)
            rows.append({"file_name": str(path), "caption": caption})
    digests[METADATA] = write_metadata(rows, target)
    write_digests(digests, target)


def captions(files: tarfile.TarFile) -> dict[str, str]:
    """Image → caption, in the order of paths: the first line of the `.txt` of the same name, which is English."""
    members = {file.name for file in files if file.isfile() and file.name.startswith(STAMPS)}
    images = sorted(name for name in members if name.endswith(".png") and not name.startswith(SYMBOLS))
    texts = {image: image.removesuffix(".png") + ".txt" for image in images}
    contents = {image: read_member(files, text).decode("utf-8") for image, text in texts.items() if text in members}
    return {image: content.partition("\n")[0].strip() for image, content in contents.items()}
