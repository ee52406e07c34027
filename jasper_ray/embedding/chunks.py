"""Chunks of input rows: which are left to embed, who reads them, and a chunk between reading and embedding."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jasper_ray.embedding.inputs import InputFile, Scan, ScannedFile
from jasper_ray.embedding.settings import EmbedSettings
from jasper_ray.models.tokens import Tokenizing
from jasper_ray.sources.tables import DETAIL, REASON, TEXT, Columns, read_rows

REJECTED_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("row", pa.int64()),
        ("id", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
SPAN_CHUNKS = 16
"""Chunks that one reader reads in a row: enough to be worth a task, few enough to share a large file."""
NAME = re.compile(r"(.+-[0-9a-f]{16})-(\d{6,})\.parquet")


class Chunk(NamedTuple):
    """Rows of a file, ready for a model."""

    name: str
    """Name of the files that it is written to."""
    kept: pa.Table
    """The id, the copied columns, and for each row the number of its text: `TEXT`, int32."""
    texts: pa.Table
    """The distinct texts: `text`, lists of token ids, or texts for an encoder that takes nothing else."""
    rejected: pa.Table
    """Rejected rows, in `REJECTED_SCHEMA`."""

    def packed(self) -> pa.Table:
        parts = {name: pa.array([pack(getattr(self, name))], pa.large_binary()) for name in PARTS}
        return pa.table({"name": [self.name], **parts})

    @property
    def rows(self) -> int:
        return len(self.kept) + len(self.rejected)


PARTS = ("kept", "texts", "rejected")


def unpack(row: pa.Table) -> Chunk:
    parts = {name: pa.ipc.open_stream(row[name][0].as_buffer()).read_all() for name in PARTS}
    return Chunk(row["name"][0].as_py(), **parts)


def pack(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


class Preparation(NamedTuple):
    """The way from rows to a chunk, the same for every chunk of a job."""

    tokenizing: Tokenizing | None
    truncate: bool
    id_column: str | None
    carry: tuple[str, ...]

    def chunk(self, name: str, file: str, first: int, rows: pa.Table) -> Chunk:
        """Make a chunk of `rows` (as `read_rows` gives them), which begin at row `first` of a file."""
        numbers = pa.array(np.arange(first, first + len(rows)))
        if self.id_column is None:
            ids = pa.chunked_array([pa.array([f"{file}#{first + row}" for row in range(len(rows))], pa.string())])
        else:
            ids = rows[self.id_column]
            reasons = pc.if_else(pc.and_(pc.is_null(rows[REASON]), pc.is_null(ids)), "no_id", rows[REASON])
            rows = rows.set_column(rows.column_names.index(REASON), REASON, reasons)
        good = pc.is_null(rows[REASON]).to_numpy(zero_copy_only=False)
        places, distinct = distinct_texts(rows[TEXT].filter(pa.array(good)).to_pylist())
        texts, long = self.read(distinct)
        if long:
            rows, good = reject_long(rows, good, places, long)
            places, distinct = distinct_texts(rows[TEXT].filter(pa.array(good)).to_pylist())
            texts, _ = self.read(distinct)
        mask = pa.array(good)
        named = {self.id_column or "id": ids, **{column: rows[column] for column in self.carry}, TEXT: None}
        kept = {column: places if values is None else values.filter(mask) for column, values in named.items()}
        return Chunk(name, pa.table(kept), texts, rejected_rows(rows, ids, numbers, pc.invert(mask), file))

    def read(self, texts: list[str]) -> tuple[pa.Table, dict[int, int]]:
        """Return the texts as the encoder takes them, and the lengths of those that are too long, by place."""
        if self.tokenizing is None:
            return pa.table({"text": pa.array(texts, pa.large_string())}), {}
        ids = self.tokenizing(texts, self.truncate)
        long = {place: len(row) for place, row in enumerate(ids) if len(row) > self.tokenizing.max_length}
        return pa.table({"text": pa.array(ids, pa.large_list(pa.int32()))}), long


def distinct_texts(texts: list[str]) -> tuple[pa.Array, list[str]]:
    """Number the distinct texts by first appearance: the number of each text, and the distinct ones."""
    places: dict[str, int] = {}
    return pa.array([places.setdefault(text, len(places)) for text in texts], pa.int32()), list(places)


def reject_long(
    rows: pa.Table, good: np.ndarray, places: pa.Array, long: dict[int, int]
) -> tuple[pa.Table, np.ndarray]:
    """Give rows whose text is too long a reason; return the rows, and which are still good."""
    reasons, details = rows[REASON].to_pylist(), rows[DETAIL].to_pylist()
    for row, place in zip(np.flatnonzero(good), places.to_pylist(), strict=True):
        if place in long:
            reasons[row], details[row] = "too_long", f"{long[place]} tokens"
    for name, column in ((REASON, reasons), (DETAIL, details)):
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(column, pa.large_string()))
    return rows, np.array([reason is None for reason in reasons])


def rejected_rows(rows: pa.Table, ids: pa.ChunkedArray, numbers: pa.Array, mask: pa.Array, file: str) -> pa.Table:
    numbers = numbers.filter(mask)
    columns = {
        "file": pa.array([file] * len(numbers), pa.string()),
        "row": numbers,
        "id": pa.array([None if value is None else str(value) for value in ids.filter(mask).to_pylist()], pa.string()),
        "reason": rows[REASON].filter(mask),
        "detail": rows[DETAIL].filter(mask),
    }
    return pa.table(columns).cast(REJECTED_SCHEMA)


@dataclass(frozen=True)
class Span:
    """Chunks of one file that are left to embed, in order, and that one reader reads."""

    file: InputFile
    chunks: tuple[int, ...]
    rows: int
    """Rows of these chunks together."""
    offset: int
    """Byte at which the first of them begins, for uncompressed files of lines."""


def chunk_name(key: str, chunk: int) -> str:
    """Name the files that a chunk is written to."""
    return f"{key}-{chunk:06d}.parquet"


def is_chunk_name(name: str) -> bool:
    return NAME.fullmatch(name) is not None


def chunk_of(name: str) -> tuple[str, int]:
    """Split a name that `chunk_name` made into the file's key and the chunk's number."""
    match = NAME.fullmatch(name)
    assert match, name
    return match[1], int(match[2])


def is_finished(scanned: ScannedFile, chunk_rows: int, finished: Container[str]) -> bool:
    """Check that all chunks of a file are finished (names); an unreadable file may have been fixed since."""
    chunks = range(-(-scanned.scan.rows // chunk_rows))
    return not scanned.scan.fault and all(chunk_name(scanned.file.key, chunk) in finished for chunk in chunks)


def plan_spans(file: InputFile, scan: Scan, chunk_rows: int, finished: Container[str]) -> list[Span]:
    """Make the spans of a file's chunks that are not `finished` (names)."""
    chunks = [
        chunk for chunk in range(-(-scan.rows // chunk_rows)) if chunk_name(file.known.key, chunk) not in finished
    ]
    runs = [tuple(chunks)] if chunks else []
    if scan.offsets or file.format == "parquet":
        runs = [tuple(chunks[start : start + SPAN_CHUNKS]) for start in range(0, len(chunks), SPAN_CHUNKS)]
    return [
        Span(
            file,
            run,
            rows=sum(min(chunk_rows, scan.rows - chunk * chunk_rows) for chunk in run),
            offset=scan.offsets[run[0]] if scan.offsets else 0,
        )
        for run in runs
    ]


def read_span(span: Span, columns: Columns, chunk_rows: int) -> Iterator[tuple[int, pa.Table]]:
    """Read the rows of each chunk of a span, with its number."""
    left = list(span.chunks)
    first = left[0] * chunk_rows
    for chunk, table in in_chunks(read_rows(span.file, columns, first, span.offset), first, chunk_rows):
        if chunk == left[0]:
            yield chunk, table
            left.pop(0)
        if not left:
            return


def read_chunks(span: Span, settings: EmbedSettings, tokenizing: Tokenizing | None) -> Iterator[Chunk]:
    """Read the chunks of a span, checked and tokenised."""
    preparation = Preparation(tokenizing, settings.truncate, settings.id_column, settings.carry)
    columns = Columns(settings.text_column, settings.copied)
    for number, table in read_span(span, columns, settings.block_rows):
        name = chunk_name(span.file.known.key, number)
        yield preparation.chunk(name, span.file.known.name, number * settings.block_rows, table)


def in_chunks(tables: Iterator[tuple[int, pa.Table]], first: int, chunk_rows: int) -> Iterator[tuple[int, pa.Table]]:
    """Cut consecutive tables into chunks; rows before row `first`, where a chunk begins, are skipped."""
    waiting: list[pa.Table] = []
    held, chunk = 0, first // chunk_rows
    for row, table in tables:
        if row + len(table) <= first:
            continue  # not a slice without rows, which would keep the whole table in memory
        if row < first:
            table = table.slice(first - row)
        waiting.append(table)
        held += len(table)
        while held >= chunk_rows:
            whole = pa.concat_tables(waiting)
            yield chunk, whole.slice(0, chunk_rows)
            waiting, held, chunk = [whole.slice(chunk_rows)], held - chunk_rows, chunk + 1
    if held:
        yield chunk, pa.concat_tables(waiting)
