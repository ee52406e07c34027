"""Verify an embedded corpus: every file against the manifest, and a sample of rows embedded again."""

# Shape legend: N rows of a sample, U their distinct texts, W numbers of a stored vector, D size of a vector.

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from jasper_ray.config import ConfigError
from jasper_ray.embedding.chunks import Block, Preparation, Span, block_name, block_of, read_span
from jasper_ray.embedding.folder import Job, OutputFolder
from jasper_ray.embedding.inputs import list_inputs
from jasper_ray.embedding.job import weights_of, with_absolute_model
from jasper_ray.embedding.manifest import Manifest, totals
from jasper_ray.embedding.model import budget_of, open_encoder, prompt_name_of
from jasper_ray.embedding.output import REJECTED, VECTORS, Record, encode_block
from jasper_ray.embedding.pools import needs, with_pools
from jasper_ray.embedding.reading import over_all, scan_files
from jasper_ray.embedding.settings import EmbedSettings, VectorColumn
from jasper_ray.embedding.store import Store, open_store
from jasper_ray.encoders.precision import TOLERANCE
from jasper_ray.models.identity import revision_in
from jasper_ray.ray_runtime import plain_errors, ray_session
from jasper_ray.sources.tables import TEXT, Columns
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


logger = logging.getLogger(__name__)

SAMPLE_BLOCKS = 4
"""Blocks that are looked into."""


def verify_corpus(settings: EmbedSettings, output: str) -> str:
    """Say in a sentence that all is as the manifest tells. Writes nothing.

    Raises:
        ConfigError: something is not; or the folder is not finished, or asked about with other settings.
    """
    settings = with_absolute_model(settings)
    folder = OutputFolder(open_store(output, write=False))
    manifest = folder.manifest()
    job = folder.check(settings, weights_of(settings, folder))
    if manifest is None or job is None:
        raise ConfigError(
            f"{folder.store.address} is not finished: it has no manifest.json; run the command without --verify first"
        )
    begun = {block_of(record.name)[0] for record in manifest.blocks}
    folder.check_unchanged(list_inputs(settings), folder.known(), begun)
    with ray_session(*needs(settings)):
        settings = with_pools(settings)
        faults = check_account(manifest, folder)
        logger.info("checking %d files", len(manifest.blocks))
        faults += check_files(manifest.blocks, job.resolved.vectors, folder.store)
        if faults:
            raise ConfigError(
                f"{len(faults)} faults in {folder.store.address}, the first: {faults[0]}; "
                "delete such a file (if it lies in rejected/, the one of its name in vectors/ too), and run the "
                "command without --verify to make it anew"
            )
        least, rows = check_sample(settings, folder, job, manifest)
    return (
        f"{len(manifest.blocks):,} files with {manifest.embedded:,} vectors are as the manifest says; "
        f"{rows:,} rows embedded again agree with what is stored (least cosine {least:.5f})"
    )


def check_account(manifest: Manifest, folder: OutputFolder) -> list[str]:
    """What does not add up in the manifest, or lies in the folder and not in it."""
    faults = []
    sums = totals(manifest.blocks)
    if (sums["rows"], sums["embedded"]) != (manifest.rows, manifest.embedded):
        faults.append(f"the blocks have {sums['rows']} rows, and the manifest {manifest.rows}")
    if manifest.rows != manifest.embedded + sum(manifest.rejected.values()):
        faults.append(f"{manifest.rows} rows are not {manifest.embedded} embedded and those rejected together")
    if later := folder.finished() - {record.name for record in manifest.blocks}:
        raise ConfigError(
            f"{folder.store.address} is not finished: {len(later)} files were written after the manifest; "
            "run the command without --verify first"
        )
    return faults


def check_files(records: Sequence[Record], columns: Sequence[VectorColumn], store: Store) -> list[str]:
    """What is wrong with any file."""
    items = [{"record": record.model_dump_json()} for record in records]
    return [row["fault"] for row in over_all(items, check_row, columns=columns, store=store) if row["fault"]]


def check_row(row: dict[str, Any], columns: Sequence[VectorColumn], store: Store) -> dict[str, Any]:
    record = Record.model_validate_json(row["record"])
    try:
        return {"fault": file_fault(record, columns, store)}
    except (pa.ArrowException, OSError, KeyError) as error:
        return {"fault": f"vectors/{record.name} cannot be read: {error}"}


def check_sample(settings: EmbedSettings, folder: OutputFolder, job: Job, manifest: Manifest) -> tuple[float, int]:
    """The least cosine of a sample of rows with what is stored, and how many rows it has.

    Raises:
        ConfigError: it is too small, or the rows are not those that were embedded.
    """
    spans = sample_spans(settings, manifest)
    if not spans:
        logger.warning("none of the input files is there now: nothing is embedded again")
        return 1.0, 0
    assert settings.pool
    revision = revision_in(job.weights)
    task = ray.remote(max_calls=1)(embed_again).options(num_cpus=settings.pool.cpus, num_gpus=settings.pool.gpus)
    with plain_errors():
        least, rows = ray.get(task.remote(settings, revision, job, spans, folder))
    return float(least), int(rows)


def sample_spans(settings: EmbedSettings, manifest: Manifest) -> list[Span]:
    """Some blocks from all over the input."""
    files = list_inputs(settings)
    known = {count.file for count in manifest.files if count.rows}
    there = [file for file in files if file.known.name in known]
    chosen = there[:: max(1, len(there) // SAMPLE_BLOCKS)][:SAMPLE_BLOCKS]
    columns = Columns(settings.text_column, settings.copied)
    block_rows = settings.block_rows
    scans = scan_files(chosen, columns, block_rows)
    blocks = [
        Span(file, (block,), block_rows, scan.offsets[block] if scan.offsets else 0)
        for file, scan in zip(chosen, scans, strict=True)
        for block in range(math.ceil(scan.rows / block_rows))
    ]
    return blocks[:: max(1, len(blocks) // SAMPLE_BLOCKS)][:SAMPLE_BLOCKS]
