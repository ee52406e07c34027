"""From files to rows: a text or the reason why there is none, and the columns that go along, for every row of a file.

Nothing is skipped: a line that cannot be read is a row with a reason, so rows in are rows embedded plus rows rejected.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from jasper_ray.config import ConfigError
from jasper_ray.embedding.inputs import InputFile
from jasper_ray.sources.texts import whole_lines

TEXT, REASON, DETAIL = "\x00text", "\x00reason", "\x00detail"
"""Columns that stand beside copied ones, under names that no file has."""

Reason = Literal["null", "not_text", "empty", "undecodable", "malformed", "unreadable", "no_id", "too_long"]
"""Why a row is set aside: nothing there; a number or the like; white space alone; bytes that are not UTF-8, or half a
surrogate pair; a line that is not of the file's format; a damaged part of a Parquet file; no id in the column of ids;
more tokens than allowed."""

READ_ROWS = 1024
DETAIL_LETTERS = 80

csv.field_size_limit(1 << 30)


class Fault(NamedTuple):
    """Why a row has no text."""

    reason: Reason
    detail: str = ""


class Columns(NamedTuple):
    """What is read of a file."""

    text: str
    copied: tuple[str, ...]


def read_rows(file: InputFile, columns: Columns, first: int = 0, offset: int = 0) -> Iterator[tuple[int, pa.Table]]:
    """The rows of a file, a table at a time behind the number of its first row; copied columns and `TEXT`, `REASON`,
    `DETAIL`. Begins with the table that holds row `first`: `offset` is the byte at which that row begins in an
    uncompressed file of lines.

    Raises:
        ConfigError: the file is damaged, or has no such column.
        OSError: a remote store that does not answer, which says nothing about the file.
    """
    try:
        if file.format == "parquet":
            with file.filesystem.open_input_file(file.path) as stream:
                yield from parquet_rows(stream, columns, first, is_local(file))
            return
        with open_stream(file, offset) as stream:
            if file.format == "csv":
                yield from csv_rows(stream, columns, first)
            else:
                yield from line_rows(stream, file.format == "jsonl", columns, first if offset else 0, first)
    except (pa.ArrowException, OSError, EOFError) as error:
        if isinstance(error, OSError) and not is_local(file):
            raise
        raise ConfigError(f"{file.known.name} cannot be read: {str(error).splitlines()[0]}") from error


def is_local(file: InputFile) -> bool:
    """Whether an error of reading is the file's own: a remote store may be down, after pyarrow's own retries."""
    return isinstance(file.filesystem, fs.LocalFileSystem)


def open_stream(file: InputFile, offset: int = 0) -> pa.NativeFile:
    """The file's bytes, from `offset` on if it is not compressed."""
    if file.compressed:
        return file.filesystem.open_input_stream(file.path, compression="detect")
    stream = file.filesystem.open_input_file(file.path)
    stream.seek(offset)
    return stream


def parquet_rows(stream: pa.NativeFile, columns: Columns, first: int, local: bool) -> Iterator[tuple[int, pa.Table]]:
    """`read_rows` for Parquet; row groups before the one that holds `first` are passed over."""
    file = pq.ParquetFile(stream)
    require(columns, file.schema_arrow.names)
    row = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row + rows > first:
            yield from group_rows(file, group, columns, row, row + rows, first, local)
        row += rows


def group_rows(
    file: pq.ParquetFile, group: int, columns: Columns, row: int, end: int, first: int, local: bool
) -> Iterator[tuple[int, pa.Table]]:
    """One row group; what of it cannot be read are rows with that reason."""
    names = list(dict.fromkeys([columns.text, *columns.copied]))
    try:
        for batch in file.iter_batches(READ_ROWS, row_groups=[group], columns=names, use_threads=False):
            if row + len(batch) > first:
                copied = {name: batch.column(name) for name in columns.copied}
                yield row, rows_table(values_of(batch.column(columns.text)), copied)
            row += len(batch)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and not local:
            raise
        types = {name: file.schema_arrow.field(name).type for name in columns.copied}
        while row < end:
            rows = min(READ_ROWS, end - row)
            faults = [Fault("unreadable", str(error).splitlines()[0][:DETAIL_LETTERS])] * rows
            yield row, rows_table(faults, {name: pa.nulls(rows, kind) for name, kind in types.items()})
            row += rows


