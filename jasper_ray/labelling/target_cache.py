"""The target cache: one Parquet file for each shard and teacher, named by the shard's content.

    <folder>/<teacher>-<identity>/<shard sha256>.parquet      columns id, vector (float16)

A teacher whose weights, prompt, precision or length limit changed has another identity, hence another folder; a
changed text is another shard, hence another file. Files are written atomically, so every file is finished.
"""

# Shape legend: N rows of a shard, D size of the teacher's vectors.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jasper_ray.atomic import atomic_file
from jasper_ray.config import ConfigError


class TargetCache:
    """One teacher's vectors on disk; those of some shards may be stored in another folder."""

    def __init__(self, folder: Path, apart: Mapping[str, Path] | None = None) -> None:
        self.folder = folder
        self.apart = dict(apart or {})
        """Folders of shards that are not stored in `folder`, by the shards' hashes."""

    def file(self, shard_sha256: str) -> Path:
        """Return the path of a shard's vectors."""
        return self.apart.get(shard_sha256, self.folder) / f"{shard_sha256}.parquet"

    def held(self) -> set[str]:
        """Return the hashes of the stored shards, listing each folder once."""
        folders = {self.folder, *self.apart.values()}
        seen = {folder: {path.stem for path in folder.glob("*.parquet")} for folder in folders}
        return {name for folder in folders for name in seen[folder] if self.apart.get(name, self.folder) == folder}

    def holds(self, shard_sha256: str) -> bool:
        return self.file(shard_sha256).is_file()

    def write(self, shard_sha256: str, ids: Sequence[str], vectors_ND: np.ndarray) -> None:
        """Store a shard's vectors atomically."""
        flat = pa.array(vectors_ND.astype(np.float16).reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, vectors_ND.shape[1])
        with atomic_file(self.file(shard_sha256)) as staging:
            pq.write_table(pa.table({"id": pa.array(ids, pa.string()), "vector": column}), staging, compression="none")

    def size(self, shard_sha256: str) -> int:
        """Return D of a shard's vectors.

        Raises:
            ConfigError: the file is damaged.
        """
        return int(self._table(shard_sha256)["vector"].type.list_size)

    def read(self, shard_sha256: str, ids: Sequence[str]) -> np.ndarray:
        """Return a shard's vectors, float16 `[N, D]`.

        Raises:
            ConfigError: the file is damaged, or has other texts.
        """
        table = self._table(shard_sha256)
        if table["id"].to_pylist() != list(ids):
            path = self.file(shard_sha256)
            raise ConfigError(f"the cached targets in {str(path)!r} belong to other texts; delete that file")
        vectors = table["vector"].combine_chunks()
        return vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)

    def _table(self, shard_sha256: str) -> pa.Table:
        path = self.file(shard_sha256)
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(
                f"the cached targets in {str(path)!r} cannot be read ({error}); delete that file"
            ) from error
        if table.column_names != ["id", "vector"]:
            raise ConfigError(
                f"{str(path)!r} has the columns {', '.join(table.column_names)}, expected id and vector; "
                "delete that file"
            )
        return table
