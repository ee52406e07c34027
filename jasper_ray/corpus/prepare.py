"""Prepare data once: from source files to shards of rows in training order, on Ray Data.

    files ─scan─▶ batches ─count──▶ bounds of limits and weights
                  batches ─choose─▶ rows ─sort by hash─▶ equal shards ─▶ train/, heldout/
                                      └─ unusable pairs, without their images ─▶ rejected.jsonl

A row is kept, held out or rejected by its hash and its content alone, not by the cluster. So every pass over the
sources sees the same rows, and nothing is stored in between.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from jasper_ray.atomic import atomic_file, write_text
from jasper_ray.config import ConfigError, Settings, fingerprint, setting_differences
from jasper_ray.corpus.kinds import DataKind, DataSettings, Plan, SourceTask
from jasper_ray.corpus.sharding import check_visible, write_shards
from jasper_ray.corpus.shards import (
    MANIFEST,
    REJECTED,
    CorpusManifest,
    Manifest,
    PairManifest,
    PairSourceCount,
    SourceCount,
    load_manifest,
)
from jasper_ray.ray_runtime import plain_errors
from jasper_ray.sources.hashing import HASH_END, limit_bound
from jasper_ray.sources.settings import PairSource, Source

logger = logging.getLogger(__name__)

AnySources = Sequence[Source | PairSource]

MERGE_AT = 1 << 20
"""Hashes gathered before they are merged: 8 MB of them."""


def prepare(kind: DataKind[DataSettings, Manifest], settings: DataSettings, folder: str | Path, seed: int) -> Manifest:
    """Write the shards of `settings` below `folder` and return their manifest; return at once if they are there.

    `folder` is a local or mounted path that every node of the cluster sees. Needs a running Ray (`ray.init`). Which
    rows come out, and their order, depend on settings, seed and files alone, not on the cluster. Equal rows are kept
    once. An interrupted call leaves no manifest and is simply repeated.

    Raises:
        ConfigError: a source is missing or unreadable, too many pairs are unusable, no row is left, `folder` cannot be
            written, or it holds data of other settings, of another seed, or of files that have changed since.
    """
    folder = Path(folder).expanduser().absolute()
    plan = Plan(kind, settings, seed, tuple(kind.find(source) for source in settings.sources))
    if (folder / MANIFEST).is_file():
        manifest = load_manifest(folder, kind.manifest)
        check_same(plan, manifest, folder)
        kind.check_rejected(settings, manifest, folder)
        return manifest
    for source, files in zip(settings.sources, plan.files, strict=True):
        kind.check_source(source, files)
    check_writable(folder)
    with plain_errors():
        manifest = write(plan, folder)
    kind.check_rejected(settings, manifest, folder)
    check_written(plan, manifest, folder)
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=1))
    return manifest


def write(plan: Plan[Any], folder: Path) -> Any:
    """Count the sources, write all chosen rows, and return the manifest."""
    counts, smallest = zip(*count_sources(plan), strict=True)
    offered = [count["train_found"] + count["heldout_found"] for count in counts]
    bounds = choice_bounds(plan.settings.sources, offered, smallest)
    plan = dataclasses.replace(plan, bounds=tuple(bounds))
    sizes = [count["bytes"] or files.size for count, files in zip(counts, plan.files, strict=True)]
    size = sum(size * bound // HASH_END for size, bound in zip(sizes, bounds, strict=True))
    with rejected_file(plan.kind, folder) as rejected:
        written = write_shards(plan, size, folder, rejected)
    return plan.kind.manifest(
        fingerprint=fingerprint_of(plan),
        **{plan.kind.setting: plan.settings},
        seed=plan.seed,
        train=tuple(written.train),
        heldout=tuple(written.heldout),
        **plan.kind.summary(plan, counts, written),
    )


@contextmanager
def rejected_file(kind: DataKind[Any, Any], folder: Path) -> Iterator[IO[str]]:
    """Open `rejected.jsonl`, which is written atomically; a kind that rejects nothing has none."""
    if not any("rejected" in parts for parts in kind.passes):
        yield io.StringIO()
        return
    with atomic_file(folder / REJECTED) as staging, staging.open("w", encoding="utf-8") as file:
        yield file


def count_sources(plan: Plan[Any]) -> list[tuple[Counter[str], np.ndarray]]:
    """Return the counts of each source, and its `limit` smallest different choice hashes, sorted, uint64 [<= limit].

    A source is read for that only if it has a limit, or if its kind needs the other counts.
    """
    return [
        count_source(plan, index) if plan.kind.counts_all or source.limit else (Counter[str](), np.empty(0, np.uint64))
        for index, source in enumerate(plan.settings.sources)
    ]


def count_source(plan: Plan[Any], index: int) -> tuple[Counter[str], np.ndarray]:
    """Read one source for `count_sources`."""
    reports = plan.map_source(index, count_batch)
    counts: Counter[str] = Counter()

    def hashes() -> Iterator[np.ndarray]:
        for table in reports.iter_batches(batch_size=None, batch_format="pyarrow"):
            for text in table["counts"].to_pylist():
                counts.update(json.loads(text))
            yield table["smallest"].combine_chunks().flatten().to_numpy()

    smallest = merge_smallest(hashes(), plan.settings.sources[index].limit or 0)
    return counts, smallest


def count_batch(batch: pa.Table, task: SourceTask[Any]) -> pa.Table:
    """Return one row: the counts of a batch as JSON, and its `limit` smallest choice hashes."""
    counts, hashes = task.kind.count(batch, task)
    smallest = np.unique(hashes)[: task.limit or 0]
    return pa.table({"counts": [json.dumps(counts)], "smallest": pa.array([smallest], pa.list_(pa.uint64()))})


def merge_smallest(batches: Iterable[np.ndarray], limit: int) -> np.ndarray:
    """Return the `limit` smallest different values of all batches, sorted, in memory for about `limit` of them."""
    pending = [np.empty(0, dtype=np.uint64)]
    for batch in batches:
        pending.append(batch)
        if sum(map(len, pending)) > 2 * limit + MERGE_AT:
            pending = [np.unique(np.concatenate(pending))[:limit]]
    return np.unique(np.concatenate(pending))[:limit]


def choice_bounds(sources: AnySources, found: Sequence[int], smallest: Sequence[np.ndarray]) -> list[int]:
    """Return for each source the bound that its rows' choice hashes must stay below: first the limit, then the weight.

    Mixing is subsampling: a source keeps the rows with the smallest choice hashes. found: rows each source has.
    smallest: for each source with a limit, its `limit` smallest choice hashes, sorted.
    """
    limits = [limit_bound(source.limit, hashes) for source, hashes in zip(sources, smallest, strict=True)]
    sizes = [min(count, source.limit or count) for source, count in zip(sources, found, strict=True)]
    shares = kept_shares(sources, sizes)
    return [bound if share == 1.0 else int(bound * share) for bound, share in zip(limits, shares, strict=True)]


def kept_shares(sources: AnySources, sizes: Sequence[int]) -> list[float]:
    """Return the share of each source's rows that makes the mixture follow the weights: (w/n) / max(w/n).

    `sizes` are the rows each source offers. The source that is scarcest for its weight is used whole and decides how
    large the mixture is; nothing is repeated. Without weights every share is 1.
    """
    demands = [
        source.weight / size if source.weight and size else 0.0 for source, size in zip(sources, sizes, strict=True)
    ]
    if not any(demands):
        return [1.0] * len(sources)
    return [demand / max(demands) for demand in demands]


def decisive(kind: DataKind[Any, Any], settings: Settings, seed: int) -> dict[str, Any]:
    """Return everything but the files that decides which rows come out."""
    return {kind.setting: settings.model_dump(mode="json", exclude=set(kind.how_to_run)), "seed": seed}


def fingerprint_of(plan: Plan[Any]) -> str:
    contents = [files.content for files in plan.files]
    return fingerprint({**decisive(plan.kind, plan.settings, plan.seed), "contents": contents})


def check_same(plan: Plan[Any], manifest: CorpusManifest | PairManifest, folder: Path) -> None:
    """Refuse prepared data of other settings, another seed or other files."""
    if manifest.fingerprint == fingerprint_of(plan):
        return
    kind = plan.kind
    before = decisive(kind, getattr(manifest, kind.setting), manifest.seed)
    sources: Sequence[SourceCount | PairSourceCount] = manifest.sources
    contents = zip(sources, plan.files, strict=False)
    changed = [count.name for count, files in contents if count.content != files.content]
    found = setting_differences(before, decisive(kind, plan.settings, plan.seed)) or [
        f"the files of source {', '.join(changed)} have changed"
    ]
    raise ConfigError(
        f"{folder} holds {kind.unit}s that were prepared otherwise: {'; '.join(found)}; "
        f"choose another run folder, or delete {folder} to prepare them again"
    )


def check_writable(folder: Path) -> None:
    """Refuse a folder in which no file can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write to {folder} ({error.strerror}); choose another run folder") from error


