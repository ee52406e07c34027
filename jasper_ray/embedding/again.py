"""What is stored, looked at again: a file's bytes, counts and lengths, and some rows embedded anew."""

# Shape legend: N rows of a sample, U their distinct texts, W numbers of a stored vector, D size of a vector.

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jasper_ray.config import ConfigError
from jasper_ray.embedding.block import Block, Preparation
from jasper_ray.embedding.folder import Job, OutputFolder
from jasper_ray.embedding.model import budget_of, open_encoder, prompt_name_of
from jasper_ray.embedding.output import REJECTED, VECTORS, Record, encode_block
from jasper_ray.embedding.plan import Span, block_name, read_span
from jasper_ray.embedding.rows import TEXT, Columns
from jasper_ray.embedding.settings import EmbedSettings, VectorColumn
from jasper_ray.embedding.store import Store
from jasper_ray.encoders.precision import TOLERANCE
from jasper_ray.vectors import least_cosine, quantise_int8

SAMPLE_ROWS = 64
"""Rows of a block that are embedded again."""
NORM_TOLERANCE = 2e-3
"""Of a vector's length from 1: float16 keeps three digits."""
SURE = 0.1
"""Of a typical number of a vector: below this a sign is not compared."""


def file_fault(record: Record, columns: Sequence[VectorColumn], store: Store) -> str:
    """What is wrong with a block's files, in words; empty when nothing is."""
    data = store.read(f"{VECTORS}/{record.name}")
    if data is None:
        return f"vectors/{record.name} is missing"
    if hashlib.sha256(data).hexdigest() != record.sha256:
        return f"vectors/{record.name} has other bytes than were written"
    if record.rejected:
        rejected = store.read(f"{REJECTED}/{record.name}")
        if rejected is None or hashlib.sha256(rejected).hexdigest() != record.rejected_sha256:
            return f"rejected/{record.name} is missing, or has other bytes than were written"
    table = pq.read_table(pa.BufferReader(data))
    if len(table) != record.embedded:
        return f"vectors/{record.name} has {len(table)} rows, and the manifest says {record.embedded}"
    for column in columns:
        if column.dtype in ("float32", "float16"):
            norms_N = np.linalg.norm(numbers(table, column).astype(np.float32), axis=1)
            if len(norms_N) and not np.abs(norms_N - 1).max() < NORM_TOLERANCE:
                return f"vectors/{record.name} has vectors in {column.name} whose length is not 1"
    return ""


def numbers(table: pa.Table, column: VectorColumn) -> np.ndarray:
    """A stored column, `[N, W]`."""
    values = table[column.name].combine_chunks()
    return np.asarray(values.flatten().to_numpy(zero_copy_only=False)).reshape(len(table), column.width)


def embed_again(
    settings: EmbedSettings, revision: str | None, job: Job, spans: Sequence[Span], folder: OutputFolder
) -> tuple[float, int]:
    """Read a block of each span again, compare all of its ids, and embed some of its rows, evenly spread."""
    encoder = open_encoder(settings, revision, job.resolved.precision)
    prompt_name = prompt_name_of(settings, encoder)
    preparation = Preparation(encoder.tokenizing(prompt_name), settings.truncate, settings.id_column, settings.carry)
    columns = job.resolved.vectors
    dims = [column.dim for column in columns]
    ranges = folder.ranges({column.dim for column in columns if column.dtype == "int8"})
    least, rows = 1.0, 0
    for span in spans:
        number, table = next(read_span(span, Columns(settings.text_column, settings.copied), settings.block_rows))
        name = block_name(span.file.known.key, number)
        block = preparation.block(name, span.file.known.name, number * settings.block_rows, table)
        stored = read_vectors(folder.store, name)
        if stored[block.kept.column_names[0]].to_pylist() != block.kept.column(0).to_pylist():
            raise ConfigError(f"vectors/{name} holds other rows than its input file does now; the file has changed")
        places_N = np.unique(np.linspace(0, max(0, len(stored) - 1), min(len(stored), SAMPLE_ROWS)).astype(np.int64))
        few = some_rows(block, places_N)
        heads = encode_block(few, encoder, prompt_name, dims, budget_of(settings)).heads
        texts_N = few.kept[TEXT].to_numpy()
        again = {dim: vectors_UD[texts_N] for dim, vectors_UD in heads.items()}
        least = min([least, *(agreement(name, stored.take(places_N), column, again, ranges) for column in columns)])
        rows += len(places_N)
    return least, rows


def read_vectors(store: Store, name: str) -> pa.Table:
    data = store.read(f"{VECTORS}/{name}")
    assert data is not None, "checked before"
    return pq.read_table(pa.BufferReader(data))


def some_rows(block: Block, places_N: np.ndarray) -> Block:
    """The kept rows of a block at these places, with the texts that they have."""
    kept = block.kept.take(pa.array(places_N, pa.int64()))
    used_U, texts_N = np.unique(kept[TEXT].to_numpy(), return_inverse=True)
    texts = kept.set_column(kept.column_names.index(TEXT), TEXT, pa.array(texts_N, pa.int32()))
    return block._replace(kept=texts, texts=block.texts.take(pa.array(used_U, pa.int64())))


def agreement(
    name: str, stored: pa.Table, column: VectorColumn, again: Mapping[int, np.ndarray], ranges: Mapping[int, np.ndarray]
) -> float:
    """The least cosine of stored rows with what was computed again; for binary, with what its signs tell of that.

    Raises:
        ConfigError: it is too small.
    """
    again_ND = again[column.dim]
    stored_ND = restored(numbers(stored, column), column, ranges)
    if column.dtype == "int8":  # what lies outside of the ranges was cut off
        again_ND = restored(quantise_int8(again_ND, ranges[column.dim]), column, ranges)
    if column.dtype == "binary":  # a number next to zero may have turned its sign
        sure_ND = np.abs(again_ND) > SURE * np.sqrt(1 / column.dim)
        stored_ND, again_ND = stored_ND * sure_ND, np.sign(again_ND) * sure_ND
    cosine = least_cosine(stored_ND, again_ND) if again_ND.any() else 1.0
    if not cosine >= TOLERANCE:
        raise ConfigError(
            f"a row of vectors/{name} embedded again has a cosine of {cosine:.5f} with its {column.name}, and "
            f"{TOLERANCE} was expected; the model, its libraries or the texts are not what they were"
        )
    return cosine


def restored(x_NW: np.ndarray, column: VectorColumn, ranges: Mapping[int, np.ndarray]) -> np.ndarray:
    """Stored numbers as a vector `[N, D]` again, as far as they tell."""
    if column.dtype == "binary":
        bits_ND = np.unpackbits((x_NW.astype(np.int16) + 128).astype(np.uint8), axis=1)
        return bits_ND.astype(np.float32) * 2 - 1
    if column.dtype == "int8":
        low_D, high_D = ranges[column.dim]
        return low_D + (x_NW.astype(np.float32) + 128.5) * (high_D - low_D) / 255
    return x_NW.astype(np.float32)
