"""Looking at sources of pairs before anything starts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from jasper_ray.config import ConfigError
from jasper_ray.images.decode import fault
from jasper_ray.sources.checks import check_column
from jasper_ray.sources.files import SourceFiles
from jasper_ray.sources.pair_settings import FolderPairs, PairSource
from jasper_ray.sources.pairs import fill_pairs, find_pair_files, scan_pairs
from jasper_ray.sources.rows import column_names

LOOKED_AT = 32
"""Pairs of a source among which one must be of use."""


def check_pair_sources(sources: Sequence[PairSource], pixel_limit: int) -> None:
    """Raise `ConfigError` unless every source has files with the columns that are named, and a pair of use in front.

    Needs no Ray. Assets are downloaded if they are not in the cache yet. Only the first pairs are read.
    """
    for source in sources:
        check_pair_source(source, find_pair_files(source), pixel_limit)


def check_pair_source(source: PairSource, files: SourceFiles, pixel_limit: int) -> None:
    """`check_pair_sources` for one source whose files are known."""
    if isinstance(source, FolderPairs) and source.captions.endswith(".jsonl"):
        _check_keys(source, files)
    reasons: Counter[str] = Counter()
    for row in itertools.islice(_first_rows(source, files), LOOKED_AT):
        reason = row["reason"] or fault(row["image"], pixel_limit)
        if reason is None:
            return
        reasons[reason] += 1
    if not reasons:
        raise ConfigError(
            f"source '{source.title}': found no pair in {source.path}; change path or format of the source"
        )
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    raise ConfigError(
        f"source '{source.title}': none of its first {reasons.total()} pairs can be used ({counts}); "
        "change the source's image, caption or path, or mend its files"
    )


def _check_keys(source: FolderPairs, files: SourceFiles) -> None:
    (path,) = files.paths
    with files.filesystem.open_input_stream(path) as stream:
        keys = column_names(stream, "jsonl", path)
    for setting in ("image", "caption"):
        check_column(source.title, path, keys, getattr(source, setting), setting)


def _first_rows(source: PairSource, files: SourceFiles) -> Iterator[dict[str, Any]]:
    for path in files.paths:
        for table in scan_pairs(source, files, path):
            for index in range(len(table)):
                yield _only_row(fill_pairs(table.slice(index, 1), files))


def _only_row(pairs: pa.Table) -> dict[str, Any]:
    row: dict[str, Any] = pairs.to_pylist()[0]
    return row
