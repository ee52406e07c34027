"""One reader of rows: a row of a JSONL, CSV, TSV or text file is its values, or the reason why it has none.

records: the rows of an open file     strict: the same, or an error at the first fault     judge: a value as a text
read_texts: cleaned texts for a corpus     (tables.read_rows: Arrow tables for embedding, from Parquet too)
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.csv as pa_csv

from jasper_ray.config import ConfigError
from jasper_ray.sources.settings import Source

T = TypeVar("T")

Reason = Literal["null", "not_text", "empty", "undecodable", "malformed", "unreadable", "no_id", "too_long"]
"""Why a row is rejected: no value; a number or the like; white space alone; bytes that are not UTF-8, or half a
surrogate pair; a line that is not of the file's format; a damaged part of a Parquet file; no id in the column of ids;
more tokens than allowed."""

CLEAN_SCHEMA = pa.schema([("text", pa.string()), ("dropped", pa.string())])
"""A row of a corpus: a text, stripped and not empty, or the reason why it was `dropped`."""
DROPPED: Mapping[str, str] = {"undecodable": "not_text"}
"""Reasons that a corpus counts under another name."""

READ_ROWS = 1024
CHUNK_BYTES = 4 << 20
DETAIL_LETTERS = 80
KEYS_ROWS = 100
"""JSON objects whose keys are taken for the columns of a file."""
LARGEST_FIELD = 1 << 30
ARROW_BLOCKS = pa_csv.ReadOptions(block_size=16 << 20, use_threads=False)  # a row must fit into a block
SURROGATE = re.compile("[\ud800-\udfff]")


class Fault(NamedTuple):
    """The reason why a row has no text."""

    reason: Reason
    detail: str = ""


NOT_UTF8 = Fault("undecodable", "not UTF-8")
Values = tuple[Any, ...]


class Rules(NamedTuple):
    """The differences from its format that are a fault of a row."""

    utf8: bool = False
    """Bytes that are not UTF-8 are a fault of their row, even outside of its values."""
    quotes: bool = True
    """A stray quote in a csv file is an error; else it is part of the text."""
    header: bool = True
    """The first row of a csv or tsv file names its columns; else columns are positions from 0."""
    width: bool = True
    """A row has as many fields as the header; else it may have more."""


LENIENT = Rules()
"""Embedding: faults are rows."""
CORPUS = Rules(utf8=True, quotes=False)
"""Corpora: a fault ends the job, so less is one."""


# Values


def judge(value: object) -> str | Fault:
    """Return a text that can be embedded, or the fault of the value."""
    if isinstance(value, str):
        if not value.isascii() and SURROGATE.search(value):
            return Fault("undecodable", value[:DETAIL_LETTERS].encode("utf-8", "backslashreplace").decode())
        return value if value.strip() else Fault("empty")
    if value is None:
        return Fault("null")
    if isinstance(value, Fault):
        return value
    return Fault("not_text", f"{type(value).__name__} {str(value)[:DETAIL_LETTERS]}")


def is_escaped(text: str) -> bool:
    """Say if a text holds half of a surrogate pair, which JSON can spell, or a byte that was not UTF-8."""
    return not text.isascii() and SURROGATE.search(text) is not None


def clean(values: Iterable[object]) -> pa.Table:
    """Return a table of `CLEAN_SCHEMA` with a row for each of `values`."""
    judged = [judge(value) for value in values]
    texts = [None if isinstance(text, Fault) else text.strip() for text in judged]
    dropped = [DROPPED.get(text.reason, text.reason) if isinstance(text, Fault) else None for text in judged]
    return pa.table({"text": texts, "dropped": dropped}, schema=CLEAN_SCHEMA)


def clean_column(table: pa.Table, column: str) -> pa.Table:
    """Clean one column of an Arrow table of any type."""
    return clean(values_of(table[column]))


def values_of(column: pa.Array | pa.ChunkedArray) -> list[object]:
    """Return a column's values; bytes of texts that are not UTF-8, which Arrow does not check, as escapes."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]


# Rows of open files


def records(
    stream: pa.NativeFile, form: str, columns: Sequence[int | str], rules: Rules = LENIENT, line: int = 1, skip: int = 0
) -> Iterator[tuple[int, Values | Fault]]:
    """Yield the line and the values of `columns` of each row of an open jsonl, csv, tsv or text file (its line alone).

    A blank line is the fault `empty`, but no row of a table with several columns. Of rows that are lines, the first
    `skip` are not parsed; the stream begins at line `line`.

    Raises:
        ConfigError: the file has no such column, or a quote in it is never closed.
    """
    if form == "csv":
        return itertools.islice(_fields(_csv_lines(stream, rules), columns, rules), skip, None)
    lines = itertools.islice(text_lines(stream, line), skip, None)
    if form == "jsonl":
        objects = json_objects(lines, rules.utf8)
        return ((n, o if isinstance(o, Fault) else tuple([o.get(key) for key in columns])) for n, o in objects)
    if form == "tsv":
        table = ((number, text.split("\t") if text.strip() else []) for number, text in lines)
        return _fields(table, columns, rules)
    utf8 = rules.utf8
    return ((number, NOT_UTF8 if utf8 and is_escaped(text) else (text.removesuffix("\r"),)) for number, text in lines)


