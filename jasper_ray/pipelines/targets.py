"""The target cache: one Parquet file for each shard and teacher, named by the shard's content.

    <folder>/<teacher>-<identity>/<shard sha256>.parquet      columns id, vector (float16)

A teacher whose weights, prompt, precision or length limit changed has another identity, hence another folder; a
changed text is another shard, hence another file. Files appear whole, so whatever is there is finished.
"""

# Shape legend: N rows of a shard, D size of the teacher's vectors.

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jasper_ray.config import ConfigError
from jasper_ray.whole import whole_file


class TargetCache:
    """One teacher's vectors on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, shard_sha256: str) -> Path:
        """Where a shard's vectors are kept."""
        return self.folder / f"{shard_sha256}.parquet"

    def holds(self, shard_sha256: str) -> bool:
        """Whether they are there."""
        return self.file(shard_sha256).is_file()

    def take(self, other: TargetCache, shard_sha256: str) -> None:
        """Keep the vectors that another cache of this teacher holds of a shard; the file appears whole."""
        if not self.holds(shard_sha256):
            with whole_file(self.file(shard_sha256)) as staging:
                shutil.copyfile(other.file(shard_sha256), staging)

    def write(self, shard_sha256: str, ids: Sequence[str], vectors_ND: np.ndarray) -> None:
        """Keep a shard's vectors; the file appears whole."""
        flat = pa.array(vectors_ND.astype(np.float16).reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, vectors_ND.shape[1])
        with whole_file(self.file(shard_sha256)) as staging:
            pq.write_table(pa.table({"id": pa.array(ids, pa.string()), "vector": column}), staging, compression="none")

    def size(self, shard_sha256: str) -> int:
        """D of a shard's vectors."""
        vectors: pa.FixedSizeListType = pq.read_schema(self.file(shard_sha256)).field("vector").type
        return int(vectors.list_size)

    def read(self, shard_sha256: str, ids: Sequence[str]) -> np.ndarray:
        """A shard's vectors, float16 `[N, D]`.

        Raises:
            ConfigError: the file is damaged, or is not about these texts.
        """
        path = self.file(shard_sha256)
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(
                f"the cached targets in {str(path)!r} cannot be read ({error}); delete that file"
            ) from error
        if table.column_names != ["id", "vector"]:
            raise ConfigError(
                f"{str(path)!r} has the columns {', '.join(table.column_names)}, and id and vector were expected; "
                "delete that file"
            )
        if table["id"].to_pylist() != list(ids):
            raise ConfigError(f"the cached targets in {str(path)!r} are about other texts; delete that file")
        vectors = table["vector"].combine_chunks()
        return vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
