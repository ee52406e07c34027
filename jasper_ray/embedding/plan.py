"""Which blocks there are and who reads which: a block is some rows of one file, a span some blocks read in turn."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass

import pyarrow as pa

from jasper_ray.embedding.inputs import InputFile
from jasper_ray.embedding.rows import Columns, read_rows
from jasper_ray.embedding.scan import Scan

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
