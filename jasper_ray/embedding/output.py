"""The files of a chunk: vectors in the requested columns, and the record beside them.

vectors/<chunk>.parquet      id, copied columns, a fixed-size list for each column of vectors
rejected/<chunk>.parquet     file, row, id, reason, detail; only if rows were rejected
"""

# Shape legend: N rows of a chunk, U its distinct texts, D size of a vector, W numbers of a stored vector.

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jasper_ray.config import ConfigError, Settings
from jasper_ray.embedding.chunks import Chunk
from jasper_ray.embedding.settings import VectorColumn
from jasper_ray.embedding.store import Store
from jasper_ray.encoders.inference import OpenModel
from jasper_ray.encoders.token_budget import Encode
from jasper_ray.models.tokens import Ids
from jasper_ray.sources.tables import TEXT
from jasper_ray.vectors import quantise_binary, quantise_int8

VECTORS, REJECTED = "vectors", "rejected"
RECORD_KEY = b"jasper_ray.block"
"""Key of a chunk's record in the metadata of its file of vectors."""

Heads = Mapping[int, np.ndarray]


class ChunkRecord(Settings):
    """Counts of a chunk that is finished."""

    name: str
    """Name of its files."""
    rows: int
    """Rows read."""
    embedded: int
    rejected: dict[str, int]
    """Rejected rows by reason."""
    texts: int
    """Distinct texts that went through the model."""
    tokens: int
    """Tokens of those texts."""
    computed: int
    """Tokens computed, padding included."""
    sha256: str = ""
    """Hash of the file of vectors; not in the file itself."""
    rejected_sha256: str = ""
    """Hash of the file of rejected rows, if there is one."""


class Done(Settings):
    """A finished chunk, and the work it took."""

    record: ChunkRecord
    actor: str
    seconds: float
    """Seconds of the actor's work."""
    batch_tokens: int
    """Budget of the actor at the end of the chunk."""
    read_at: float | None = None
    """Time at which the chunk had been read, by its reader's `time.time()`; None if unknown."""


class Recall(Protocol):
    """A memory of texts that were embedded before."""

    def encode(self, encode: Encode, ids: Ids, dims: Sequence[int]) -> dict[int, np.ndarray]:
        """Return the vectors of all rows; only unknown ones are passed to `encode`."""
        ...


class Encoded(NamedTuple):
    """The vectors of a chunk's distinct texts, and the work they took."""

    heads: Heads
    """Vectors `[U, D]` by D."""
    texts: int = 0
    """Texts that went through the model."""
    tokens: int = 0
    """Tokens of those; 0 for an encoder that takes only texts."""
    computed: int = 0
    """Tokens computed, padding included."""


def encode_chunk(chunk: Chunk, opened: OpenModel, dims: Sequence[int], recall: Recall | None = None) -> Encoded:
    """Embed a chunk's distinct texts, except those that `recall` knows."""
    texts = chunk.texts["text"].combine_chunks()
    encoder, prompt = opened.encoder, opened.prompt_name
    if not len(texts):
        return Encoded({dim: np.empty((0, dim), np.float32) for dim in dims})
    if not pa.types.is_large_list(texts.type):
        return Encoded(encoder.encode_heads(texts.to_pylist(), prompt), texts=len(texts))
    flat, ends = texts.values.to_numpy(), texts.offsets.to_numpy()
    ids = [flat[start:end] for start, end in pairwise(ends)]
    counts: Counter[str] = Counter()

    def encode(rows: Ids) -> dict[int, np.ndarray]:
        heads, computed = opened.budget.encode(lambda batch: encoder.encode_tokens(batch, dims, prompt), rows)
        counts.update(texts=len(rows), tokens=sum(map(len, rows)), computed=computed)
        return heads

    heads = recall.encode(encode, ids, dims) if recall else encode(ids)
    return Encoded(heads, **counts)


