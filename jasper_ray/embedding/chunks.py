"""Blocks of input rows: which blocks exist, who reads them, and a block between reading and embedding."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jasper_ray.embedding.inputs import InputFile
from jasper_ray.embedding.scan import Scan
from jasper_ray.models.tokenizing import Tokenizing
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


class Block(NamedTuple):
    """Some rows of a file, ready for a model."""

    name: str
    """Of the files that it is written to."""
    kept: pa.Table
    """The id, the columns that are copied, and for each row which of the texts it has: `TEXT`, int32."""
    texts: pa.Table
    """The distinct texts: `text`, lists of token ids, or texts for an encoder that takes nothing else."""
    rejected: pa.Table
    """`REJECTED_SCHEMA`."""

    def packed(self) -> pa.Table:
        """One row that holds all of it."""
        parts = {name: pa.array([pack(getattr(self, name))], pa.large_binary()) for name in PARTS}
        return pa.table({"name": [self.name], **parts})

    @property
    def rows(self) -> int:
        return len(self.kept) + len(self.rejected)


PARTS = ("kept", "texts", "rejected")


def unpack(row: pa.Table) -> Block:
    """The block in a table of one row that `packed` made."""
    parts = {name: pa.ipc.open_stream(row[name][0].as_buffer()).read_all() for name in PARTS}
    return Block(row["name"][0].as_py(), **parts)


def pack(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


class Preparation(NamedTuple):
    """How rows become a block: the same for every block of a job."""

    tokenizing: Tokenizing | None
    truncate: bool
    id_column: str | None
    carry: tuple[str, ...]

    def block(self, name: str, file: str, first: int, rows: pa.Table) -> Block:
        """The block of `rows` (as `read_rows` makes them), which begin at row `first` of a file."""
        numbers = pa.array(np.arange(first, first + len(rows)))
        ids = rows[self.id_column] if self.id_column else row_ids(file, first, len(rows))
        if self.id_column:
            rows = rows.set_column(rows.column_names.index(REASON), REASON, without_id(rows, ids))
        good = pc.is_null(rows[REASON]).to_numpy(zero_copy_only=False)
        places, distinct = distinct_texts(rows[TEXT].filter(pa.array(good)).to_pylist())
        texts, long = self.read(distinct)
        if long:
            rows, good = set_aside(rows, good, places, long)
            places, distinct = distinct_texts(rows[TEXT].filter(pa.array(good)).to_pylist())
            texts, _ = self.read(distinct)
        mask = pa.array(good)
        named = {self.id_column or "id": ids, **{column: rows[column] for column in self.carry}, TEXT: None}
        kept = {column: places if values is None else values.filter(mask) for column, values in named.items()}
        return Block(name, pa.table(kept), texts, rejected_rows(rows, ids, numbers, pc.invert(mask), file))

    def read(self, texts: list[str]) -> tuple[pa.Table, dict[int, int]]:
        """The texts as the encoder takes them, and the lengths of those that are too long, by place."""
        if self.tokenizing is None:
            return pa.table({"text": pa.array(texts, pa.large_string())}), {}
        ids = self.tokenizing(texts, self.truncate)
        long = {place: len(row) for place, row in enumerate(ids) if len(row) > self.tokenizing.max_length}
        return pa.table({"text": pa.array(ids, pa.large_list(pa.int32()))}), long


def row_ids(file: str, first: int, rows: int) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array([f"{file}#{row}" for row in range(first, first + rows)], pa.string())])


def without_id(rows: pa.Table, ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Reasons, with one more for rows that have a text and no id."""
    return pc.if_else(pc.and_(pc.is_null(rows[REASON]), pc.is_null(ids)), "no_id", rows[REASON])


def distinct_texts(texts: list[str]) -> tuple[pa.Array, list[str]]:
    """For each text which of the distinct ones it is, and these, in the order of their first appearance."""
    places: dict[str, int] = {}
    return pa.array([places.setdefault(text, len(places)) for text in texts], pa.int32()), list(places)


def set_aside(rows: pa.Table, good: np.ndarray, places: pa.Array, long: dict[int, int]) -> tuple[pa.Table, np.ndarray]:
    """`rows` with a reason for those whose text is too long, and which are good now."""
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


SPAN_BLOCKS = 16
"""Blocks that are read in a row: enough to be worth a task, few enough to share a large file among readers."""


NAME = re.compile(r"(.+-[0-9a-f]{16})-(\d{6,})\.parquet")


@dataclass(frozen=True)
class Span:
    """Blocks of one file that are still to be embedded, in order."""

    file: InputFile
    blocks: tuple[int, ...]
    rows: int
    """Of these blocks together."""
    offset: int
    """The byte at which the first of them begins, for uncompressed files of lines."""


def block_name(key: str, block: int) -> str:
    """The name of the files that a block is written to."""
    return f"{key}-{block:06d}.parquet"


def is_block_name(name: str) -> bool:
    """Whether `block_name` made it."""
    return NAME.fullmatch(name) is not None


def block_of(name: str) -> tuple[str, int]:
    """The file's key and the block's number in a name that `block_name` made."""
    found = NAME.fullmatch(name)
    assert found, name
    return found[1], int(found[2])


def rows_of(block: int, rows: int, block_rows: int) -> int:
    """Rows of one block of a file of so many rows."""
    return min(block_rows, rows - block * block_rows)


def plan_spans(file: InputFile, scan: Scan, block_rows: int, finished: Container[str]) -> list[Span]:
    """The spans of a file whose blocks are not all `finished` (names)."""
    blocks = [
        block for block in range(-(-scan.rows // block_rows)) if block_name(file.known.key, block) not in finished
    ]
    runs = [tuple(blocks)] if blocks else []
    if scan.offsets or file.format == "parquet":
        runs = [tuple(blocks[start : start + SPAN_BLOCKS]) for start in range(0, len(blocks), SPAN_BLOCKS)]
    return [
        Span(
            file,
            run,
            rows=sum(rows_of(block, scan.rows, block_rows) for block in run),
            offset=scan.offsets[run[0]] if scan.offsets else 0,
        )
        for run in runs
    ]


def read_span(span: Span, columns: Columns, block_rows: int) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each block of a span, behind its number."""
    wanted = list(span.blocks)
    first = wanted[0] * block_rows
    for block, table in in_blocks(read_rows(span.file, columns, first, span.offset), first, block_rows):
        if block == wanted[0]:
            yield block, table
            wanted.pop(0)
        if not wanted:
            return


def in_blocks(tables: Iterator[tuple[int, pa.Table]], first: int, block_rows: int) -> Iterator[tuple[int, pa.Table]]:
    """Tables that follow each other, cut into blocks; rows before row `first`, where a block begins, are left out."""
    waiting: list[pa.Table] = []
    held, block = 0, first // block_rows
    for row, table in tables:
        if row + len(table) <= first:
            continue  # not a slice without rows, which would keep the whole table in memory
        if row < first:
            table = table.slice(first - row)
        waiting.append(table)
        held += len(table)
        while held >= block_rows:
            whole = pa.concat_tables(waiting)
            yield block, whole.slice(0, block_rows)
            waiting, held, block = [whole.slice(block_rows)], held - block_rows, block + 1
    if held:
        yield block, pa.concat_tables(waiting)
