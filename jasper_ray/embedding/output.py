"""From a block to its files: vectors in the asked-for columns, and the record that goes with them.

vectors/<block>.parquet      id, copied columns, a fixed-size list for each column of vectors
rejected/<block>.parquet     file, row, id, reason, detail; only where something was set aside
"""

# Shape legend: N rows of a block, U its distinct texts, D size of a vector.

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
from jasper_ray.embedding.chunks import Block
from jasper_ray.embedding.settings import VectorColumn
from jasper_ray.embedding.store import Store
from jasper_ray.encoders import TokenEncoder
from jasper_ray.encoders.token_budget import Encode, TokenBudget
from jasper_ray.models.tokenizing import Ids
from jasper_ray.sources.tables import TEXT
from jasper_ray.vectors import quantise_binary, quantise_int8

VECTORS, REJECTED = "vectors", "rejected"
RECORD_KEY = b"jasper_ray.block"
"""Under this name a file of vectors tells its own record: whoever continues need not have seen it being written."""

Heads = Mapping[int, np.ndarray]


class Record(Settings):
    """What became of a block."""

    name: str
    """Of its files."""
    rows: int
    """Read."""
    embedded: int
    rejected: dict[str, int]
    """By reason."""
    texts: int
    """Distinct texts that went through the model."""
    tokens: int
    """Of these texts."""
    computed: int
    """Tokens that the model computed: with padding."""
    sha256: str = ""
    """Of the file of vectors; not in the file itself."""
    rejected_sha256: str = ""
    """Of the file of rejected rows, where there is one."""


class Done(Settings):
    """A record, and what it took."""

    record: Record
    actor: str
    seconds: float
    """That the actor worked on it."""
    batch_tokens: int
    """The actor's budget when it was done."""
    read_at: float | None = None
    """When the block had been read, in seconds of its reader's `time.time()`; None where nobody says."""


class Recall(Protocol):
    """What knows texts that were embedded before."""

    def encode(self, encode: Encode, ids: Ids, dims: Sequence[int]) -> dict[int, np.ndarray]:
        """The vectors of all rows; `encode` is given those that are not known."""
        ...


class Encoded(NamedTuple):
    """The vectors of a block's distinct texts, and what they took."""

    heads: Heads
    """`[U, D]` by D."""
    texts: int = 0
    """That went through the model."""
    tokens: int = 0
    """Of these; 0 for an encoder that takes texts alone."""
    computed: int = 0
    """Tokens with padding."""


def encode_block(
    block: Block,
    encoder: TokenEncoder,
    prompt_name: str | None,
    dims: Sequence[int],
    budget: TokenBudget,
    recall: Recall | None = None,
) -> Encoded:
    """Embed a block's distinct texts, those left out that `recall` knows."""
    texts = block.texts["text"].combine_chunks()
    if not len(texts):
        return Encoded({dim: np.empty((0, dim), np.float32) for dim in dims})
    if not pa.types.is_large_list(texts.type):
        return Encoded(encode_texts(texts.to_pylist(), encoder, prompt_name, dims), texts=len(texts))
    flat, ends = texts.values.to_numpy(), texts.offsets.to_numpy()
    ids = [flat[start:end] for start, end in pairwise(ends)]
    counts: Counter[str] = Counter()

    def encode(rows: Ids) -> dict[int, np.ndarray]:
        heads, computed = budget.encode(lambda batch: encoder.encode_tokens(batch, dims, prompt_name), rows)
        counts.update(texts=len(rows), tokens=sum(map(len, rows)), computed=computed)
        return heads

    heads = recall.encode(encode, ids, dims) if recall else encode(ids)
    return Encoded(heads, **counts)


def encode_texts(texts: list[str], encoder: TokenEncoder, prompt_name: str | None, dims: Sequence[int]) -> Heads:
    order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
    heads = encoder.encode_heads([texts[place] for place in order], prompt_name)
    back = np.argsort(order)
    return {dim: heads[dim][back] for dim in dims}


