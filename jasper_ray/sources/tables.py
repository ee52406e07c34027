"""Whole files of rows as Arrow tables: every row has a text, or the reason why it is rejected.

Nothing is skipped, so rows read are rows embedded plus rows rejected.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from jasper_ray.config import ConfigError
from jasper_ray.sources.rows import (
    DETAIL_LETTERS,
    READ_ROWS,
    Fault,
    Values,
    batches,
    judge,
    records,
    require,
    values_of,
)

TEXT, REASON, DETAIL = "\x00text", "\x00reason", "\x00detail"
"""Columns beside the copied ones, under names that no file has."""


class Columns(NamedTuple):
    """The columns to read of a file."""

    text: str
    copied: tuple[str, ...]


class RowFile(Protocol):
    """A file of rows in some file system."""

    @property
    def name(self) -> str: ...
    @property
    def filesystem(self) -> fs.FileSystem: ...
    @property
    def path(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def compressed(self) -> bool: ...


def read_rows(file: RowFile, columns: Columns, first: int = 0, offset: int = 0) -> Iterator[tuple[int, pa.Table]]:
    """Yield the rows of a file as tables, each with the number of its first row; the first table holds row `first`.

    A table has the copied columns and `TEXT`, `REASON`, `DETAIL`. `offset` is the byte at which row `first` begins
    in an uncompressed file of lines.

    Raises:
        ConfigError: the file is damaged, or has no such column.
        OSError: a remote store does not answer, which says nothing about the file.
    """
    try:
        if file.format == "parquet":
            with file.filesystem.open_input_file(file.path) as stream:
                yield from _parquet_rows(stream, columns, first, is_local(file))
            return
        with open_stream(file, offset) as stream:
            line, skip = (first + 1, 0) if offset else (1, first)
            rows = records(stream, file.format, [columns.text, *columns.copied], line=line, skip=skip)
            for batch in batches(rows, READ_ROWS):
                yield first, _record_table([row for _, row in batch], columns)
                first += len(batch)
    except (pa.ArrowException, OSError, EOFError) as error:
        if isinstance(error, OSError) and not is_local(file):
            raise
        raise ConfigError(f"{file.name} cannot be read: {str(error).splitlines()[0]}") from error


def is_local(file: RowFile) -> bool:
    """Say if an error of reading is the file's own: a remote store may be down, after pyarrow's own retries."""
    return isinstance(file.filesystem, fs.LocalFileSystem)


def open_stream(file: RowFile, offset: int = 0) -> pa.NativeFile:
    """Open the file's bytes, from `offset` on if it is not compressed."""
    if file.compressed:
        return file.filesystem.open_input_stream(file.path, compression="detect")
    stream = file.filesystem.open_input_file(file.path)
    stream.seek(offset)
    return stream


def _parquet_rows(stream: pa.NativeFile, columns: Columns, first: int, local: bool) -> Iterator[tuple[int, pa.Table]]:
    file = pq.ParquetFile(stream)
    require([columns.text, *columns.copied], file.schema_arrow.names)
    row = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row + rows > first:
            yield from _group_rows(file, group, columns, row, row + rows, first, local)
        row += rows


def _group_rows(
    file: pq.ParquetFile, group: int, columns: Columns, row: int, end: int, first: int, local: bool
) -> Iterator[tuple[int, pa.Table]]:
    """Yield the tables of a row group; the rows that cannot be read have that reason."""
    names = list(dict.fromkeys([columns.text, *columns.copied]))
    try:
        for batch in file.iter_batches(READ_ROWS, row_groups=[group], columns=names, use_threads=False):
            if row + len(batch) > first:
                copied = {name: batch.column(name) for name in columns.copied}
                yield row, _rows_table(values_of(batch.column(columns.text)), copied)
            row += len(batch)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and not local:
            raise
        types = {name: file.schema_arrow.field(name).type for name in columns.copied}
        while row < end:
            rows = min(READ_ROWS, end - row)
            faults = [Fault("unreadable", str(error).splitlines()[0][:DETAIL_LETTERS])] * rows
            yield row, _rows_table(faults, {name: pa.nulls(rows, kind) for name, kind in types.items()})
            row += rows


def _record_table(rows: Sequence[Values | Fault], columns: Columns) -> pa.Table:
    texts = [row if isinstance(row, Fault) else row[0] for row in rows]
    copied = {
        name: pa.array([None if isinstance(row, Fault) else as_text(row[place]) for row in rows], pa.string())
        for place, name in enumerate(columns.copied, start=1)
    }
    return _rows_table(texts, copied)


def _rows_table(values: Sequence[object], copied: Mapping[str, pa.Array]) -> pa.Table:
    """Make a table of copied columns and of each value as a text, or as reason and detail."""
    judged = [judge(value) for value in values]
    texts = [None if isinstance(value, Fault) else value for value in judged]
    reasons = [value.reason if isinstance(value, Fault) else None for value in judged]
    details = [value.detail if isinstance(value, Fault) else None for value in judged]
    own = {TEXT: texts, REASON: reasons, DETAIL: details}
    return pa.table({**copied, **{name: pa.array(column, pa.large_string()) for name, column in own.items()}})


def as_text(value: object) -> str | None:
    """Return a JSON value for a copied column: a text as it is, all else as JSON; bytes that are not UTF-8 escaped."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()
