"""Folders of images with captions: PNG files, `metadata.jsonl` with one image a line, and what identifies them all."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

logger = logging.getLogger(__name__)

METADATA = "metadata.jsonl"
DIGESTS = "digests.txt"
"""One line a file, `<sha256>  <path>`: its own hash stands for the captions and every image."""


def write_metadata(rows: Iterable[Mapping[str, str]], folder: Path) -> str:
    """Write one JSON object a line, `file_name` (inside `folder`) and `caption` first; the sha256 of the file."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    content = "".join(f"{line}\n" for line in lines).encode()
    (folder / METADATA).write_bytes(content)
    logger.info("%d images with captions", len(lines))
    return sha256(content)


def write_digests(digests: Mapping[str, str], folder: Path) -> None:
    """Write the sha256 of each path, in the order of paths."""
    (folder / DIGESTS).write_text("".join(f"{digests[path]}  {path}\n" for path in sorted(digests)), encoding="utf-8")


def sha256(content: bytes) -> str:
    """The sha256 in hex."""
    return hashlib.sha256(content).hexdigest()
