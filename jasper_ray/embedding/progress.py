"""What a person reads while a corpus is embedded, and at the end."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable

from jasper_ray.cli import duration
from jasper_ray.embedding.manifest import Manifest, Work
from jasper_ray.embedding.output import Done, Record

logger = logging.getLogger(__name__)

EVERY_S = 5.0
"""Seconds between two lines."""
RECENT_S = 30.0
"""Seconds that a line's speed is taken from."""


class Progress:
    """Counts finished blocks and says how far it is."""

    def __init__(self, rows: int, before: Iterable[Record]) -> None:
        self.total = rows
        self.before = sum(record.rows for record in before)
        self.rows = self.tokens = self.rejected = 0
        self.busy: Counter[str] = Counter()
        self.budgets: dict[str, int] = {}
        self.began: float | None = None
        self.last = self.said = time.monotonic()
        self.recent: deque[tuple[float, int, int]] = deque()

    def add(self, done: Done) -> None:
        """One block more."""
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
        if self.last - self.said >= EVERY_S:
            self.said = self.last
            logger.info("%s", self.line())

    @property
    def seconds(self) -> float:
        """From the first block's beginning until now."""
        return max(self.last - self.began, 1e-9) if self.began else 1e-9

    def line(self) -> str:
        """`embedded 40,960/100,000 rows  1,310 rows/s  21k tokens/s  45 s left`."""
        done = self.before + self.rows
        rows_per_s, tokens_per_s = self.speed()
        left = duration((self.total - done) / rows_per_s)
        set_aside = f"  {self.rejected:,} rejected" if self.rejected else ""
        return (
            f"embedded {done:,}/{self.total:,} rows{set_aside}  {rows_per_s:,.0f} rows/s  "
            f"{tokens_per_s:,.0f} tokens/s  {left} left"
        )

    def speed(self) -> tuple[float, float]:
        """Rows/s and tokens/s of late, or from the beginning while there is no late yet."""
        then, rows, tokens = self.recent[0]
        if self.last - then < EVERY_S:
            return self.rows / self.seconds, self.tokens / self.seconds
        return (self.rows - rows) / (self.last - then), (self.tokens - tokens) / (self.last - then)

    def work(self, wall_seconds: float) -> Work | None:
        """The figures of this call; None when nothing was left to do."""
        if not self.busy:
            return None
        return Work(
            rows=self.rows,
            seconds=self.seconds,
            wall_seconds=wall_seconds,
            rows_per_s=self.rows / self.seconds,
            tokens_per_s=self.tokens / self.seconds,
            actors=len(self.busy),
            batch_tokens=min(self.budgets.values()),
            busy_share=min(1.0, sum(self.busy.values()) / (self.seconds * len(self.busy))),
        )


def last_line(manifest: Manifest) -> str:
    """What was done, in a sentence or three."""
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
