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
from jasper_ray.embedding.chunks import Chunk, Span, chunk_of, read_chunks
from jasper_ray.embedding.folder import OutputFolder, Resolved
from jasper_ray.embedding.inputs import list_inputs
from jasper_ray.embedding.job import weights_of, with_absolute_model
from jasper_ray.embedding.manifest import EmbeddingManifest, totals
from jasper_ray.embedding.output import REJECTED, VECTORS, ChunkRecord, encode_chunk
from jasper_ray.embedding.preflight import Plan, plan_on_cluster, reserved
from jasper_ray.embedding.reading import over_all, scan_files
from jasper_ray.embedding.settings import EmbedSettings, VectorColumn
from jasper_ray.embedding.store import Store, open_store
from jasper_ray.encoders.precision import TOLERANCE
from jasper_ray.models.identity import revision_in
from jasper_ray.ray_runtime import plain_errors, ray_session
from jasper_ray.sources.tables import TEXT
from jasper_ray.vectors import least_cosine, quantise_int8

logger = logging.getLogger(__name__)

SAMPLE_CHUNKS = 4
"""Chunks whose rows are embedded again."""
SAMPLE_ROWS = 64
"""Rows of such a chunk that are embedded again."""
NORM_TOLERANCE = 2e-3
"""Largest deviation of a vector's length from 1: float16 keeps three digits."""
SURE = 0.1
"""Components below this share of a typical one are skipped when signs are compared."""


def verify_corpus(settings: EmbedSettings, output: str) -> str:
    """Verify an output folder, and report it in a sentence. Writes nothing.

    Raises:
        ConfigError: with the first fault; or the folder is not finished, or was made with other settings.
    """
    settings = with_absolute_model(settings)
    folder = OutputFolder(open_store(output, write=False))
    manifest = folder.manifest()
    weights = weights_of(settings, folder)
    provenance = folder.check(settings, weights)
    if manifest is None or provenance is None:
        raise ConfigError(
            f"{folder.store.address} is not finished: it has no manifest.json; run the command without --verify first"
        )
    begun = {chunk_of(record.name)[0] for record in manifest.blocks}
    folder.check_unchanged(list_inputs(settings), folder.known(), begun)
    with ray_session(*reserved(settings.pool, settings.readers)):
        plan = plan_on_cluster(settings, revision_in(weights))
        faults = check_counts(manifest, folder)
        logger.info("checking %d files", len(manifest.blocks))
        faults += file_faults(manifest.blocks, provenance.resolved.vectors, folder.store)
        if faults:
            raise ConfigError(
                f"{len(faults)} faults in {folder.store.address}, the first: {faults[0]}; "
                "delete that file (and for one in rejected/ its namesake in vectors/), and run the command without "
                "--verify to embed its rows again"
            )
        least, rows = check_sample(plan, folder, provenance.resolved, manifest)
    return (
        f"{len(manifest.blocks):,} files with {manifest.embedded:,} vectors are as the manifest says; "
        f"{rows:,} rows embedded again agree with what is stored (least cosine {least:.5f})"
    )


def check_counts(manifest: EmbeddingManifest, folder: OutputFolder) -> list[str]:
    """List the sums of the manifest that are wrong."""
    faults = []
    sums = totals(manifest.blocks)
    if (sums["rows"], sums["embedded"]) != (manifest.rows, manifest.embedded):
        faults.append(f"the chunks have {sums['rows']} rows, and the manifest {manifest.rows}")
    if manifest.rows != manifest.embedded + sum(manifest.rejected.values()):
        faults.append(f"{manifest.rows} rows are not {manifest.embedded} embedded and those rejected together")
    if later := folder.finished() - {record.name for record in manifest.blocks}:
        raise ConfigError(
            f"{folder.store.address} is not finished: {len(later)} files were written after the manifest; "
            "run the command without --verify first"
        )
    return faults


def file_faults(records: Sequence[ChunkRecord], columns: Sequence[VectorColumn], store: Store) -> list[str]:
    """Check the files of all chunks, and list what is wrong."""
    items = [{"record": record.model_dump_json()} for record in records]
    return [row["fault"] for row in over_all(items, check_row, columns=columns, store=store) if row["fault"]]


def check_row(row: dict[str, Any], columns: Sequence[VectorColumn], store: Store) -> dict[str, Any]:
    record = ChunkRecord.model_validate_json(row["record"])
    try:
        return {"fault": file_fault(record, columns, store)}
    except (pa.ArrowException, OSError, KeyError) as error:
        return {"fault": f"vectors/{record.name} cannot be read: {error}"}


def file_fault(record: ChunkRecord, columns: Sequence[VectorColumn], store: Store) -> str:
    """Check a chunk's files, and describe the first fault; empty if there is none."""
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
    values = table[column.name].combine_chunks()
    return np.asarray(values.flatten().to_numpy(zero_copy_only=False)).reshape(len(table), column.width)


