"""Embedding a corpus on Ray Data, with nothing lost.

    files ─scan─▶ spans ─read, tokenise (processes)─▶ blocks ─embed, write (actors with the model)─▶ records ─▶ manifest

A row of the dataset is a block: some thousand rows of one file, with their distinct texts as tokens. The actor that
embeds a block writes its file, whole; a file that is there is a block that is done. So whatever is killed, the next
call plans what is missing, and an actor repeats at most the one block that it was working on.
"""

from __future__ import annotations

import logging
import math
import pickle
import time
import uuid
from collections.abc import Container, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import Dataset, ExecutionResources

from jasper_ray import __version__
from jasper_ray.assets.identity import weights_identity
from jasper_ray.config import ConfigError
from jasper_ray.embedding.block import unpack
from jasper_ray.embedding.folder import JOB, Job, OutputFolder, Resolved, ScannedFile
from jasper_ray.embedding.inputs import InputFile, list_inputs
from jasper_ray.embedding.manifest import Manifest, file_counts, totals
from jasper_ray.embedding.output import BlockWriter, Done, Record, read_record
from jasper_ray.embedding.plan import Span, block_name, plan_spans
from jasper_ray.embedding.progress import Progress
from jasper_ray.embedding.rows import Columns
from jasper_ray.embedding.settings import EmbedSettings
from jasper_ray.embedding.store import Store, open_store
from jasper_ray.encoders.budget import TokenBudget
from jasper_ray.pipelines.examine import TOLERANCE, Examined, default_budget, examine, open_encoder
from jasper_ray.pipelines.label import pool_strategy
from jasper_ray.pipelines.memory import Memory, Remembering
from jasper_ray.pipelines.reading_blocks import MOST_INPUT_BLOCKS, ReadBlocks, scan_files
from jasper_ray.pipelines.session import check_room, plain_errors, ray_session, set_up_data
from jasper_ray.pool import ActorPool, Pool

logger = logging.getLogger(__name__)

WAITING_BLOCKS = 8
"""Blocks that wait for each actor, at least; more where texts are short."""
GUESSED_TOKENS, ROW_BYTES = 128, 128
"""Of a row that waits."""
KEEP_EVERY_S = 30.0
"""Seconds between two times that records are written down."""
LEAST_ROWS_TO_JUDGE = 10_000
"""Rows after which too large a share of rejected ones stops a job before its end."""


def embed_corpus(settings: EmbedSettings, output: str) -> Manifest:
    """Embed what is not embedded yet of the corpus, into the folder or URI `output`, and return the account of all.

    Without RAY_ADDRESS a Ray is started in this process, and ends with the call.

    Raises:
        ConfigError: something that the user has to mend; nothing that was embedded is lost.
    """
    began = time.monotonic()
    files = list_inputs(settings)
    weights = weights_identity(settings.model, settings.revision)
    folder = OutputFolder(open_store(output))
    with folder.locked():
        job = folder.check(settings, weights)
        known = folder.known()
        folder.check_unchanged(files, known)
        with ray_session(*needs(settings)):
            settings = with_pools(settings)
            work = Embedding(settings, folder, weights, files, known, job)
            return work.finish(began)


def needs(settings: EmbedSettings) -> tuple[float, float]:
    """Processors and GPUs that are reserved at once, at least, as far as it was said."""
    pool, readers = settings.pool or ActorPool(cpus=0), settings.readers or Pool(cpus=0)
    return pool.min_size * pool.cpus + readers.min_size * readers.cpus, pool.min_size * pool.gpus


def with_pools(settings: EmbedSettings) -> EmbedSettings:
    """The settings with pools for the cluster at hand where they name none."""
    found = ray.cluster_resources()
    cpus, gpus = found.get("CPU", 1.0), found.get("GPU", 0.0)
    pools = {"pool": settings.pool or default_pool(cpus, gpus), "readers": settings.readers or default_readers(cpus)}
    settings = settings.model_copy(update=pools)
    check_room(*needs(settings))
    return settings


