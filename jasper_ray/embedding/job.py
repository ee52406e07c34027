"""Embed a corpus on Ray Data; a job that is killed continues.

    files ─scan─▶ spans ─read, tokenise (processes)─▶ chunks ─embed, write (actors with the model)─▶ records ─▶ manifest

A chunk is some thousand rows of one file, with their distinct texts as tokens. The actor that embeds a chunk writes its
file atomically, and an existing file is a finished chunk. So the next call plans what is missing, and an actor repeats
at most the one chunk that it was working on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ray

from jasper_ray import __version__
from jasper_ray.config import ConfigError
from jasper_ray.embedding.chunks import Span, chunk_of, is_finished, plan_spans
from jasper_ray.embedding.folder import PROVENANCE, OutputFolder, Provenance, Resolved
from jasper_ray.embedding.inputs import (
    InputFile,
    ScannedFile,
    check_apart,
    check_files,
    check_removed,
    list_inputs,
)
from jasper_ray.embedding.manifest import EmbeddingManifest, EmbeddingProgress, file_counts, totals
from jasper_ray.embedding.output import ChunkRecord, Done
from jasper_ray.embedding.preflight import Examined, Plan, examine, plan_on_cluster, reserved
from jasper_ray.embedding.reading import scan_files
from jasper_ray.embedding.settings import EmbedSettings
from jasper_ray.embedding.store import open_store
from jasper_ray.embedding.stream import stream
from jasper_ray.encoders.precision import TOLERANCE
from jasper_ray.models.identity import revision_in, weights_identity
from jasper_ray.ray_runtime import plain_errors, ray_session

logger = logging.getLogger(__name__)

KEEP_EVERY_S = 30.0
"""Seconds between two writes of records."""
LEAST_ROWS_TO_JUDGE = 10_000
"""Rows after which too large a share of rejected ones stops a job before its end."""


Watch = Callable[[Done], None]


def embed_corpus(settings: EmbedSettings, output: str, watch: Watch | None = None) -> EmbeddingManifest:
    """Embed what is left of the corpus into the folder or URI `output`, and return the counts of everything.

    Without RAY_ADDRESS a Ray is started in this process, and ends with the call. `watch` is called after every chunk,
    when its file is written.

    Raises:
        ConfigError: something that the user must fix; vectors that were embedded are kept.
    """
    began = time.monotonic()
    check_apart(settings.inputs, output)
    files = list_inputs(settings)
    settings = with_absolute_model(settings)
    folder = OutputFolder(open_store(output))
    with folder.locked():
        weights = weights_of(settings, folder)
        provenance = folder.check(settings, weights)
        with ray_session(*reserved(settings.pool, settings.readers)):
            plan = plan_on_cluster(settings, revision_in(weights))
            return EmbeddingJob(plan, folder, weights, files, provenance, watch).run(began)


def with_absolute_model(settings: EmbedSettings) -> EmbedSettings:
    """Make a model's folder absolute, for processes with another working directory."""
    folder = Path(settings.model)
    return settings.model_copy(update={"model": str(folder.absolute())}) if folder.is_dir() else settings


def weights_of(settings: EmbedSettings, folder: OutputFolder) -> str:
    """Identify the model; a hub id without revision keeps the commit of the first call."""
    before = folder.provenance()
    unpinned = settings.revision is None and before and before.weights.startswith("commit:")
    if before and unpinned and before.model == settings.model:
        return before.weights
    return weights_identity(settings.model, settings.revision)


