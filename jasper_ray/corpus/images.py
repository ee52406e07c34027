"""Image–caption pairs as a kind of data: images decoded once, held out by their bytes, bad ones rejected.

Their sources are read once, and once more before that where they have a limit. One sort writes all parts, since
decoding is the costly step. Images go into the shards as they were found.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from jasper_ray.config import ConfigError
from jasper_ray.corpus.kinds import PARTS, DataKind, Plan, Row, SourceTask, Written
from jasper_ray.corpus.settings import Images
from jasper_ray.corpus.shards import PAIR_SHARD_SCHEMA, REJECTED, PairManifest, PairSourceCount
from jasper_ray.images.decode import fault
from jasper_ray.sources.files import SourceFiles
from jasper_ray.sources.hashing import HASH_END, image_id, is_held_out, pair_id, text_id
from jasper_ray.sources.pairs import READ_ROWS, choices, fill_pairs, find_pair_files, scan_pairs
from jasper_ray.sources.settings import PairSource

logger = logging.getLogger(__name__)

BLOCK_ROWS = 256
"""Pairs that one task decodes: some seconds of work."""


class ImageKind(DataKind[Images, PairManifest]):
    """Pairs, whose batches are scanned rows (`sources.pairs.SCAN_SCHEMA`)."""

    setting = "images"
    unit = "pair"
    places = "path, image or caption"
    manifest = PairManifest
    columns = tuple(PAIR_SHARD_SCHEMA.names)
    batch_rows = READ_ROWS
    counts_all = False
    counts_by_source = True
    passes = (PARTS,)
    how_to_run = frozenset(("bad_share", "decoders", "pool", "dtype", "batch_size"))

    def find(self, source: PairSource) -> SourceFiles:
        return find_pair_files(source)

    def scan(self, source: PairSource, files: SourceFiles) -> ray.data.Dataset:
        """Return a row for every pair; one task reads a file, and many decode its pairs, in small blocks."""
        paths = ray.data.from_items([{"path": path} for path in files.paths], override_num_blocks=len(files.paths))
        kwargs = {"source": source, "files": dataclasses.replace(files, paths=())}  # the list may be long
        scanned = paths.map_batches(scan_batch, fn_kwargs=kwargs, batch_size=1, batch_format="pyarrow")
        return scanned.repartition(target_num_rows_per_block=BLOCK_ROWS)

    def count(self, batch: pa.Table, task: SourceTask[Images]) -> tuple[Counter[str], np.ndarray]:
        return Counter(read=len(batch)), choices(fill_pairs(batch, task.files), task.seed)

    def rows(self, batch: pa.Table, task: SourceTask[Images]) -> list[Row]:
        pairs = fill_pairs(batch, task.files)
        if task.bound < HASH_END:
            pairs = pairs.filter(pa.array(choices(pairs, task.seed) < task.bound))
        return [make_row(pair, task.settings, task.index) for pair in pairs.to_pylist()]

    def summary(self, plan: Plan[Images], counts: Sequence[Counter[str]], written: Written) -> dict[str, Any]:
        chosen = np.sum(list(written.chosen.values()), axis=0)
        read = [count.get("read", int(chosen[index])) for index, count in enumerate(counts)]
        sources = tuple(
            PairSourceCount(
                name=source.title,
                content=plan.files[index].content,
                read=read[index],
                left_out=read[index] - int(chosen[index]),
                rejected=dict(written.rejected[index].most_common()),
                train=int(written.distinct["train"][index]),
                heldout_found=int(written.distinct["heldout"][index]),
                heldout=int(written.kept_heldout[index]),
            )
            for index, source in enumerate(plan.settings.sources)
        )
        rejected: Counter[str] = Counter()
        for source in sources:
            rejected.update(source.rejected)
        duplicates = int(np.sum(chosen) - np.sum(list(written.distinct.values())))
        return {"sources": sources, "rejected": dict(rejected.most_common()), "duplicates": duplicates}

    def check_rejected(self, settings: Images, manifest: PairManifest, folder: Path) -> None:
        """Warn of rejected pairs.

        Raises:
            ConfigError: there are too many.
        """
        chosen = sum(source.read - source.left_out for source in manifest.sources)
        bad = sum(manifest.rejected.values())
        if bad == 0:
            return
        reasons = ", ".join(f"{count} {reason}" for reason, count in manifest.rejected.items())
        found = f"{bad} of {chosen} pairs are unusable and were rejected ({reasons})"
        if bad > settings.bad_share * chosen:
            raise ConfigError(
                f"{found}, more than the share of {settings.bad_share} that bad_share allows; fix or remove "
                f"those that {folder / REJECTED} lists, or raise bad_share"
            )
        logger.warning("%s: %s lists them", found, folder / REJECTED)


IMAGES = ImageKind()


def scan_batch(paths: pa.Table, source: PairSource, files: SourceFiles) -> Iterator[pa.Table]:
    """Yield the pairs of some files, a few at a time."""
    for path in paths["path"].to_pylist():
        yield from scan_pairs(source, files, path)


def make_row(pair: Mapping[str, Any], images: Images, source: int) -> Row:
    """Decide the part of a pair (`sources.pairs.PAIR_SCHEMA`) of source number `source`, once its image is decoded."""
    reason = pair["reason"] or fault(pair["image"], images.pixel_limit)
    origin = pair["origin"]
    if reason is not None:
        return Row(text_id(f"{source}:{origin}"), None, "rejected", None, origin, reason)
    image, caption = pair["image"], pair["caption"]
    part = "heldout" if is_held_out(image_id(image), images.holdout) else "train"
    return Row(pair_id(image, caption), caption, part, image, origin)
