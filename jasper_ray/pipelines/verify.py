"""Checking an embedded corpus: every file against the manifest, and a sample embedded anew."""

# Shape legend: N rows of a sample, W numbers of a stored vector, D size of a vector.

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
import torch
from ray.data import TaskPoolStrategy

from jasper_ray.assets.identity import weights_identity
from jasper_ray.config import ConfigError
from jasper_ray.embedding.block import Preparation
from jasper_ray.embedding.folder import Job, OutputFolder
from jasper_ray.embedding.inputs import list_inputs
from jasper_ray.embedding.manifest import Manifest, totals
from jasper_ray.embedding.output import REJECTED, VECTORS, Record, encode_block, vector_table
from jasper_ray.embedding.plan import Span, read_span
from jasper_ray.embedding.rows import Columns
from jasper_ray.embedding.settings import EmbedSettings, VectorColumn
from jasper_ray.embedding.store import Store, open_store
from jasper_ray.encoders.budget import TokenBudget
from jasper_ray.pipelines.embed import needs, with_pools
from jasper_ray.pipelines.examine import TOLERANCE, default_budget, default_prompt, open_encoder
from jasper_ray.pipelines.reading_blocks import MOST_INPUT_BLOCKS, scan_files
from jasper_ray.pipelines.session import plain_errors, ray_session, set_up_data
from jasper_ray.vectors import least_cosine

logger = logging.getLogger(__name__)

SAMPLE_BLOCKS, SAMPLE_ROWS = 4, 64
"""Blocks that are looked into, and rows of each that are embedded again."""
NORM_TOLERANCE = 2e-3
"""Of a vector's length from 1: float16 keeps three digits."""
COARSE_TOLERANCE = 0.98
"""Least cosine for int8 and binary: the smallest change of a number may move it to the next step, or turn a sign."""


def verify_corpus(settings: EmbedSettings, output: str) -> str:
    """Say in a sentence that all is as the manifest tells.

    Raises:
        ConfigError: something is not; or the folder is not finished, or asked about with other settings.
    """
    folder = OutputFolder(open_store(output))
    manifest = folder.manifest()
    weights = weights_identity(settings.model, settings.revision)
    job = folder.check(settings, weights)
    if manifest is None or job is None:
        raise ConfigError(f"{output} is not finished: it has no manifest.json; run the command without --verify first")
    with folder.locked(), ray_session(*needs(settings)):
        settings = with_pools(settings)
        faults = check_account(manifest, folder)
        logger.info("checking %d files", len(manifest.blocks))
        faults += check_files(manifest.blocks, job.resolved.vectors, folder.store)
        if faults:
            raise ConfigError(f"{len(faults)} faults in {output}, the first: {faults[0]}")
        least, rows = check_sample(settings, folder, job, manifest)
    return (
        f"{len(manifest.blocks):,} files with {manifest.embedded:,} vectors are as the manifest says; "
        f"{rows:,} rows embedded again have a cosine of at least {least:.5f} with what is stored"
    )


def check_account(manifest: Manifest, folder: OutputFolder) -> list[str]:
    """What does not add up in the manifest, or lies in the folder and not in it."""
    faults = []
    sums = totals(manifest.blocks)
    if (sums["rows"], sums["embedded"]) != (manifest.rows, manifest.embedded):
        faults.append(f"the blocks have {sums['rows']} rows, and the manifest {manifest.rows}")
    if manifest.rows != manifest.embedded + sum(manifest.rejected.values()):
        faults.append(f"{manifest.rows} rows are not {manifest.embedded} embedded and those rejected together")
    named = {record.name for record in manifest.blocks}
    for name in sorted(named ^ folder.finished()):
        faults.append(f"vectors/{name} is {'missing' if name in named else 'not in the manifest'}")
    return faults


def check_files(records: Sequence[Record], columns: Sequence[VectorColumn], store: Store) -> list[str]:
    """What is wrong with any file, found by tasks on all processors."""
    items = [{"record": record.model_dump_json()} for record in records]
    dataset = ray.data.from_items(items, override_num_blocks=min(len(items), MOST_INPUT_BLOCKS))
    set_up_data(dataset.context)
    tasks = TaskPoolStrategy(min(len(items), max(1, int(ray.cluster_resources().get("CPU", 1)))))
    work = {"columns": columns, "store": store}
    checked = dataset.map(check_row, fn_kwargs=work, num_cpus=0.5, compute=tasks)
    return [row["fault"] for row in checked.iter_rows() if row["fault"]]


