"""From files to cleaned texts: tables with the columns `text` and `dropped`, one row for every row read.

A row has either a `text`, stripped and not empty, or the reason why it was `dropped`; the other is null.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.csv as pa_csv

from jasper_ray.config import ConfigError
from jasper_ray.sources.settings import Source

DROP_REASONS = ("null", "empty", "not_text")
"""Why a row gives no text: nothing is there (or the key is missing), only white space, a number or half a character."""

CLEAN_SCHEMA = pa.schema([("text", pa.string()), ("dropped", pa.string())])
_CHUNK_BYTES = 4 << 20
_CSV_BLOCKS = pa_csv.ReadOptions(block_size=16 << 20, use_threads=False)  # a row must fit into a block
_CSV_PARSING = pa_csv.ParseOptions(newlines_in_values=True)


def clean_value(value: object) -> tuple[str | None, str | None]:
    """(text, None) or (None, reason)."""
    if value is None:
        return None, "null"
    if not isinstance(value, str) or not _has_utf8(value):
        return None, "not_text"
    text = value.strip()
    return (text, None) if text else (None, "empty")


def _has_utf8(text: str) -> bool:
    """False for half of a surrogate pair, which JSON escapes can spell."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def clean(values: Iterable[object]) -> pa.Table:
    """A table of `CLEAN_SCHEMA` with a row for each of `values`."""
    rows = [clean_value(value) for value in values]
    return pa.table(
        {"text": [text for text, _ in rows], "dropped": [reason for _, reason in rows]},
        schema=CLEAN_SCHEMA,
    )


def clean_column(table: pa.Table, column: str) -> pa.Table:
    """`clean` over one column of an Arrow table of any type."""
    return clean(table[column].to_pylist())


def read_stream(stream: pa.NativeFile, path: str, source: Source) -> Iterator[pa.Table]:
    """Cleaned tables from an open text, JSONL or CSV file of `source`, a few megabytes at a time.

    Raises `ConfigError` with the path, and the line where it is known, if the file is not written in that format.
    """
    if source.format == "csv":
        return read_csv(stream, path, source.column)
    return read_lines(stream, path, source.column if source.format == "jsonl" else None)


def read_lines(stream: pa.NativeFile, path: str, key: str | None) -> Iterator[pa.Table]:
    """`read_stream` for lines: JSON objects whose value at `key` is the text, or texts themselves if `key` is None.

    Lines end at a line feed only, so that rarer separators stay part of a text. Blank lines of JSONL are passed over.
    """
    for number, lines in _numbered_lines(stream, path):
        yield clean(lines if key is None else (row.get(key) for _, row in _json_objects(lines, path, number)))


def read_objects(stream: pa.NativeFile, path: str) -> Iterator[tuple[int, dict[str, object]]]:
    """The JSON objects of an open JSONL file, each with the number of its line; raises as `read_lines` does."""
    for number, lines in _numbered_lines(stream, path):
        yield from _json_objects(lines, path, number)


def read_json_keys(stream: pa.NativeFile, path: str, rows: int = 100) -> list[str]:
    """The keys of the first `rows` JSON objects of an open stream, in order; raises as `read_lines` does."""
    number, lines = next(_numbered_lines(stream, path), (1, []))
    return list(dict.fromkeys(key for _, found in _json_objects(lines[:rows], path, number) for key in found))


def read_csv(stream: pa.NativeFile, path: str, column: str) -> Iterator[pa.Table]:
    """`read_stream` for CSV with a header line; quoted texts may span lines, and numbers are read as texts."""
    for table in read_csv_columns(stream, path, [column]):
        yield clean_column(table, column)


def read_csv_columns(stream: pa.NativeFile, path: str, columns: list[str]) -> Iterator[pa.Table]:
    """Tables of `columns` of an open CSV file, as they are written, all of them texts; raises as `read_csv` does."""
    convert = pa_csv.ConvertOptions(include_columns=columns, column_types=dict.fromkeys(columns, pa.string()))
    try:
        for batch in pa_csv.open_csv(stream, _CSV_BLOCKS, _CSV_PARSING, convert):
            yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise _not_csv(path, error) from error


def read_csv_names(stream: pa.NativeFile, path: str) -> list[str]:
    """The columns of an open CSV file; raises as `read_csv` does."""
    try:
        return list(pa_csv.open_csv(stream, _CSV_BLOCKS, _CSV_PARSING).schema.names)
    except pa.ArrowInvalid as error:
        raise _not_csv(path, error) from error


def _not_csv(path: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{path} is not the CSV that was expected ({str(error).splitlines()[0]}); "
        "mend the file, or change column or format of the source"
    )


def _numbered_lines(stream: pa.NativeFile, path: str) -> Iterator[tuple[int, list[str]]]:
    """The lines of an open file, some at a time, and the number of the first of them."""
    number = 1
    for chunk in whole_lines(stream):
        lines = _decode(chunk, path, number).split("\n")
        yield number, lines
        number += len(lines)


def whole_lines(stream: pa.NativeFile) -> Iterator[bytes]:
    """Chunks of whole lines, each without its last line feed; a line longer than a chunk is waited for."""
    rest: list[bytes] = []
    while chunk := stream.read(_CHUNK_BYTES):
        head, feed, tail = chunk.rpartition(b"\n")
        if feed:
            yield b"".join([*rest, head])
            rest = [tail]
        else:
            rest.append(tail)
    if last := b"".join(rest):
        yield last


def _decode(chunk: bytes, path: str, number: int) -> str:
    try:
        return chunk.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = number + chunk.count(b"\n", 0, error.start)
        raise ConfigError(
            f"{path}, line {line}, is not UTF-8 ({error.reason}); write the file in UTF-8 or change the source's format"
        ) from error


def _json_objects(lines: list[str], path: str, first: int) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(lines, start=first):
        if line.strip():
            yield number, _json_object(line, path, number)


def _json_object(line: str, path: str, number: int) -> dict[str, object]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # also for numbers of thousands of digits, and deep nesting
        raise _not_jsonl(path, number, f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise _not_jsonl(path, number, f"a JSON {type(value).__name__}")
    return value


def _not_jsonl(path: str, number: int, what: str) -> ConfigError:
    return ConfigError(
        f"{path}, line {number}, is {what}; expected one JSON object a line; "
        "mend the file or change the source's format"
    )
