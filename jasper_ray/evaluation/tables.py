"""Columns of csv, tsv and jsonl files as text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jasper_ray.config import ConfigError


@dataclass(frozen=True)
class Row:
    """The wanted fields of one row, stripped of space around them, and the number of the line where it ends."""

    line: int
    fields: tuple[str, ...]


def read_rows(path: Path, format: str, header: bool, columns: Sequence[int | str]) -> list[Row]:
    """The given `columns` of every row of the csv, tsv or jsonl file `path`, in file order; no field is empty.

    Raises:
        ConfigError: no such file, no rows, a missing column, or an empty field.
    """
    reader = _json_rows(path, columns) if format == "jsonl" else _table_rows(path, format, header, columns)
    rows = []
    for row in reader:
        for column, field in zip(columns, row.fields, strict=True):
            if not field:
                raise ConfigError(f"{path}, line {row.line}: column {column!r} is empty; fill it or remove the row")
        rows.append(row)
    if not rows:
        raise ConfigError(f"{path} has no rows")
    return rows


def read_text(path: Path) -> str:
    """The UTF-8 text of `path`, without a byte order mark; every line ends in a plain newline."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"evaluation file {path} cannot be read: {reason}") from error


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every line of a jsonl file; blank lines are none."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # not splitlines: it also cuts at U+2028
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:  # also for numbers of thousands of digits, and deep nesting
            raise ConfigError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise ConfigError(f"{path}, line {number} holds a JSON {type(value).__name__}, an object was expected")
        yield number, value


def text_field(value: dict[str, Any], key: str, path: Path, line: int) -> str:
    """The text or number under `key`, as stripped text."""
    if key not in value:
        raise ConfigError(f"{path}, line {line} has no {key!r}; it has {', '.join(map(repr, value)) or 'no keys'}")
    found = value[key]
    if not isinstance(found, str | int | float) or isinstance(found, bool):
        raise ConfigError(f"{path}, line {line}: {key!r} holds {found!r}, text or a number was expected")
    return str(found).strip()


def _json_rows(path: Path, columns: Sequence[int | str]) -> Iterator[Row]:
    for line, value in read_objects(path):
        yield Row(line, tuple(text_field(value, str(column), path, line) for column in columns))


def _table_rows(path: Path, format: str, header: bool, columns: Sequence[int | str]) -> Iterator[Row]:
    table = _tsv_lines(path) if format == "tsv" else _csv_lines(path)
    names = next(table, (1, []))[1] if header else None
    positions = [_position(path, names, column) for column in columns]
    for line, fields in table:
        if len(fields) <= max(positions):
            raise ConfigError(
                f"{path}, line {line} has {len(fields)} columns, at least {max(positions) + 1} were expected"
            )
        yield Row(line, tuple(fields[position].strip() for position in positions))


def _position(path: Path, names: list[str] | None, column: int | str) -> int:
    """Where a column stands, counted from 0."""
    if isinstance(column, int):
        return column
    if column not in (names or []):
        raise ConfigError(
            f"{path} has no column {column!r}; its header names {', '.join(map(repr, names or [])) or 'none'}"
        )
    return (names or []).index(column)


def _tsv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line.split("\t")  # quotes are text: sentences in tsv files hold lone ones


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise ConfigError(f"{path}, line {reader.line_num} is not csv: {error}") from error
