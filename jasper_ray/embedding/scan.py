"""The first look at a file: how many rows it has, and where its blocks begin, so that any of them can be read alone."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from jasper_ray.config import ConfigError, Settings
from jasper_ray.embedding.inputs import InputFile
from jasper_ray.sources.rows import Fault, json_objects, records, require, text_lines
from jasper_ray.sources.tables import Columns, is_local, open_stream

CHUNK_BYTES = 4 << 20
KEYS_LOOKED_AT = 100
"""Lines of JSON of which one has to have each key that is asked for."""


class Scan(Settings):
    """What a file holds."""

    rows: int
    """Rows, good and bad."""
    offsets: tuple[int, ...] = ()
    """Bytes at which its blocks begin; empty where a file can only be read in its own way, or from its beginning."""
    types: dict[str, str] = Field(default_factory=dict)
    """Types of the columns that are copied."""
    fault: str = ""
    """Why none of it can be read."""


def scan(file: InputFile, columns: Columns, block_rows: int) -> Scan:
    """Count a file's rows. A file that cannot be read is no error here: the scan says why.

    Raises:
        OSError: a remote store that does not answer.
    """
    try:
        if file.format == "parquet":
            return scan_parquet(file, columns)
        if file.format == "csv":
            with open_stream(file) as stream:
                rows = sum(1 for _ in records(stream, "csv", [columns.text, *columns.copied]))
            return Scan(rows=rows, types=dict.fromkeys(columns.copied, "string"))
        return scan_lines(file, columns, block_rows)
    except (pa.ArrowException, OSError, EOFError, KeyError, ConfigError) as error:
        if isinstance(error, OSError) and not is_local(file):
            raise
        return Scan(rows=0, fault=str(error).splitlines()[0])


def scan_parquet(file: InputFile, columns: Columns) -> Scan:
    with file.filesystem.open_input_file(file.path) as stream:
        found = pq.ParquetFile(stream)
        require([columns.text, *columns.copied], found.schema_arrow.names)
        types = {name: str(found.schema_arrow.field(name).type) for name in columns.copied}
        return Scan(rows=found.metadata.num_rows, types=types)


def scan_lines(file: InputFile, columns: Columns, block_rows: int) -> Scan:
    if file.format == "text" and columns.copied:
        raise ConfigError(f"a text file has no column {columns.copied[0]!r}")
    if file.format == "jsonl":
        check_keys(file, columns)
    rows, offsets = 0, [0]
    position, ended = 0, True
    with open_stream(file) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            feeds = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n"))
            first = -rows % block_rows  # of these line feeds, those after which a block begins
            starts = feeds[(first - 1 if first else block_rows - 1) :: block_rows]
            offsets.extend(int(feed) + 1 + position for feed in starts)
            rows += len(feeds)
            position += len(chunk)
            ended = chunk.endswith(b"\n")
    rows += not ended
    blocks = -(-rows // block_rows)
    return Scan(
        rows=rows,
        offsets=() if file.compressed else tuple(offsets[:blocks]),
        types=dict.fromkeys(columns.copied, "string"),
    )


def check_keys(file: InputFile, columns: Columns) -> None:
    """Refuse a file of JSON whose first lines all lack a key."""
    with open_stream(file) as stream:
        objects = [found for _, found in islice(json_objects(text_lines(stream)), KEYS_LOOKED_AT)]
    keys = list(dict.fromkeys(key for found in objects if not isinstance(found, Fault) for key in found))
    if keys:
        require([columns.text, *columns.copied], keys)
