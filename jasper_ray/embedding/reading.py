"""Read a corpus in processes of their own: count the rows of files and find their chunks, then read chunk by chunk.

Nothing here imports torch, so these processes start quickly.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import Dataset, TaskPoolStrategy

from jasper_ray.config import ConfigError
from jasper_ray.embedding.chunks import Span, read_chunks
from jasper_ray.embedding.inputs import InputFile, Scan
from jasper_ray.embedding.settings import EmbedSettings
from jasper_ray.ray_runtime import configure_data
from jasper_ray.sources.rows import Fault, json_objects, records, require, text_lines
from jasper_ray.sources.tables import Columns, is_local, open_stream

READ_AT = "read_at"
"""Column beside a packed chunk: the time at which it had been read."""
MOST_INPUT_BLOCKS = 1000
"""Most blocks of Ray Data; each is an object that the driver makes before anything runs."""
READ_BYTES = 4 << 20
KEYS_CHECKED = 100
"""Lines of JSON of which at least one must have each key."""


def scan(file: InputFile, columns: Columns, chunk_rows: int) -> Scan:
    """Count a file's rows and find where its chunks begin. The scan of an unreadable file has a fault.

    Raises:
        OSError: a remote store does not answer.
    """
    try:
        if file.format == "parquet":
            return scan_parquet(file, columns)
        if file.format == "csv":
            with open_stream(file) as stream:
                rows = sum(1 for _ in records(stream, "csv", [columns.text, *columns.copied]))
            return Scan(rows=rows, types=dict.fromkeys(columns.copied, "string"))
        return scan_lines(file, columns, chunk_rows)
    except (pa.ArrowException, OSError, EOFError, KeyError, ConfigError) as error:
        if isinstance(error, OSError) and not is_local(file):
            raise
        return Scan(rows=0, fault=str(error).splitlines()[0])


def scan_parquet(file: InputFile, columns: Columns) -> Scan:
    with file.filesystem.open_input_file(file.path) as stream:
        parquet = pq.ParquetFile(stream)
        require([columns.text, *columns.copied], parquet.schema_arrow.names)
        types = {name: str(parquet.schema_arrow.field(name).type) for name in columns.copied}
        return Scan(rows=parquet.metadata.num_rows, types=types)


def scan_lines(file: InputFile, columns: Columns, chunk_rows: int) -> Scan:
    if file.format == "text" and columns.copied:
        raise ConfigError(f"a text file has no column {columns.copied[0]!r}")
    if file.format == "jsonl":
        check_keys(file, columns)
    rows, offsets = 0, [0]
    position, ended = 0, True
    with open_stream(file) as stream:
        while part := stream.read(READ_BYTES):
            feeds = np.flatnonzero(np.frombuffer(part, np.uint8) == ord("\n"))
            first = -rows % chunk_rows  # of these line feeds, those after which a chunk begins
            starts = feeds[(first - 1 if first else chunk_rows - 1) :: chunk_rows]
            offsets.extend(int(feed) + 1 + position for feed in starts)
            rows += len(feeds)
            position += len(part)
            ended = part.endswith(b"\n")
    rows += not ended
    chunks = -(-rows // chunk_rows)
    return Scan(
        rows=rows,
        offsets=() if file.compressed else tuple(offsets[:chunks]),
        types=dict.fromkeys(columns.copied, "string"),
    )


def check_keys(file: InputFile, columns: Columns) -> None:
    """Refuse a file of JSON whose first lines all lack a key."""
    with open_stream(file) as stream:
        objects = [value for _, value in islice(json_objects(text_lines(stream)), KEYS_CHECKED)]
    keys = list(dict.fromkeys(key for value in objects if not isinstance(value, Fault) for key in value))
    if keys:
        require([columns.text, *columns.copied], keys)


def dataset_of(items: Sequence[dict[str, Any]]) -> Dataset:
    dataset = ray.data.from_items(list(items), override_num_blocks=min(len(items), MOST_INPUT_BLOCKS))
    configure_data(dataset.context)
    return dataset


def over_all(
    items: Sequence[dict[str, Any]], work: Callable[..., dict[str, Any]], **arguments: Any
) -> Iterator[dict[str, Any]]:
    """Apply `work` to each item on all CPUs; the results come in any order."""
    if items:
        tasks = TaskPoolStrategy(min(len(items), max(1, int(ray.cluster_resources().get("CPU", 1)))))
        yield from dataset_of(items).map(work, fn_kwargs=arguments, num_cpus=0.5, compute=tasks).iter_rows()


def scan_files(files: Sequence[InputFile], columns: Columns, chunk_rows: int) -> list[Scan]:
    """Scan files on all CPUs, and return the scans in the order of the files."""
    items = [{"place": place, "file": pickle.dumps(file)} for place, file in enumerate(files)]
    rows = over_all(items, scan_row, columns=columns, chunk_rows=chunk_rows)
    scans = {row["place"]: Scan.model_validate_json(row["scan"]) for row in rows}
    return [scans[place] for place in range(len(files))]


def scan_row(row: dict[str, Any], columns: Columns, chunk_rows: int) -> dict[str, Any]:
    return {"place": row["place"], "scan": scan(pickle.loads(row["file"]), columns, chunk_rows).model_dump_json()}


class ReadChunks:
    """Actor that reads, checks and tokenises the chunks of spans."""

    def __init__(self, settings: EmbedSettings, tokenizing: ray.ObjectRef[bytes]) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # more readers, not more threads
        self.settings = settings
        self.tokenizing = pickle.loads(ray.get(tokenizing))

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[pa.Table]:
        span: Span = pickle.loads(batch["span"][0])
        for chunk in read_chunks(span, self.settings, self.tokenizing):
            yield chunk.packed().append_column(READ_AT, [[time.time()]])