def check_written(plan: Plan[Any], manifest: CorpusManifest | PairManifest, folder: Path) -> None:
    """Refuse data without rows to train on or to hold out, and a folder that the workers do not share."""
    kind, holdout = plan.kind, plan.settings.holdout
    if not manifest.train:
        found = "; ".join(f"{source.name}: {in_words(source)}" for source in manifest.sources)
        raise ConfigError(f"there is no {kind.unit} to train on ({found}); change {kind.places} of the sources")
    if holdout and not manifest.heldout:
        rows = sum(shard.rows for shard in manifest.train)
        raise ConfigError(
            f"holdout is {holdout} but none of {rows} {kind.unit}s fell into that share; "
            f"raise {kind.setting}.holdout or set it to 0"
        )
    check_visible(folder, [*manifest.train, *manifest.heldout])


def in_words(count: SourceCount | PairSourceCount) -> str:
    """List the counts of a source that are not 0."""
    counts = count.model_dump()
    numbers = {**counts, **counts.get("rejected", {})}
    return ", ".join(f"{number} {name}" for name, number in numbers.items() if isinstance(number, int) and number)


def log_prepared(kind: DataKind[Any, Any], manifest: CorpusManifest | PairManifest) -> None:
    """Log how many rows there are."""
    train, heldout = (sum(shard.rows for shard in shards) for shards in (manifest.train, manifest.heldout))
    line = f"{kind.setting}  {train} training {kind.unit}s in {len(manifest.train)} shards, {heldout} held out"
    rejected = f", {sum(manifest.rejected.values())} rejected" if isinstance(manifest, PairManifest) else ""
    logger.info("%s%s", line, rejected)
