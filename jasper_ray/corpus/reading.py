"""Reading a source with Ray Data: any format in, cleaned texts out."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import ray.data
from ray.data.datasource import FileBasedDatasource

from jasper_ray.sources.files import SourceFiles
from jasper_ray.sources.rows import clean_column, read_texts
from jasper_ray.sources.settings import Source

BATCH_ROWS = 1024
"""Rows that are handled together; bounds a worker's memory when documents are long."""


class StreamDatasource(FileBasedDatasource):
    """Text, JSONL and CSV files, a few megabytes at a time.

    Ray's `read_text` and `read_json` load a file whole, split lines at rare separators too, and fail without a line
    number.
    """

    def __init__(self, source: Source, files: SourceFiles) -> None:
        super().__init__(list(files.paths), filesystem=files.filesystem)
        self._source = source

    def _read_stream(self, f: pa.NativeFile, path: str) -> Iterator[pa.Table]:
        yield from read_texts(f, path, self._source)


def read_source(source: Source, files: SourceFiles) -> ray.data.Dataset:
    """A lazy dataset of `rows.CLEAN_SCHEMA`, one row for every row of the source's files.

    The files must be visible under the same paths on every node of the cluster.
    """
    if source.format != "parquet":
        return ray.data.read_datasource(StreamDatasource(source, files))
    table = ray.data.read_parquet(
        list(files.paths), filesystem=files.filesystem, partitioning=None, file_extensions=None
    )
    return table.select_columns([source.column]).map_batches(
        clean_column, fn_kwargs={"column": source.column}, batch_size=BATCH_ROWS, batch_format="pyarrow"
    )