def vector_table(
    block: Block, heads: Heads, columns: Sequence[VectorColumn], ranges: Mapping[int, np.ndarray]
) -> pa.Table:
    """The rows of a block's file: its kept columns, then the vectors."""
    places_N = block.kept[TEXT].to_numpy()
    table = block.kept.drop_columns([TEXT])
    for column in columns:
        stored_UW = stored(heads[column.dim], column, ranges)
        values = pa.array(stored_UW[places_N].reshape(-1))
        vectors = pa.FixedSizeListArray.from_arrays(values, type=column.arrow_type)
        table = table.append_column(pa.field(column.name, column.arrow_type), vectors)
    return table


def stored(x_ND: np.ndarray, column: VectorColumn, ranges: Mapping[int, np.ndarray]) -> np.ndarray:
    """Vectors as a column keeps them."""
    if column.dtype == "int8":
        return quantise_int8(x_ND, ranges[column.dim])
    if column.dtype == "binary":
        return quantise_binary(x_ND)
    return x_ND.astype(column.dtype)


class BlockWriter:
    """Embeds blocks and writes them to a store."""

    def __init__(
        self,
        encoder: TokenEncoder,
        prompt_name: str | None,
        columns: Sequence[VectorColumn],
        ranges: Mapping[int, np.ndarray],
        budget: TokenBudget,
        store: Store,
        recall: Recall | None = None,
    ) -> None:
        self.encoder = encoder
        self.prompt_name = prompt_name
        self.columns = columns
        self.dims = list(dict.fromkeys(column.dim for column in columns))
        self.ranges = ranges
        self.budget = budget
        self.store = store
        self.recall = recall

    def embed(self, block: Block, actor: str) -> Done:
        """Embed and write one block; the file of vectors comes last: where it is, the block is finished."""
        began = time.perf_counter()
        found = encode_block(block, self.encoder, self.prompt_name, self.dims, self.budget, self.recall)
        if not all(np.isfinite(vectors_UD).all() for vectors_UD in found.heads.values()):
            raise ConfigError(f"vectors of {block.name} are not finite; compute in float32 or bfloat16: --precision")
        rejected = Counter(block.rejected["reason"].to_pylist())
        record = Record(
            name=block.name,
            rows=block.rows,
            embedded=len(block.kept),
            rejected=dict(sorted(rejected.items())),
            texts=found.texts,
            tokens=found.tokens,
            computed=found.computed,
        )
        if rejected:
            data = parquet(block.rejected)
            self.store.write(f"{REJECTED}/{block.name}", data)
            record = record.model_copy(update={"rejected_sha256": hashlib.sha256(data).hexdigest()})
        table = vector_table(block, found.heads, self.columns, self.ranges)
        data = parquet(table.replace_schema_metadata({RECORD_KEY: record.model_dump_json()}))
        self.store.write(f"{VECTORS}/{block.name}", data)
        record = record.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()})
        seconds = time.perf_counter() - began
        return Done(record=record, actor=actor, seconds=seconds, batch_tokens=self.budget.tokens)


def parquet(table: pa.Table) -> pa.Buffer:
    """The bytes of a Parquet file; vectors, which neither compress nor repeat, are kept plain."""
    plain = {name for name in table.column_names if pa.types.is_fixed_size_list(table.schema.field(name).type)}
    rest = [name for name in table.column_names if name not in plain]
    sink = pa.BufferOutputStream()
    codecs = {**dict.fromkeys(rest, "zstd"), **{f"{name}.list.element": "none" for name in plain}}
    pq.write_table(table, sink, compression=codecs, use_dictionary=rest, write_statistics=rest)
    return sink.getvalue()


def record_in(data: pa.Buffer) -> Record:
    """The record that a file of vectors tells, with the file's hash; Arrow's or pydantic's errors where it has none."""
    metadata = pq.read_schema(pa.BufferReader(data)).metadata
    record = Record.model_validate_json(metadata[RECORD_KEY])
    return record.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()})
