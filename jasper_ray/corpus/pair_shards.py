"""Pair shards: Parquet files of image–caption pairs, named by their contents, and the manifest that lists them.

```
folder/train/<sha16>.parquet     columns id, text (the caption), prompt, image (the bytes of its file, as found)
folder/heldout/<sha16>.parquet   the same
folder/rejected.jsonl            the pairs that were set aside: source, origin, reason
folder/manifest.json             written last: it marks finished pairs
```
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jasper_ray.config import Settings
from jasper_ray.corpus.settings import Images
from jasper_ray.corpus.shards import SHARD_SCHEMA, Shard, read_manifest, write_rows

PAIR_SHARD_SCHEMA = pa.schema([*SHARD_SCHEMA, ("image", pa.binary())])
REJECTED = "rejected.jsonl"


class PairSourceCount(Settings):
    """What became of one source of pairs."""

    name: str
    """The source's title."""
    content: str
    """Fingerprint of the source's files (name, size, modification time for local files)."""
    read: int
    """Pairs found; all the others below, duplicates and what `heldout_limit` cut off add up to them."""
    left_out: int
    """Pairs not chosen by the source's limit."""
    rejected: dict[str, int]
    """Pairs set aside, by reason."""
    train: int
    """Training pairs written."""
    heldout_found: int
    """Distinct held-out pairs before `heldout_limit`."""
    heldout: int
    """Held-out pairs written."""


class PairManifest(Settings):
    """Prepared pairs: what they were made of and where they lie, in training order."""

    fingerprint: str
    """Names the contents: settings, seed, and what is known of the source files."""
    images: Images
    """The settings the pairs were made with."""
    seed: int
    """The seed of choice and order."""
    sources: tuple[PairSourceCount, ...]
    """Counts, in the order of the sources."""
    rejected: dict[str, int]
    """Pairs of all sources that were set aside, by reason; `rejected.jsonl` lists them."""
    duplicates: int
    """Pairs dropped because the same image with the same caption was kept."""
    train: tuple[Shard, ...]
    """Shards to train on, in order; every one but the last has `shard_rows` rows."""
    heldout: tuple[Shard, ...]
    """Shards to evaluate on."""


def load_pair_manifest(folder: str | Path) -> PairManifest:
    """The manifest of the prepared pairs in `folder`; `ConfigError` if there is none."""
    return read_manifest(folder, PairManifest)


def read_pair_shard(path: str | Path) -> pa.Table:
    """The rows of one shard: columns id, text, prompt (null: no prompt), image."""
    return pq.read_table(path, columns=PAIR_SHARD_SCHEMA.names)


def write_pair_shard(table: pa.Table, folder: Path, part: str) -> Shard:
    """Write `table` (`PAIR_SHARD_SCHEMA`) as `write_shard` does. The ids, which are hashed, stand for the images too.

    Images are compressed already; as they never repeat, a dictionary of them would only be built and thrown away.
    """
    rows = table.select(PAIR_SHARD_SCHEMA.names).cast(PAIR_SHARD_SCHEMA)
    compression = {name: "none" if name == "image" else "zstd" for name in PAIR_SHARD_SCHEMA.names}
    return write_rows(rows, folder, part, compression=compression, use_dictionary=["prompt"])
