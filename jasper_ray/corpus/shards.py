"""Shards: Parquet files of a fixed number of texts, named by their contents, and the manifest that lists them.

```
folder/train/<sha16>.parquet     columns id, text, prompt
folder/heldout/<sha16>.parquet   the same
folder/manifest.json             written last: it marks a finished corpus
```
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from jasper_ray.atomic import atomic_file, write_text
from jasper_ray.config import ConfigError, Settings
from jasper_ray.corpus.settings import Corpus

SHARD_SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("prompt", pa.string())])
MANIFEST = "manifest.json"
AnyManifest = TypeVar("AnyManifest", bound=Settings)


class Shard(Settings):
    """One Parquet file of texts."""

    file: str
    """Path relative to the corpus folder, with `/`."""
    rows: int
    """Texts in the file."""
    sha256: str
    """Hash of ids, texts and prompts (not of the file's bytes, which depend on the Parquet writer); names the file."""


class SourceCount(Settings):
    """What became of one source."""

    name: str
    """The source's title."""
    content: str
    """Fingerprint of the source's files (name, size, modification time for local files)."""
    read: int
    """Rows read."""
    null: int
    """Rows dropped because the text was missing."""
    empty: int
    """Rows dropped because the text was white space only."""
    not_text: int
    """Rows dropped because the value was no text."""
    clashing: int
    """Texts made by augmentation and dropped because they would be held out."""
    train_found: int
    """Training texts after augmentation, before limit and weight."""
    heldout_found: int
    """Held-out texts before limit, weight and `heldout_limit`."""
    kept_share: float
    """Share of the texts found that limit and weight keep, in expectation over hashes."""
    train: int
    """Training texts written."""
    heldout: int
    """Held-out texts written."""


class Manifest(Settings):
    """A prepared corpus: what it was made of and where its texts lie, in training order."""

    fingerprint: str
    """Names the contents: corpus settings, seed, and what is known of the source files."""
    corpus: Corpus
    """The settings the corpus was made with."""
    seed: int
    """The seed of choice, augmentation and order."""
    sources: tuple[SourceCount, ...]
    """Counts, in the order of the corpus' sources."""
    duplicates: int
    """Training texts dropped because the same text came before."""
    left_out: int
    """Training texts not chosen by limit and weight."""
    train: tuple[Shard, ...]
    """Shards to train on, in order; every one but the last has `shard_rows` rows."""
    heldout: tuple[Shard, ...]
    """Shards to evaluate on."""


def load_manifest(folder: str | Path) -> Manifest:
    """The manifest of the prepared corpus in `folder`; `ConfigError` if there is none."""
    return read_manifest(folder, Manifest)


def read_manifest(folder: str | Path, kind: type[AnyManifest]) -> AnyManifest:
    """The manifest of a kind that `save_manifest` wrote to `folder`; `ConfigError` where there is none, or another."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ConfigError(f"found no {MANIFEST} in {folder}; expected prepared data: run the recipe that makes them")
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ConfigError(
            f"{path} is damaged or of another version ({error.error_count()} faults); "
            f"delete {folder} to prepare it anew"
        ) from error


def save_manifest(manifest: Settings, folder: Path) -> None:
    """Write `manifest.json` atomically."""
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=1))


def read_shard(path: str | Path) -> pa.Table:
    """The rows of one shard: columns id, text, prompt (null: no prompt)."""
    return pq.read_table(path, columns=SHARD_SCHEMA.names)


def write_shard(table: pa.Table, folder: Path, part: str) -> Shard:
    """Write `table` (`SHARD_SCHEMA`) to `folder/part/<sha16>.parquet`, atomically; the same rows give the same name."""
    return write_rows(table.select(SHARD_SCHEMA.names).cast(SHARD_SCHEMA), folder, part, compression="zstd")


def write_rows(rows: pa.Table, folder: Path, part: str, **options: Any) -> Shard:
    """`write_shard` for rows that have the columns of `SHARD_SCHEMA` and others; `options` are `pq.write_table`'s."""
    digest = content_hash(rows)
    file = f"{part}/{digest[:16]}.parquet"
    with atomic_file(folder / file) as staging:
        pq.write_table(rows, staging, **options)
    return Shard(file=file, rows=len(rows), sha256=digest)


def content_hash(table: pa.Table) -> str:
    """SHA-256 over ids, texts and prompts, each preceded by its length, so that no two tables share one by chance."""
    digest = hashlib.sha256()
    for name in SHARD_SCHEMA.names:
        digest.update(b"".join(_framed(table[name].to_pylist())))
    return digest.hexdigest()


def _framed(values: Iterable[str | None]) -> Iterable[bytes]:
    for value in values:
        data = b"" if value is None else value.encode()
        yield b"-," if value is None else b"%d:%b," % (len(data), data)


def first_rows(shards: Sequence[Shard], rows: int) -> list[Shard]:
    """The first shards that together hold at least `rows` texts; all when there are fewer."""
    taken: list[Shard] = []
    for shard in shards:
        if sum(each.rows for each in taken) >= rows:
            break
        taken.append(shard)
    return taken
