"""The manifest of an embedded corpus, and the progress of the call that writes it."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any

from jasper_ray.cli import duration
from jasper_ray.config import Settings
from jasper_ray.embedding.chunks import chunk_of
from jasper_ray.embedding.output import ChunkRecord, Done

logger = logging.getLogger(__name__)

EVERY_S = 5.0
"""Seconds between two lines of progress."""
RECENT_S = 30.0
"""Seconds over which a line's speed is measured."""


class FileCount(Settings):
    """Rows of an input file."""

    file: str
    rows: int
    embedded: int
    rejected: int
    fault: str = ""
    """Reason why none of it can be read."""


class Throughput(Settings):
    """The work of the last call, and its speed."""

    rows: int
    """Rows read, without those of chunks finished before."""
    seconds: float
    """Seconds from the beginning of the first chunk to the end of the last."""
    wall_seconds: float
    """Seconds of the whole call."""
    rows_per_s: float
    tokens_per_s: float
    actors: int
    batch_tokens: int
    """Smallest budget of an actor at its end: below the first one if memory ran out."""
    busy_share: float
    """Share of the actors' time, from first to last chunk, in which they worked on one."""


class EmbeddingManifest(Settings):
    """The contents of `manifest.json`."""

    version: str
    """Version of this package."""
    model: str
    weights: str
    """Identity of the model's weights."""
    prompt: str
    """Text put before every text."""
    columns: tuple[dict[str, Any], ...]
    """Columns of vectors: name, dim, dtype."""
    normalised: bool = True
    """Vectors have length 1 before they are stored."""
    precision: str
    """Compute precision."""
    agreement: float | None
    """Least cosine of a sample in that precision with float32."""
    max_length: int
    rows: int
    """Rows read: embedded and rejected together."""
    embedded: int
    rejected: dict[str, int]
    """Rejected rows by reason."""
    texts: int
    """Texts that went through the model; fewer than rows if texts repeat."""
    tokens: int
    padding_share: float
    """Share of padding in the tokens computed."""
    files: tuple[FileCount, ...]
    work: Throughput | None
    blocks: tuple[ChunkRecord, ...]


def totals(records: Iterable[ChunkRecord]) -> dict[str, Any]:
    records = list(records)
    rejected: Counter[str] = Counter()
    for record in records:
        rejected.update(record.rejected)
    tokens = sum(record.tokens for record in records)
    computed = sum(record.computed for record in records)
    return {
        "rows": sum(record.rows for record in records),
        "embedded": sum(record.embedded for record in records),
        "rejected": dict(sorted(rejected.items())),
        "texts": sum(record.texts for record in records),
        "tokens": tokens,
        "padding_share": 1 - tokens / computed if computed else 0.0,
    }


def file_counts(files: Sequence[tuple[str, str, str]], records: Iterable[ChunkRecord]) -> tuple[FileCount, ...]:
    """Count the rows of each file (key, name, fault)."""
    rows: Counter[str] = Counter()
    embedded: Counter[str] = Counter()
    for record in records:
        key, _ = chunk_of(record.name)
        rows[key] += record.rows
        embedded[key] += record.embedded
    return tuple(
        FileCount(file=name, rows=rows[key], embedded=embedded[key], rejected=rows[key] - embedded[key], fault=fault)
        for key, name, fault in files
    )


class EmbeddingProgress:
    """Counts of finished chunks, and lines of progress."""

    def __init__(self, rows: int, before: Iterable[ChunkRecord]) -> None:
        self.total = rows
        self.before = sum(record.rows for record in before)
        self.rows = self.tokens = self.rejected = 0
        self.busy: Counter[str] = Counter()
        self.budgets: dict[str, int] = {}
        self.began: float | None = None
        self.last = self.logged = time.monotonic()
        self.recent: deque[tuple[float, int, int]] = deque()

    def add(self, done: Done) -> None:
        """Count a chunk, and log a line if the last one is old."""
        self.last = time.monotonic()
        if self.began is None:
            self.began = self.last - done.seconds
        self.rows += done.record.rows
        self.tokens += done.record.tokens
        self.rejected += sum(done.record.rejected.values())
        self.budgets[done.actor] = done.batch_tokens
        self.busy[done.actor] += done.seconds  # type: ignore[assignment]  # a Counter of seconds
        self.recent.append((self.last, self.rows, self.tokens))
        while self.last - self.recent[0][0] > RECENT_S and len(self.recent) > 2:
            self.recent.popleft()
        if self.last - self.logged >= EVERY_S:
            self.logged = self.last
            logger.info("%s", self.line())

    @property
    def seconds(self) -> float:
        """Seconds since the beginning of the first chunk."""
        return max(self.last - self.began, 1e-9) if self.began else 1e-9

    def line(self) -> str:
        """Make a line such as `embedded 40,960/100,000 rows  1,310 rows/s  21k tokens/s  45 s left`."""
        done = self.before + self.rows
        rows_per_s, tokens_per_s = self.speed()
        left = duration((self.total - done) / rows_per_s)
        rejected = f"  {self.rejected:,} rejected" if self.rejected else ""
        return (
            f"embedded {done:,}/{self.total:,} rows{rejected}  {rows_per_s:,.0f} rows/s  "
            f"{tokens_per_s:,.0f} tokens/s  {left} left"
        )

    def speed(self) -> tuple[float, float]:
        """Compute the recent rows/s and tokens/s; at first those since the beginning."""
        then, rows, tokens = self.recent[0]
        if self.last - then < EVERY_S:
            return self.rows / self.seconds, self.tokens / self.seconds
        return (self.rows - rows) / (self.last - then), (self.tokens - tokens) / (self.last - then)

    def throughput(self, wall_seconds: float) -> Throughput | None:
        """Compute the figures of this call; None if nothing was left to do."""
        if not self.busy:
            return None
        return Throughput(
            rows=self.rows,
            seconds=self.seconds,
            wall_seconds=wall_seconds,
            rows_per_s=self.rows / self.seconds,
            tokens_per_s=self.tokens / self.seconds,
            actors=len(self.busy),
            batch_tokens=min(self.budgets.values()),
            busy_share=min(1.0, sum(self.busy.values()) / (self.seconds * len(self.busy))),
        )


def summary(manifest: EmbeddingManifest) -> str:
    """Sum up a finished call in a few sentences."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in manifest.rejected.items())
    rejected = f"{sum(manifest.rejected.values()):,} rejected ({reasons})" if reasons else "none rejected"
    lines = [f"{manifest.rows:,} rows in: {manifest.embedded:,} embedded, {rejected}."]
    bad = [file for file in manifest.files if file.fault]
    if bad:
        lines.append(f"{len(bad)} of {len(manifest.files)} files could not be read: {bad[0].file} ({bad[0].fault}).")
    if manifest.work is None:
        return " ".join([*lines, "Nothing was left to do."])
    work = manifest.work
    lines.append(
        f"{work.rows:,} rows in {duration(work.seconds)}, {duration(work.wall_seconds)} with the start: "
        f"{work.rows_per_s:,.0f} rows/s, {work.tokens_per_s:,.0f} tokens/s, {manifest.padding_share:.1%} padding, "
        f"{work.busy_share:.0%} busy."
    )
    return " ".join(lines)
