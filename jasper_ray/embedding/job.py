"""Embedding a corpus on Ray Data, with nothing lost.

    files ─scan─▶ spans ─read, tokenise (processes)─▶ blocks ─embed, write (actors with the model)─▶ records ─▶ manifest

A row of the dataset is a block: some thousand rows of one file, with their distinct texts as tokens. The actor that
embeds a block writes its file, whole; a file that is there is a block that is done. So whatever is killed, the next
call plans what is missing, and an actor repeats at most the one block that it was working on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ray

from jasper_ray import __version__
from jasper_ray.config import ConfigError
from jasper_ray.embedding.chunks import Span, block_of, plan_spans
from jasper_ray.embedding.files import ScannedFile, check_files, is_finished
from jasper_ray.embedding.folder import JOB, Job, OutputFolder, Resolved
from jasper_ray.embedding.inputs import InputFile, check_apart, list_inputs
from jasper_ray.embedding.manifest import Manifest, file_counts, totals
from jasper_ray.embedding.output import Done, Record
from jasper_ray.embedding.pools import needs, with_pools
from jasper_ray.embedding.preflight import Examined, examine
from jasper_ray.embedding.progress import Progress
from jasper_ray.embedding.reading import scan_files
from jasper_ray.embedding.settings import EmbedSettings
from jasper_ray.embedding.store import open_store
from jasper_ray.embedding.stream import stream
from jasper_ray.encoders.precision import TOLERANCE
from jasper_ray.models.identity import revision_in, weights_identity
from jasper_ray.ray_runtime import plain_errors, ray_session
from jasper_ray.sources.tables import Columns

logger = logging.getLogger(__name__)

KEEP_EVERY_S = 30.0
"""Seconds between two times that records are written down."""
LEAST_ROWS_TO_JUDGE = 10_000
"""Rows after which too large a share of rejected ones stops a job before its end."""


Watch = Callable[[Done], None]


def embed_corpus(settings: EmbedSettings, output: str, watch: Watch | None = None) -> Manifest:
    """Embed what is not embedded yet of the corpus, into the folder or URI `output`, and return the account of all.

    Without RAY_ADDRESS a Ray is started in this process, and ends with the call. `watch` is told of every block after
    its file is written.

    Raises:
        ConfigError: something that the user has to mend; nothing that was embedded is lost.
    """
    began = time.monotonic()
    check_apart(settings.inputs, output)
    files = list_inputs(settings)
    settings = with_absolute_model(settings)
    folder = OutputFolder(open_store(output))
    with folder.locked():
        weights = weights_of(settings, folder)
        job = folder.check(settings, weights)
        with ray_session(*needs(settings)):
            return Embedding(with_pools(settings), folder, weights, files, job, watch).finish(began)


def with_absolute_model(settings: EmbedSettings) -> EmbedSettings:
    """A folder named so that processes with another working directory find it too."""
    folder = Path(settings.model)
    return settings.model_copy(update={"model": str(folder.absolute())}) if folder.is_dir() else settings


def weights_of(settings: EmbedSettings, folder: OutputFolder) -> str:
    """What identifies the model: for a hub id without revision the commit that the first call found."""
    job = folder.job()
    if job and job.model == settings.model and settings.revision is None and job.weights.startswith("commit:"):
        return job.weights
    return weights_identity(settings.model, settings.revision)


class Embedding:
    """One call inside a Ray session."""

    def __init__(
        self,
        settings: EmbedSettings,
        folder: OutputFolder,
        weights: str,
        files: Sequence[InputFile],
        job: Job | None,
        watch: Watch | None = None,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.weights = weights
        self.files = files
        self.known = folder.known()
        self.begun: set[str] = set()
        self.job = job
        self.watch = watch
        self.revision = revision_in(weights)
        self.columns = Columns(settings.text_column, settings.copied)
        assert settings.pool
        self.pool = settings.pool

    def finish(self, began: float) -> Manifest:
        """Whatever is left to do."""
        self.folder.sweep()
        records = self.folder.records()
        finished = set(records)
        self.begun = {block_of(name)[0] for name in finished}
        self.folder.check_unchanged(self.files, self.known, self.begun)
        scans = self.scans(finished)
        check_files(scans.values(), {file.known.name for file in self.files}, self.settings, finished)
        spans = [
            span
            for file in self.files
            for span in plan_spans(file, scans[file.known.name].scan, self.settings.block_rows, finished)
        ]
        rows = sum(each.scan.rows for each in scans.values())
        left = sum(span.rows for span in spans)
        logger.info("%s rows in %s files, %s left to embed", f"{rows:,}", f"{len(self.files):,}", f"{left:,}")
        progress = Progress(rows, records.values())
        if spans:
            examined = self.examine(spans)
            records |= self.embed(spans, examined, progress)
        if self.job is None:
            raise ConfigError("the inputs have no rows; change --input")
        return self.account(scans, records, progress, began)

    def scans(self, finished: set[str]) -> dict[str, ScannedFile]:
        """What every file holds that is there now or was before; new and unfinished ones are looked at."""
        rows = self.settings.block_rows
        now = {file.known.name: file.known for file in self.files}
        done = {
            name
            for name, each in self.known.items()
            if is_finished(each, rows, finished) and now.get(name, each.file) == each.file  # once empty, now filled
        }
        fresh = [file for file in self.files if file.known.name not in done]
        with plain_errors():
            found = scan_files(fresh, self.columns, self.settings.block_rows)
        scans = {name: each for name, each in self.known.items() if each.file.key in self.begun}
        for file, each in zip(fresh, found, strict=True):
            if each.fault and file.known.key in self.begun:
                raise ConfigError(f"{file.known.name} could be read before and cannot now: {each.fault}; try again")
            scans[file.known.name] = ScannedFile(file=file.known, scan=each)
        scans |= {name: each for name, each in self.known.items() if name in done}
        self.folder.keep_known(scans.values())
        return scans

    def examine(self, spans: Sequence[Span]) -> Examined:
        """What the model is, written down at the first call."""
        logger.info("looking at the model")
        # max_calls: the process ends with the task, and its memory on a GPU is free for the actors
        task = ray.remote(max_calls=1)(examine).options(num_cpus=self.pool.cpus, num_gpus=self.pool.gpus)
        before = self.job.resolved if self.job else None
        with plain_errors():
            examined: Examined = ray.get(task.remote(self.settings, self.revision, spans, before))
        if self.job is None:
            self.folder.keep_ranges(examined.ranges)
            self.job = Job(
                model=self.settings.model,
                weights=self.weights,
                asked=self.settings.decisive(),
                resolved=examined.resolved,
            )
            self.folder.write(JOB, self.job)
        tell(examined.resolved)
        return examined

    def embed(self, spans: Sequence[Span], examined: Examined, progress: Progress) -> dict[str, Record]:
        """The records of all blocks of the spans, written down from time to time."""
        records: dict[str, Record] = {}
        fresh: list[Record] = []
        kept = time.monotonic()
        try:
            for done in stream(spans, self.settings, self.revision, examined, self.folder):
                records[done.record.name] = done.record
                fresh.append(done.record)
                progress.add(done)
                if self.watch:
                    self.watch(done)
                if progress.rows >= LEAST_ROWS_TO_JUDGE:
                    self.check_share(progress.rejected, progress.rows)
                if time.monotonic() - kept > KEEP_EVERY_S:
                    self.folder.keep_records(fresh)
                    fresh, kept = [], time.monotonic()
        finally:
            self.folder.keep_records(fresh)
        return records

    def check_share(self, rejected: int, rows: int) -> None:
        """Stop a job of which too many rows are set aside."""
        if rejected > self.settings.max_rejected * rows:
            raise ConfigError(
                f"{rejected:,} of {rows:,} rows were set aside, more than the share of {self.settings.max_rejected:g}; "
                f"{self.folder.store.address}/rejected says why; mend the texts, or raise --max-rejected and continue"
            )

    def account(
        self, scans: Mapping[str, ScannedFile], records: Mapping[str, Record], progress: Progress, began: float
    ) -> Manifest:
        """Check that every row is accounted for, and write the manifest."""
        assert self.job
        resolved = self.job.resolved
        sums = totals(records.values())
        rows = sum(each.scan.rows for each in scans.values())
        if sums["rows"] != rows or sums["embedded"] + sum(sums["rejected"].values()) != rows:
            raise ConfigError(
                f"{rows:,} rows were found, and {sums['rows']:,} were read: an input file has changed meanwhile; "
                "choose another --output"
            )
        if unseen := set(records) - self.folder.finished():
            raise ConfigError(
                f"{len(unseen):,} files that actors have written cannot be seen in {self.folder.store.address}; "
                "choose an --output that all nodes of the cluster share"
            )
        manifest = Manifest(
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
            work=progress.work(time.monotonic() - began),
            blocks=tuple(records[name] for name in sorted(records)),
        )
        self.folder.finish(manifest)
        self.check_share(sum(manifest.rejected.values()), manifest.rows)
        return manifest


def tell(resolved: Resolved) -> None:
    """Say what will be computed."""
    columns = ", ".join(column.name for column in resolved.vectors)
    agreement = (
        ""
        if resolved.agreement is None
        else f" (least cosine with float32 {resolved.agreement:.5f}, {TOLERANCE} asked)"
    )
    logger.info("%s in %s%s", columns, resolved.precision, agreement)