def strict(rows: Iterable[tuple[int, T | Fault]], path: str) -> Iterator[tuple[int, T]]:
    """Yield the rows of the file `path` without blank lines.

    Raises:
        ConfigError: the first fault, and its line.
    """
    try:
        for line, row in rows:
            if not isinstance(row, Fault):
                yield line, row
            elif row.reason != "empty":
                raise ConfigError(f"line {line}: {row.detail}")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; fix the file, or change the column or format set for it") from error


def text_lines(stream: pa.NativeFile, line: int = 1) -> Iterator[tuple[int, str]]:
    """Yield the lines of a stream that begins at line `line`, with their numbers.

    Only a line feed ends a line, so that rarer separators stay part of a text.
    """
    for chunk in whole_lines(stream):
        text = chunk.decode("utf-8", "surrogateescape")
        lines = (text.removeprefix("\ufeff") if line == 1 else text).split("\n")
        yield from enumerate(lines, line)
        line += len(lines)


def whole_lines(stream: pa.NativeFile) -> Iterator[bytes]:
    """Yield chunks of whole lines, each without its last line feed; a longer line makes a longer chunk."""
    rest: list[bytes] = []
    while chunk := stream.read(CHUNK_BYTES):
        head, feed, tail = chunk.rpartition(b"\n")
        if feed:
            yield b"".join([*rest, head])
            rest = [tail]
        else:
            rest.append(tail)
    if last := b"".join(rest):
        yield last


def json_objects(lines: Iterable[tuple[int, str]], utf8: bool = False) -> Iterator[tuple[int, dict[Any, Any] | Fault]]:
    """Yield the JSON object of each line; `utf8` as in `records`."""
    for number, text in lines:
        yield number, NOT_UTF8 if utf8 and is_escaped(text) else _json_object(text)


def _json_object(text: str) -> dict[Any, Any] | Fault:
    if not text.strip():
        return Fault("empty")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
        return Fault("malformed", f"not JSON: {str(error)[:DETAIL_LETTERS]}")
    return value if isinstance(value, dict) else Fault("malformed", f"a JSON {type(value).__name__}, not an object")


def _csv_lines(stream: pa.NativeFile, rules: Rules) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each row of a csv file and the number of its last line; a blank line has no fields."""
    csv.field_size_limit(LARGEST_FIELD)
    reader = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline=""), strict=rules.quotes)
    try:
        for fields in reader:
            yield reader.line_num, fields
    except csv.Error as error:
        raise ConfigError(f"line {reader.line_num} is not CSV: {error}") from error


def _fields(
    lines: Iterator[tuple[int, list[str]]], columns: Sequence[int | str], rules: Rules
) -> Iterator[tuple[int, Values | Fault]]:
    names = next((fields for _, fields in lines if fields), []) if rules.header else []
    require([column for column in columns if isinstance(column, str)], names)
    places = [column if isinstance(column, int) else names.index(column) for column in columns]
    exact = len(names) if rules.width else 0
    least = max(places) + 1
    for number, fields in lines:
        if not fields:
            if len(names) == 1:
                yield number, Fault("empty")
        elif exact and len(fields) != exact:
            yield number, Fault("malformed", f"{len(fields)} fields, and the header has {exact}")
        elif len(fields) < least:
            yield number, Fault("malformed", f"{len(fields)} fields, expected at least {least}")
        else:
            values = tuple([fields[place] for place in places])
            yield number, NOT_UTF8 if rules.utf8 and any(map(is_escaped, values)) else values


def require(columns: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a file that lacks a column."""
    for name in columns:
        if name not in names:
            raise ConfigError(f"there is no column {name!r}; its columns are {', '.join(names[:20]) or 'none'}")


def column_names(stream: pa.NativeFile, form: str, path: str) -> list[str]:
    """Return the header of an open csv file, or the keys of the first objects of a jsonl file.

    Raises:
        ConfigError: a line before the end of these is faulty.
    """
    if form == "csv":
        return next((fields for _, fields in _csv_lines(stream, CORPUS) if fields), [])
    objects = itertools.islice(strict(json_objects(text_lines(stream), utf8=True), path), KEYS_ROWS)
    return list(dict.fromkeys(key for _, found in objects for key in found))


# Corpora


def read_texts(stream: pa.NativeFile, path: str, source: Source) -> Iterator[pa.Table]:
    """Yield the rows of an open text, JSONL or CSV file of `source` as tables of `CLEAN_SCHEMA`.

    Raises:
        ConfigError: the file is not of that format; with the line.
    """
    if source.format == "csv":
        yield from (clean(values) for values in _arrow_csv(stream, path, source.column))
        return
    rows = strict(records(stream, source.format, [source.column], CORPUS), path)
    for batch in batches(rows, READ_ROWS):
        yield clean(values[0] for _, values in batch)


def _arrow_csv(stream: pa.NativeFile, path: str, column: str) -> Iterator[list[object]]:
    """Yield the values of a column by pyarrow's reader: it cannot name a faulty row, but is three times as fast."""
    convert = pa_csv.ConvertOptions(include_columns=[column], column_types={column: pa.string()})
    try:
        for batch in pa_csv.open_csv(stream, ARROW_BLOCKS, pa_csv.ParseOptions(newlines_in_values=True), convert):
            yield batch.column(0).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise ConfigError(
            f"{path}: not CSV with a column {column!r} ({str(error).splitlines()[0]}); "
            "fix the file, or change column or format of the source"
        ) from error


def batches(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` rows, the last one shorter."""
    rows = iter(rows)
    while batch := list(itertools.islice(rows, size)):
        yield batch