def vector_table(
    chunk: Chunk, heads: Heads, columns: Sequence[VectorColumn], ranges: Mapping[int, np.ndarray]
) -> pa.Table:
    """Make the rows of a chunk's file: its kept columns, then the vectors."""
    places_N = chunk.kept[TEXT].to_numpy()
    table = chunk.kept.drop_columns([TEXT])
    for column in columns:
        stored_UW = stored(heads[column.dim], column, ranges)
        values = pa.array(stored_UW[places_N].reshape(-1))
        vectors = pa.FixedSizeListArray.from_arrays(values, type=column.arrow_type)
        table = table.append_column(pa.field(column.name, column.arrow_type), vectors)
    return table


def stored(x_ND: np.ndarray, column: VectorColumn, ranges: Mapping[int, np.ndarray]) -> np.ndarray:
    if column.dtype == "int8":
        return quantise_int8(x_ND, ranges[column.dim])
    if column.dtype == "binary":
        return quantise_binary(x_ND)
    return x_ND.astype(column.dtype)


class ChunkWriter:
    """Embeds chunks and writes them to a store."""

    def __init__(
        self,
        opened: OpenModel,
        columns: Sequence[VectorColumn],
        ranges: Mapping[int, np.ndarray],
        store: Store,
        recall: Recall | None = None,
    ) -> None:
        self.opened = opened
        self.columns = columns
        self.dims = list(dict.fromkeys(column.dim for column in columns))
        self.ranges = ranges
        self.store = store
        self.recall = recall

    def embed(self, chunk: Chunk, actor: str) -> Done:
        """Embed and write one chunk. The file of vectors is written last: if it exists, the chunk is finished."""
        began = time.perf_counter()
        encoded = encode_chunk(chunk, self.opened, self.dims, self.recall)
        if not all(np.isfinite(vectors_UD).all() for vectors_UD in encoded.heads.values()):
            raise ConfigError(f"vectors of {chunk.name} are not finite; compute in float32 or bfloat16: --precision")
        rejected = Counter(chunk.rejected["reason"].to_pylist())
        record = ChunkRecord(
            name=chunk.name,
            rows=chunk.rows,
            embedded=len(chunk.kept),
            rejected=dict(sorted(rejected.items())),
            texts=encoded.texts,
            tokens=encoded.tokens,
            computed=encoded.computed,
        )
        if rejected:
            data = parquet(chunk.rejected)
            self.store.write(f"{REJECTED}/{chunk.name}", data)
            record = record.model_copy(update={"rejected_sha256": hashlib.sha256(data).hexdigest()})
        table = vector_table(chunk, encoded.heads, self.columns, self.ranges)
        data = parquet(table.replace_schema_metadata({RECORD_KEY: record.model_dump_json()}))
        self.store.write(f"{VECTORS}/{chunk.name}", data)
        record = record.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()})
        seconds = time.perf_counter() - began
        return Done(record=record, actor=actor, seconds=seconds, batch_tokens=self.opened.budget.tokens)


def parquet(table: pa.Table) -> pa.Buffer:
    """Make the bytes of a Parquet file; vectors, which do not compress, are stored plain."""
    plain = {name for name in table.column_names if pa.types.is_fixed_size_list(table.schema.field(name).type)}
    rest = [name for name in table.column_names if name not in plain]
    sink = pa.BufferOutputStream()
    codecs = {**dict.fromkeys(rest, "zstd"), **{f"{name}.list.element": "none" for name in plain}}
    pq.write_table(table, sink, compression=codecs, use_dictionary=rest, write_statistics=rest)
    return sink.getvalue()


def record_in(data: pa.Buffer) -> ChunkRecord:
    """Read the record in a file of vectors, and add the file's hash; without one, Arrow or pydantic raises."""
    metadata = pq.read_schema(pa.BufferReader(data)).metadata
    record = ChunkRecord.model_validate_json(metadata[RECORD_KEY])
    return record.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()})
