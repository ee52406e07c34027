"""The account of an embedded corpus: whose vectors, how many rows, where each went, and what the last call took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from jasper_ray.config import Settings
from jasper_ray.embedding.chunks import block_of
from jasper_ray.embedding.output import Record


class FileCount(Settings):
    """What became of an input file."""

    file: str
    rows: int
    embedded: int
    rejected: int
    fault: str = ""
    """Why nothing of it could be read."""


class Work(Settings):
    """What the last call did, and how fast."""

    rows: int
    """Read, those of finished blocks left out."""
    seconds: float
    """From the first block's beginning to the last one's end."""
    wall_seconds: float
    """Of the whole call."""
    rows_per_s: float
    tokens_per_s: float
    actors: int
    batch_tokens: int
    """The least budget that an actor ended with: less than it began with where memory ran out."""
    busy_share: float
    """Of the actors' time from first to last block, the part in which they worked on one."""


class Manifest(Settings):
    """`manifest.json`."""

    version: str
    """Of this package."""
    model: str
    weights: str
    """What identifies the model."""
    prompt: str
    """The text put before every text."""
    columns: tuple[dict[str, Any], ...]
    """Columns of vectors: name, dim, dtype."""
    normalised: bool = True
    """Vectors have length 1 before they are stored."""
    precision: str
    """What the model computed in."""
    agreement: float | None
    """Least cosine of a sample in that precision with float32."""
    max_length: int
    rows: int
    """Rows in: embedded and rejected together."""
    embedded: int
    rejected: dict[str, int]
    """By reason."""
    texts: int
    """That went through the model; fewer than rows where texts repeat."""
    tokens: int
    padding_share: float
    """Of the tokens that were computed."""
    files: tuple[FileCount, ...]
    work: Work | None
    blocks: tuple[Record, ...]


def totals(records: Iterable[Record]) -> dict[str, Any]:
    """The sums of a manifest."""
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


def file_counts(files: Sequence[tuple[str, str, str]], records: Iterable[Record]) -> tuple[FileCount, ...]:
    """An entry for each file (key, name, fault)."""
    rows: Counter[str] = Counter()
    embedded: Counter[str] = Counter()
    for record in records:
        key, _ = block_of(record.name)
        rows[key] += record.rows
        embedded[key] += record.embedded
    return tuple(
        FileCount(file=name, rows=rows[key], embedded=embedded[key], rejected=rows[key] - embedded[key], fault=fault)
        for key, name, fault in files
    )
