"""Prepared data on disk: shards, which are Parquet files named by their contents, and the manifest that lists them.

```
folder/train/<sha16>.parquet     columns id, text, prompt; pairs: text is the caption, image the bytes of its file
folder/heldout/<sha16>.parquet   the same
folder/rejected.jsonl            pairs: source, origin and reason of every rejected one
folder/manifest.json             written last: it marks finished data
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

from jasper_ray.atomic import atomic_file
from jasper_ray.config import ConfigError, Settings
from jasper_ray.corpus.settings import Corpus, Images

SHARD_SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("prompt", pa.string())])
PAIR_SHARD_SCHEMA = pa.schema([*SHARD_SCHEMA, ("image", pa.binary())])
MANIFEST = "manifest.json"
REJECTED = "rejected.jsonl"


class Shard(Settings):
    """One Parquet file of texts or pairs."""

    file: str
    """Path relative to the folder of the prepared data, with `/`."""
    rows: int
    """Rows in the file."""
    sha256: str
    """Hash of ids, texts and prompts (not of the file's bytes, which depend on the Parquet writer); names the file."""


class SourceCount(Settings):
    """Counts of one source of texts."""

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


class CorpusManifest(Settings):
    """A prepared corpus: its settings, its counts, and its shards in training order."""

    fingerprint: str
    """Names the contents: corpus settings, seed, and the fingerprints of the source files."""
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


class PairSourceCount(Settings):
    """Counts of one source of pairs."""

    name: str
    """The source's title."""
    content: str
    """Fingerprint of the source's files (name, size, modification time for local files)."""
    read: int
    """Pairs found: the sum of the counts below, of duplicates and of pairs beyond `heldout_limit`."""
    left_out: int
    """Pairs not chosen by the source's limit."""
    rejected: dict[str, int]
    """Rejected pairs, by reason."""
    train: int
    """Training pairs written."""
    heldout_found: int
    """Distinct held-out pairs before `heldout_limit`."""
    heldout: int
    """Held-out pairs written."""


class PairManifest(Settings):
    """Prepared pairs: their settings, their counts, and their shards in training order."""

    fingerprint: str
    """Names the contents: settings, seed, and the fingerprints of the source files."""
    images: Images
    """The settings the pairs were made with."""
    seed: int
    """The seed of choice and order."""
    sources: tuple[PairSourceCount, ...]
    """Counts, in the order of the sources."""
    rejected: dict[str, int]
    """Rejected pairs of all sources, by reason; `rejected.jsonl` lists them."""
    duplicates: int
    """Pairs dropped because the same image with the same caption was kept."""
    train: tuple[Shard, ...]
    """Shards to train on, in order; every one but the last has `shard_rows` rows."""
    heldout: tuple[Shard, ...]
    """Shards to evaluate on."""


Manifest = TypeVar("Manifest", CorpusManifest, PairManifest)


def load_manifest(folder: str | Path, manifest: type[Manifest]) -> Manifest:
    """Read the manifest of the prepared data in `folder`.

    Raises:
        ConfigError: there is none, or it is damaged or of another kind.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ConfigError(f"found no {MANIFEST} in {folder}; expected prepared data: run the recipe that makes them")
    try:
        return manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ConfigError(
            f"{path} is damaged or of another version ({error.error_count()} faults); "
            f"delete {folder} to prepare it again"
        ) from error


def read_shard(path: str | Path) -> pa.Table:
    """Read a shard: columns id, text, prompt (null: no prompt), and image for pairs."""
    return pq.read_table(path, partitioning=None)


def write_shard(table: pa.Table, folder: Path, part: str) -> Shard:
    """Write `folder/part/<sha16>.parquet` atomically; equal rows give the same name.

    A table with the column `image` becomes a shard of pairs. Their ids, which are hashed, cover the images too. Images
    are compressed already, and never repeat, so neither compression nor a dictionary of them would save anything.
    """
    pairs = "image" in table.column_names
    schema = PAIR_SHARD_SCHEMA if pairs else SHARD_SCHEMA
    options: dict[str, Any] = {"compression": {name: "none" if name == "image" else "zstd" for name in schema.names}}
    rows = table.select(schema.names).cast(schema)
    digest = content_hash(rows)
    file = f"{part}/{digest[:16]}.parquet"
    with atomic_file(folder / file) as staging:
        pq.write_table(rows, staging, **options, use_dictionary=["prompt"] if pairs else True)
    return Shard(file=file, rows=len(rows), sha256=digest)


def content_hash(table: pa.Table) -> str:
    """Return the SHA-256 of ids, texts and prompts; each value is preceded by its length, so no two tables collide."""
    digest = hashlib.sha256()
    for name in SHARD_SCHEMA.names:
        digest.update(b"".join(_framed(table[name].to_pylist())))
    return digest.hexdigest()


def _framed(values: Iterable[str | None]) -> Iterable[bytes]:
    for value in values:
        data = b"" if value is None else value.encode()
        yield b"-," if value is None else b"%d:%b," % (len(data), data)


def shards_covering(shards: Sequence[Shard], rows: int) -> list[Shard]:
    """Return the first shards that together hold at least `rows` rows; all if there are fewer."""
    taken: list[Shard] = []
    for shard in shards:
        if sum(each.rows for each in taken) >= rows:
            break
        taken.append(shard)
    return taken
