"""The same image–caption pairs written in every format that can be read."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FilePair = tuple[bytes | None, object]
"""Bytes of an image's file, None where there is no file, and a caption."""


def write_parquet(pairs: Sequence[FilePair], path: Path, row_group: int = 100) -> dict[str, Any]:
    """Write images as structs of bytes and path, as data sets on the Hugging Face hub hold them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": image, "path": f"{index}.png"} for index, (image, _) in enumerate(pairs)]
    table = pa.table(
        {
            "n": range(len(pairs)),
            "image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "caption": pa.array([caption for _, caption in pairs], pa.string()),
        }
    )
    pq.write_table(table, path, row_group_size=row_group)
    return {"path": str(path), "format": "parquet"}


def write_folder(pairs: Sequence[FilePair], folder: Path) -> dict[str, Any]:
    (folder / "images").mkdir(parents=True)
    rows = [{"file_name": f"images/{index}.png", "caption": caption} for index, (_, caption) in enumerate(pairs)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for index, (image, _) in enumerate(pairs):
        if image is not None:
            (folder / f"images/{index}.png").write_bytes(image)
    return {"path": str(folder), "format": "folder"}


def write_tar(pairs: Sequence[FilePair], path: Path, mode: Any = "w") -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for index, (image, caption) in enumerate(pairs):
            add_member(archive, f"{index:05}.json", json.dumps({"n": index}).encode())
            if image is not None:
                add_member(archive, f"{index:05}.png", image)
            if isinstance(caption, str):
                add_member(archive, f"{index:05}.txt", caption.encode())
    return {"path": str(path), "format": "webdataset"}


def add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