def default_pool(cpus: float, gpus: float) -> ActorPool:
    """A copy of the model on every GPU; without GPUs a copy for one or for four processors, as they are few or many.

    A fifth of the processors is left unreserved, for reading.
    """
    if gpus >= 1:
        return ActorPool(min_size=1, max_size=int(gpus), gpus=1, cpus=1)
    threads = 1 if cpus <= 4 else 4
    copies = max(1, int(cpus // threads))
    return ActorPool(min_size=copies, max_size=copies, cpus=0.8 * threads, threads=threads)


def default_readers(cpus: float) -> Pool:
    """Two processes beside a few processors; of many, up to a quarter reads and tokenises."""
    return Pool(max_size=2, cpus=0.2) if cpus < 16 else Pool(max_size=int(cpus // 4), cpus=0.8)


class Embedding:
    """One call inside a Ray session."""

    def __init__(
        self,
        settings: EmbedSettings,
        folder: OutputFolder,
        weights: str,
        files: Sequence[InputFile],
        known: Mapping[str, ScannedFile],
        job: Job | None,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.weights = weights
        self.files = files
        self.known = known
        self.job = job
        self.revision = weights.removeprefix("commit:") if weights.startswith("commit:") else None
        self.columns = Columns(settings.text_column, settings.copied)
        assert settings.pool
        self.pool = settings.pool

    def finish(self, began: float) -> Manifest:
        """Whatever is left to do."""
        self.folder.sweep()
        finished = self.folder.finished()
        scans = self.scans(finished)
        self.check_files(scans, finished)
        records = self.folder.records(finished)
        spans = [
            span
            for file in self.files
            for span in plan_spans(file, scans[file.known.name].scan, self.settings.block_rows, finished)
        ]
        rows = sum(each.scan.rows for each in scans.values())
        left = sum(span.rows for span in spans)
        logger.info("%s rows in %s files, %s left to embed", f"{rows:,}", f"{len(self.files):,}", f"{left:,}")
        progress = Progress(rows, rows - left)
        if spans:
            examined = self.examine(spans)
            records |= self.embed(spans, examined, progress)
        if self.job is None:
            raise ConfigError("the inputs have no rows; change --input")
        return self.account(scans, records, progress, began)

    def scans(self, finished: set[str]) -> dict[str, ScannedFile]:
        """What every file holds that is there now or was before; new and unfinished ones are looked at."""
        rows = self.settings.block_rows
        done = {name for name, each in self.known.items() if is_finished(each, rows, finished)}
        fresh = [file for file in self.files if file.known.name not in done]
        with plain_errors():
            found = scan_files(fresh, self.columns, self.settings.block_rows)
        now = {file.known.name for file in self.files}
        scans = {name: each for name, each in self.known.items() if name in now or not each.scan.fault}
        for file, each in zip(fresh, found, strict=True):
            scans[file.known.name] = ScannedFile(file=file.known, scan=each)
        self.folder.keep_known(scans.values())
        return scans

    def check_files(self, scans: Mapping[str, ScannedFile], finished: set[str]) -> None:
        """Refuse files that do not fit together, or of which too many cannot be read."""
        bad = [each for each in scans.values() if each.scan.fault]
        if len(bad) > self.settings.max_rejected * len(scans):
            raise ConfigError(
                f"{len(bad)} of {len(scans)} files cannot be read, such as {bad[0].file.name}: {bad[0].scan.fault}; "
                "mend or leave out these files, or raise --max-rejected"
            )
        good = [each for each in scans.values() if not each.scan.fault]
        for each in good:
            if each.scan.types != good[0].scan.types:
                raise ConfigError(
                    f"the copied columns of {each.file.name} are {each.scan.types}, and those of {good[0].file.name} "
                    f"are {good[0].scan.types}; give them one type, or leave them out of --carry and --id-column"
                )
        now = {file.known.name for file in self.files}
        gone = [each.file.name for each in scans.values() if each.file.name not in now]
        left = [name for name in gone if not is_finished(scans[name], self.settings.block_rows, finished)]
        if left:
            raise ConfigError(
                f"{left[0]} is not there any more, and not all of its rows are embedded; put it back, "
                "or choose another --output"
            )
        if gone:
            logger.info(
                "%d input files of before are not there now, such as %s; their vectors stay", len(gone), gone[0]
            )

    def examine(self, spans: Sequence[Span]) -> Examined:
        """What the model is, written down at the first call."""
        logger.info("looking at the model")
        task = ray.remote(examine).options(num_cpus=self.pool.cpus, num_gpus=self.pool.gpus)
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
                self.check_share(progress)
                if time.monotonic() - kept > KEEP_EVERY_S:
                    self.folder.keep_records(fresh)
                    fresh, kept = [], time.monotonic()
        finally:
            self.folder.keep_records(fresh)
        return records

    def check_share(self, progress: Progress, least: int = LEAST_ROWS_TO_JUDGE) -> None:
        """Stop a job most of whose rows would be set aside."""
        if progress.rows >= least and progress.rejected > self.settings.max_rejected * progress.rows:
            raise ConfigError(
                f"{progress.rejected:,} of {progress.rows:,} rows were set aside, more than the share of "
                f"{self.settings.max_rejected:g}; {self.folder.store.address}/rejected says why; mend the texts, "
                "or raise --max-rejected and continue"
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
            raise AssertionError(f"{rows} rows were planned, and the records tell of {sums}")
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
        self.check_share(progress, least=1)
        return manifest


def is_finished(scanned: ScannedFile, block_rows: int, finished: Container[str]) -> bool:
    """Whether all blocks of a file are; one that could not be read may have been mended."""
    blocks = range(math.ceil(scanned.scan.rows / block_rows))
    return not scanned.scan.fault and all(block_name(scanned.file.key, block) in finished for block in blocks)


def tell(resolved: Resolved) -> None:
    """Say what will be computed."""
    columns = ", ".join(column.name for column in resolved.vectors)
    agreement = (
        ""
        if resolved.agreement is None
        else f" (least cosine with float32 {resolved.agreement:.5f}, {TOLERANCE} asked)"
    )
    logger.info("%s in %s%s", columns, resolved.precision, agreement)


def stream(
    spans: Sequence[Span], settings: EmbedSettings, revision: str | None, examined: Examined, folder: OutputFolder
) -> Iterator[Done]:
    """Embed the spans; each block's record as soon as its file is written."""
    assert settings.pool
    assert settings.readers
    resolved = examined.resolved
    ranges = folder.ranges({column.dim for column in resolved.vectors if column.dtype == "int8"})
    items = [{"span": pickle.dumps(span)} for span in spans]
    dataset = ray.data.from_items(items, override_num_blocks=min(len(items), MOST_INPUT_BLOCKS))
    set_up_data(dataset.context)
    dataset.context.target_max_block_size = 1  # so that every row, which is a block of ours, is one of Ray's
    limits = ExecutionResources.for_limits(object_store_memory=waiting_bytes(settings, resolved.max_length))
    dataset.context.execution_options.resource_limits = limits
    memory = None
    if settings.unique == "job":
        memory = ray.remote(Memory).options(num_cpus=0).remote(int(settings.unique_gib * 2**30))
    blocks: Dataset = dataset.map_batches(
        ReadBlocks,
        fn_constructor_args=(settings, examined.tokenizing),
        batch_size=1,
        compute=pool_strategy(settings.readers),
        num_cpus=settings.readers.cpus,
    )
    done = blocks.map_batches(
        EmbedBlocks,
        fn_constructor_args=(settings, revision, examined.prompt_name, resolved, ranges, folder.store, memory),
        batch_size=1,
        batch_format="pyarrow",
        compute=pool_strategy(settings.pool),
        num_cpus=settings.pool.cpus,
        num_gpus=settings.pool.gpus or None,
    )
    with plain_errors():
        for batch in done.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from (Done.model_validate_json(text) for text in batch["done"].to_pylist())


def waiting_bytes(settings: EmbedSettings, max_length: int) -> int:
    """Room for the blocks that wait for actors. Readers are faster: without a bound they would read all of a corpus
    ahead, and on processors take from the actors what these need."""
    assert settings.pool
    tokens = min(max_length or GUESSED_TOKENS, GUESSED_TOKENS)
    return WAITING_BLOCKS * settings.pool.max_size * settings.block_rows * (ROW_BYTES + 4 * tokens)


class EmbedBlocks:
    """Blocks become files."""

    def __init__(
        self,
        settings: EmbedSettings,
        revision: str | None,
        prompt_name: str | None,
        resolved: Resolved,
        ranges: Mapping[int, np.ndarray],
        store: Store,
        memory: ray.actor.ActorHandle | None,
    ) -> None:
        assert settings.pool
        torch.set_num_threads(settings.pool.torch_threads)
        encoder = open_encoder(settings, revision, resolved.precision)
        budget = TokenBudget(settings.batch_tokens or default_budget())
        recall = Remembering(memory) if memory else None
        self.writer = BlockWriter(encoder, prompt_name, resolved.vectors, ranges, budget, store, recall)
        self.actor = uuid.uuid4().hex[:8]

    def __call__(self, batch: pa.Table) -> pa.Table:
        block = unpack(batch)
        done = self.done_before(block.name) or self.writer.embed(block, self.actor)
        return pa.table({"done": [done.model_dump_json()]})

    def done_before(self, name: str) -> Done | None:
        """What an actor wrote that died before it could say so."""
        if not self.writer.store.holds(f"vectors/{name}"):
            return None
        return Done(record=read_record(self.writer.store, name), actor=self.actor, seconds=0.0, repeated=True)