def check_sample(
    plan: Plan, folder: OutputFolder, resolved: Resolved, manifest: EmbeddingManifest
) -> tuple[float, int]:
    """Embed a sample of rows again; return the least cosine with the stored ones, and the number of rows."""
    spans = sample_spans(plan, manifest)
    if not spans:
        logger.warning("no input file is left; skipping the re-embedding check")
        return 1.0, 0
    task = ray.remote(max_calls=1)(embed_again).options(num_cpus=plan.pool.cpus, num_gpus=plan.pool.gpus)
    with plain_errors():
        least, rows = ray.get(task.remote(plan, resolved, spans, folder))
    return float(least), int(rows)


def sample_spans(plan: Plan, manifest: EmbeddingManifest) -> list[Span]:
    known = {count.file for count in manifest.files if count.rows}
    present = [file for file in list_inputs(plan.settings) if file.known.name in known]
    chosen = present[:: max(1, len(present) // SAMPLE_CHUNKS)][:SAMPLE_CHUNKS]
    chunk_rows = plan.settings.block_rows
    scans = scan_files(chosen, plan.columns, chunk_rows)
    spans = [
        Span(file, (chunk,), chunk_rows, scan.offsets[chunk] if scan.offsets else 0)
        for file, scan in zip(chosen, scans, strict=True)
        for chunk in range(math.ceil(scan.rows / chunk_rows))
    ]
    return spans[:: max(1, len(spans) // SAMPLE_CHUNKS)][:SAMPLE_CHUNKS]


def embed_again(plan: Plan, resolved: Resolved, spans: Sequence[Span], folder: OutputFolder) -> tuple[float, int]:
    """Read a chunk of each span again, compare all of its ids, and embed some of its rows, evenly spread."""
    opened = plan.open(resolved.precision)
    columns = resolved.vectors
    ranges = folder.ranges({column.dim for column in columns if column.dtype == "int8"})
    least, rows = 1.0, 0
    for span in spans:
        chunk = next(read_chunks(span, plan.settings, opened.tokenizing))
        data = folder.store.read(f"{VECTORS}/{chunk.name}")
        assert data is not None, "checked before"
        table = pq.read_table(pa.BufferReader(data))
        if table[chunk.kept.column_names[0]].to_pylist() != chunk.kept.column(0).to_pylist():
            raise ConfigError(
                f"vectors/{chunk.name} holds other rows than its input file does now; the file has changed"
            )
        places_N = np.unique(np.linspace(0, max(0, len(table) - 1), min(len(table), SAMPLE_ROWS)).astype(np.int64))
        few = some_rows(chunk, places_N)
        heads = encode_chunk(few, opened, [column.dim for column in columns]).heads
        texts_N = few.kept[TEXT].to_numpy()
        again = {dim: vectors_UD[texts_N] for dim, vectors_UD in heads.items()}
        cosines = (compare_stored(chunk.name, table.take(places_N), column, again, ranges) for column in columns)
        least = min([least, *cosines])
        rows += len(places_N)
    return least, rows


def some_rows(chunk: Chunk, places_N: np.ndarray) -> Chunk:
    """Select the kept rows of a chunk at these places, with their texts."""
    kept = chunk.kept.take(pa.array(places_N, pa.int64()))
    used_U, texts_N = np.unique(kept[TEXT].to_numpy(), return_inverse=True)
    texts = kept.set_column(kept.column_names.index(TEXT), TEXT, pa.array(texts_N, pa.int32()))
    return chunk._replace(kept=texts, texts=chunk.texts.take(pa.array(used_U, pa.int64())))


def compare_stored(
    name: str, table: pa.Table, column: VectorColumn, again: Mapping[int, np.ndarray], ranges: Mapping[int, np.ndarray]
) -> float:
    """Compare stored rows with those embedded again, and return the least cosine; of binary ones compare the signs."""
    again_ND = again[column.dim]
    stored_ND = restored(numbers(table, column), column, ranges)
    if column.dtype == "int8":  # values outside of the ranges were clipped
        again_ND = restored(quantise_int8(again_ND, ranges[column.dim]), column, ranges)
    if column.dtype == "binary":  # a number next to zero may have changed its sign
        sure_ND = np.abs(again_ND) > SURE * np.sqrt(1 / column.dim)
        stored_ND, again_ND = stored_ND * sure_ND, np.sign(again_ND) * sure_ND
    cosine = least_cosine(stored_ND, again_ND) if again_ND.any() else 1.0
    if not cosine >= TOLERANCE:
        raise ConfigError(
            f"a row of vectors/{name} embedded again has a cosine of {cosine:.5f} with its {column.name}, and at least "
            f"{TOLERANCE} was expected; the model, its libraries or the texts have changed"
        )
    return cosine


def restored(x_NW: np.ndarray, column: VectorColumn, ranges: Mapping[int, np.ndarray]) -> np.ndarray:
    """Convert stored numbers back to vectors `[N, D]`."""
    if column.dtype == "binary":
        bits_ND = np.unpackbits((x_NW.astype(np.int16) + 128).astype(np.uint8), axis=1)
        return bits_ND.astype(np.float32) * 2 - 1
    if column.dtype == "int8":
        low_D, high_D = ranges[column.dim]
        return low_D + (x_NW.astype(np.float32) + 128.5) * (high_D - low_D) / 255
    return x_NW.astype(np.float32)