class EmbeddingJob:
    """One call inside a Ray session."""

    def __init__(
        self,
        plan: Plan,
        folder: OutputFolder,
        weights: str,
        files: Sequence[InputFile],
        provenance: Provenance | None,
        watch: Watch | None = None,
    ) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.folder = folder
        self.weights = weights
        self.files = files
        self.known = folder.known()
        self.begun: set[str] = set()
        self.provenance = provenance
        self.watch = watch

    def run(self, began: float) -> EmbeddingManifest:
        self.folder.sweep()
        records = self.folder.records()
        finished = set(records)
        self.begun = {chunk_of(name)[0] for name in finished}
        self.folder.check_unchanged(self.files, self.known, self.begun)
        scans = self.scans(finished)
        present, chunk_rows = {file.known.name for file in self.files}, self.settings.block_rows
        check_files(scans.values(), self.settings.max_rejected)
        gone = {name: each for name, each in scans.items() if name not in present}
        check_removed({name: is_finished(each, chunk_rows, finished) for name, each in gone.items()})
        spans = [
            span for file in self.files for span in plan_spans(file, scans[file.known.name].scan, chunk_rows, finished)
        ]
        rows = sum(each.scan.rows for each in scans.values())
        left = sum(span.rows for span in spans)
        logger.info("%s rows in %s files, %s left to embed", f"{rows:,}", f"{len(self.files):,}", f"{left:,}")
        progress = EmbeddingProgress(rows, records.values())
        if spans:
            examined = self.examine(spans)
            records |= self.embed(spans, examined, progress)
        if self.provenance is None:
            raise ConfigError("the inputs have no rows; change --input")
        return self.write_manifest(self.provenance.resolved, scans, records, progress, began)

    def scans(self, finished: set[str]) -> dict[str, ScannedFile]:
        """Scan new and unfinished files; return those of all files, present or removed."""
        rows = self.settings.block_rows
        now = {file.known.name: file.known for file in self.files}
        done = {
            name
            for name, each in self.known.items()
            if is_finished(each, rows, finished) and now.get(name, each.file) == each.file  # once empty, now filled
        }
        fresh = [file for file in self.files if file.known.name not in done]
        with plain_errors():
            found = scan_files(fresh, self.plan.columns, rows)
        scans = {name: each for name, each in self.known.items() if each.file.key in self.begun}
        for file, scan in zip(fresh, found, strict=True):
            if scan.fault and file.known.key in self.begun:
                raise ConfigError(f"{file.known.name} could be read before and cannot now: {scan.fault}; try again")
            scans[file.known.name] = ScannedFile(file=file.known, scan=scan)
        scans |= {name: each for name, each in self.known.items() if name in done}
        self.folder.keep_known(scans.values())
        return scans

    def examine(self, spans: Sequence[Span]) -> Examined:
        """Examine the model; the first call writes the results down."""
        logger.info("loading the model: prompt, heads, precision")
        # max_calls: the process ends with the task, and its memory on a GPU is free for the actors
        pool = self.plan.pool
        task = ray.remote(max_calls=1)(examine).options(num_cpus=pool.cpus, num_gpus=pool.gpus)
        before = self.provenance.resolved if self.provenance else None
        with plain_errors():
            examined: Examined = ray.get(task.remote(self.plan, spans, before))
        if self.provenance is None:
            self.folder.keep_ranges(examined.ranges)
            self.provenance = Provenance(
                model=self.settings.model,
                weights=self.weights,
                asked=self.settings.decisive(),
                resolved=examined.resolved,
            )
            self.folder.write(PROVENANCE, self.provenance)
        log_resolved(examined.resolved)
        return examined

    def embed(self, spans: Sequence[Span], examined: Examined, progress: EmbeddingProgress) -> dict[str, ChunkRecord]:
        """Embed all chunks of the spans and return their records, which are written from time to time."""
        records: dict[str, ChunkRecord] = {}
        fresh: list[ChunkRecord] = []
        kept = time.monotonic()
        try:
            for done in stream(spans, self.plan, examined, self.folder):
                records[done.record.name] = done.record
                fresh.append(done.record)
                progress.add(done)
                if self.watch:
                    self.watch(done)
                if progress.rows >= LEAST_ROWS_TO_JUDGE:
                    self.check_rejected(progress.rejected, progress.rows)
                if time.monotonic() - kept > KEEP_EVERY_S:
                    self.folder.keep_records(fresh)
                    fresh, kept = [], time.monotonic()
        finally:
            self.folder.keep_records(fresh)
        return records

    def check_rejected(self, rejected: int, rows: int) -> None:
        if rejected > self.settings.max_rejected * rows:
            raise ConfigError(
                f"{rejected:,} of {rows:,} rows were rejected, above the share of {self.settings.max_rejected:g}; "
                f"{self.folder.store.address}/rejected has the reasons; fix the texts, or raise --max-rejected and "
                "continue"
            )

    def write_manifest(
        self,
        resolved: Resolved,
        scans: Mapping[str, ScannedFile],
        records: Mapping[str, ChunkRecord],
        progress: EmbeddingProgress,
        began: float,
    ) -> EmbeddingManifest:
        """Check that every row is accounted for, and write the manifest."""
        sums = totals(records.values())
        rows = sum(each.scan.rows for each in scans.values())
        if sums["rows"] != rows or sums["embedded"] + sum(sums["rejected"].values()) != rows:
            raise ConfigError(
                f"{rows:,} rows were counted and {sums['rows']:,} were read: an input file has changed meanwhile; "
                "choose another --output"
            )
        if unseen := set(records) - self.folder.finished():
            raise ConfigError(
                f"{len(unseen):,} files that actors have written cannot be seen in {self.folder.store.address}; "
                "choose an --output that all nodes of the cluster share"
            )
        manifest = EmbeddingManifest(
            version=__version__,
            model=self.settings.model,
            weights=self.weights,
            prompt=resolved.prompt,
            columns=tuple({"name": c.name, "dim": c.dim, "dtype": c.dtype} for c in resolved.vectors),
            precision=resolved.precision,
            agreement=resolved.agreement,
            max_length=resolved.max_length,
            **sums,
            files=file_counts([(e.file.key, e.file.name, e.scan.fault) for e in scans.values()], records.values()),
            work=progress.throughput(time.monotonic() - began),
            blocks=tuple(records[name] for name in sorted(records)),
        )
        self.folder.finish(manifest)
        self.check_rejected(sum(manifest.rejected.values()), manifest.rows)
        return manifest


def log_resolved(resolved: Resolved) -> None:
    columns = ", ".join(column.name for column in resolved.vectors)
    cosine = ""
    if resolved.agreement is not None:
        cosine = f" (least cosine with float32 {resolved.agreement:.5f}, at least {TOLERANCE} required)"
    logger.info("%s in %s%s", columns, resolved.precision, cosine)