def check_row(row: dict[str, Any], columns: Sequence[VectorColumn], store: Store) -> dict[str, Any]:
    record = Record.model_validate_json(row["record"])
    try:
        return {"fault": file_fault(record, columns, store)}
    except (pa.ArrowException, OSError, KeyError) as error:
        return {"fault": f"vectors/{record.name} cannot be read: {error}"}


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
    revision = job.weights.removeprefix("commit:") if job.weights.startswith("commit:") else None
    task = ray.remote(embed_again).options(num_cpus=settings.pool.cpus, num_gpus=settings.pool.gpus)
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


def embed_again(
    settings: EmbedSettings, revision: str | None, job: Job, spans: Sequence[Span], folder: OutputFolder
) -> tuple[float, int]:
    """Embed the first rows of a block of each span, and compare with what is stored."""
    assert settings.pool
    torch.set_num_threads(settings.pool.torch_threads)
    encoder = open_encoder(settings, revision, job.resolved.precision)
    prompt_name = settings.prompt or default_prompt(encoder)
    preparation = Preparation(encoder.tokenizing(prompt_name), settings.truncate, settings.id_column, settings.carry)
    columns = job.resolved.vectors
    dims = [column.dim for column in columns]
    ranges = folder.ranges({column.dim for column in columns if column.dtype == "int8"})
    budget = TokenBudget(settings.batch_tokens or default_budget())
    least, rows = 1.0, 0
    for span in spans:
        number, table = next(read_span(span, Columns(settings.text_column, settings.copied), settings.block_rows))
        name = f"{span.file.known.key}-{number:06d}.parquet"
        block = preparation.block(name, span.file.known.name, number * settings.block_rows, table.slice(0, SAMPLE_ROWS))
        found = encode_block(block, encoder, prompt_name, dims, budget)
        again = vector_table(block, found.heads, columns, ranges)
        data = folder.store.read(f"{VECTORS}/{name}")
        assert data is not None
        before = pq.read_table(pa.BufferReader(data)).slice(0, len(again))
        least = min(least, compare(name, before, again, columns, ranges))
        rows += len(again)
    return least, rows


def compare(
    name: str, before: pa.Table, again: pa.Table, columns: Sequence[VectorColumn], ranges: Mapping[int, np.ndarray]
) -> float:
    """The least cosine of rows in any column; raises `ConfigError` where it is too small, or ids differ."""
    key = again.column_names[0]
    if before[key].to_pylist() != again[key].to_pylist():
        raise ConfigError(f"vectors/{name} holds other rows than its input file does now; the file has changed")
    least = 1.0
    for column in columns:
        x_ND, y_ND = (restored(numbers(table, column), column, ranges) for table in (before, again))
        cosine = least_cosine(x_ND, y_ND)
        wanted = TOLERANCE if column.dtype in ("float32", "float16") else COARSE_TOLERANCE
        if not cosine >= wanted:
            raise ConfigError(
                f"a row of vectors/{name} embedded again has a cosine of {cosine:.5f} with its {column.name}, and "
                f"{wanted} was expected; the model, its libraries or the texts are not what they were"
            )
        least = min(least, cosine)
    return least


def restored(x_NW: np.ndarray, column: VectorColumn, ranges: Mapping[int, np.ndarray]) -> np.ndarray:
    """Stored numbers as a vector `[N, D]` again, as far as they tell."""
    if column.dtype == "binary":
        bits_ND = np.unpackbits((x_NW.astype(np.int16) + 128).astype(np.uint8), axis=1)
        return bits_ND.astype(np.float32) * 2 - 1
    if column.dtype == "int8":
        low_D, high_D = ranges[column.dim]
        return low_D + (x_NW.astype(np.float32) + 128.5) * (high_D - low_D) / 255
    return x_NW.astype(np.float32)
