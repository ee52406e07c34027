"""Photos and drawings with captions: the stamps of Tux Paint, a drawing program for children, as Debian packs them."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

from jasper_ray.assets.apt import open_package
from jasper_ray.assets.captioned import METADATA, sha256, write_digests, write_metadata
from jasper_ray.assets.unpack import path_inside, read_member

STAMPS = "./usr/share/tuxpaint/stamps/"
SYMBOLS = f"{STAMPS}symbols/"
"""Letters, numbers, coins, notes, chess pieces: their captions name a sign, or explain it, and show nothing."""


def write_stamps(archives: Sequence[Path], target: Path) -> None:
    """Write every captioned image outside of `SYMBOLS` under its path in the package; 538 of 796 in Debian 12.

    What has no caption of its own are mirrored copies of other images.
    """
    (package,) = archives
    rows, digests = [], {}
    with open_package(package) as files:
        for name, caption in _captions(files).items():
            path = path_inside(name.removeprefix(STAMPS), str(package))
            image = read_member(files, name)
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(image)
            digests[str(path)] = sha256(image)
            rows.append({"file_name": str(path), "caption": caption})
    digests[METADATA] = write_metadata(rows, target)
    write_digests(digests, target)


def _captions(files: tarfile.TarFile) -> dict[str, str]:
    """Image → caption, in the order of paths: the first line of the `.txt` beside it, which is English."""
    members = {file.name for file in files if file.isfile() and file.name.startswith(STAMPS)}
    images = sorted(name for name in members if name.endswith(".png") and not name.startswith(SYMBOLS))
    texts = {image: image.removesuffix(".png") + ".txt" for image in images}
    return {image: _first_line(files, text) for image, text in texts.items() if text in members}


def _first_line(files: tarfile.TarFile, name: str) -> str:
    return read_member(files, name).decode("utf-8").partition("\n")[0].strip()