def values_of(column: pa.Array) -> list[object]:
    """A column's values; texts that are not UTF-8, which Arrow does not check, with escapes for their bytes."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]


def line_rows(
    stream: pa.NativeFile, as_json: bool, columns: Columns, row: int, first: int
) -> Iterator[tuple[int, pa.Table]]:
    """`read_rows` for lines, each a text or a JSON object, from row `row` on. Lines end at a line feed."""
    for chunk in whole_lines(stream):
        lines = chunk.split(b"\n")
        if row == 0:
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
        for start in range(0, len(lines), READ_ROWS):
            part = lines[start : start + READ_ROWS]
            if row + len(part) > first:
                yield row, (json_table(part, columns) if as_json else text_table(part))
            row += len(part)


def text_table(lines: Sequence[bytes]) -> pa.Table:
    return rows_table([line.removesuffix(b"\r").decode("utf-8", "surrogateescape") for line in lines], {})


def json_table(lines: Sequence[bytes], columns: Columns) -> pa.Table:
    objects = [json_object(line) for line in lines]
    texts = [found if isinstance(found, Fault) else found.get(columns.text) for found in objects]
    copied = {
        name: pa.array([None if isinstance(o, Fault) else as_text(o.get(name)) for o in objects], pa.string())
        for name in columns.copied
    }
    return rows_table(texts, copied)


def json_object(line: bytes) -> dict[str, object] | Fault:
    if not line.strip():
        return Fault("empty")
    try:
        value = json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
        return Fault("malformed", f"not JSON: {str(error)[:DETAIL_LETTERS]}")
    return value if isinstance(value, dict) else Fault("malformed", f"a JSON {type(value).__name__}, not an object")


def as_text(value: object) -> str | None:
    """A value of JSON as it is kept: a text as it is, all else as JSON; escapes stand for bytes that are no text."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()


def csv_rows(stream: pa.NativeFile, columns: Columns, first: int = 0) -> Iterator[tuple[int, pa.Table]]:
    """`read_rows` for CSV with a header line; quoted texts may span lines. A blank line is a row only where there is
    one column: elsewhere it is none to any reader of CSV."""
    lines = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, [])
        require(columns, header)
        row = 0
        found = (line or [""] for line in reader if line or len(header) == 1)
        for fields in batches(found, READ_ROWS):
            if row + len(fields) > first:
                yield row, csv_table(fields, header, columns)
            row += len(fields)
    except csv.Error as error:
        raise ConfigError(f"line {reader.line_num} is not CSV: {error}") from error


def csv_table(rows: Sequence[list[str]], header: Sequence[str], columns: Columns) -> pa.Table:
    places = {name: header.index(name) for name in (columns.text, *columns.copied)}
    fault = [
        None if len(row) == len(header) else Fault("malformed", f"{len(row)} fields, and the header has {len(header)}")
        for row in rows
    ]
    texts = [bad or row[places[columns.text]] for row, bad in zip(rows, fault, strict=True)]
    copied = {
        name: pa.array([None if b else as_text(r[places[name]]) for r, b in zip(rows, fault, strict=True)], pa.string())
        for name in columns.copied
    }
    return rows_table(texts, copied)


def batches(rows: Iterable[list[str]], size: int) -> Iterator[list[list[str]]]:
    batch: list[list[str]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def require(columns: Columns, names: Sequence[str]) -> None:
    """Refuse a file that lacks a column."""
    for name in (columns.text, *columns.copied):
        if name not in names:
            known = ", ".join(names[:20]) or "none"
            raise ConfigError(f"there is no column {name!r}; its columns are {known}")


def rows_table(values: Sequence[object], copied: dict[str, pa.Array]) -> pa.Table:
    """Copied columns, and each of `values` as a text, or as reason and detail."""
    judged = [judge(value) for value in values]
    texts = [None if isinstance(found, Fault) else found for found in judged]
    reasons = [found.reason if isinstance(found, Fault) else None for found in judged]
    details = [found.detail if isinstance(found, Fault) else None for found in judged]
    own = {TEXT: texts, REASON: reasons, DETAIL: details}
    return pa.table({**copied, **{name: pa.array(column, pa.large_string()) for name, column in own.items()}})


def judge(value: object) -> str | Fault:
    """A text that can be embedded, or why this is none."""
    if isinstance(value, Fault):
        return value
    if value is None:
        return Fault("null")
    if not isinstance(value, str):
        return Fault("not_text", f"{type(value).__name__} {str(value)[:DETAIL_LETTERS]}")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        return Fault("undecodable", value[:DETAIL_LETTERS].encode("utf-8", "backslashreplace").decode())
    return value if value.strip() else Fault("empty")
