"""Checking an embedded corpus: every file against the manifest, and a sample embedded anew."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import ray

from jasper_ray.assets.identity import revision_in
from jasper_ray.config import ConfigError
from jasper_ray.embedding.again import embed_again, file_fault
from jasper_ray.embedding.folder import Job, OutputFolder
from jasper_ray.embedding.inputs import list_inputs
from jasper_ray.embedding.manifest import Manifest, totals
from jasper_ray.embedding.output import Record
from jasper_ray.embedding.plan import Span, block_of
from jasper_ray.embedding.rows import Columns
from jasper_ray.embedding.settings import EmbedSettings, VectorColumn
from jasper_ray.embedding.store import Store, open_store
from jasper_ray.pipelines.embed import weights_of, with_absolute_model
from jasper_ray.pipelines.embed_pool import needs, with_pools
from jasper_ray.pipelines.reading_blocks import over_all, scan_files
from jasper_ray.pipelines.session import plain_errors, ray_session

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
