"""Preparing image–caption pairs, once: from source files to shards of pairs in training order, on Ray Data.

    files ─read─▶ pairs ─decode, hold out─▶ rows ─sort by hash─▶ equal shards ─▶ train/, heldout/
                                              └─ those of no use, without their images ─▶ rejected.jsonl

The sources are read once, and once more before that where they have a limit. Images go into the shards as they were
found. What happens to a pair depends on its hash alone, not on the cluster.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jasper_ray.atomic import atomic_file
from jasper_ray.config import ConfigError, fingerprint
from jasper_ray.corpus.pair_sharding import PairPass, Written, count_choices, write_pairs
from jasper_ray.corpus.pair_shards import (
    REJECTED,
    PairManifest,
    PairSourceCount,
    load_pair_manifest,
)
from jasper_ray.corpus.prepared import check_visible, check_writable, differences
from jasper_ray.corpus.settings import Images
from jasper_ray.corpus.shards import MANIFEST, save_manifest
from jasper_ray.ray_runtime import plain_errors
from jasper_ray.sources.files import SourceFiles
from jasper_ray.sources.pairs import find_pair_files

logger = logging.getLogger(__name__)

HOW_TO_RUN = {"bad_share", "decoders", "pool", "dtype", "batch_size"}
"""Settings of images that do not change which pairs come out."""


def prepare_pairs(images: Images, folder: str | Path, seed: int) -> PairManifest:
    """Write the shards of `images` below `folder` and return their manifest; return at once if they are there already.

    `folder` is a local or mounted path that every node of the cluster sees. Needs a running Ray (`ray.init`). Every
    image is decoded once; a pair that is of no use is set aside and listed in `rejected.jsonl`. The same pair is kept
    once, and an image is either trained on or held out. An interrupted call leaves no manifest and is simply repeated.

    Raises `ConfigError` if a source is missing or unreadable, if more than `bad_share` of the pairs were set aside, if
    no pair is left, if `folder` cannot be written, or if it holds pairs made with other settings, another seed or from
    files that have changed since.
    """
    folder = Path(folder).expanduser().absolute()
    files = tuple(find_pair_files(source) for source in images.sources)
    if (folder / MANIFEST).is_file():
        manifest = _same_pairs(folder, images, seed, files)
        _check_share(images, manifest.sources, folder)
        return manifest
    check_writable(folder)
    with plain_errors():
        manifest = _write(images, folder, seed, files)
    save_manifest(manifest, folder)
    return manifest


def _write(images: Images, folder: Path, seed: int, files: tuple[SourceFiles, ...]) -> PairManifest:
    bounds, found = count_choices(images, files, seed)
    with atomic_file(folder / REJECTED) as staging, staging.open("w", encoding="utf-8") as rejected:
        written = write_pairs(PairPass(images, files, seed, bounds), folder, rejected)
    sources = _source_counts(images, files, found, written)
    _check_share(images, sources, folder)
    _check_written(images, folder, sources, written)
    kept = sum(written.train) + sum(written.heldout_found)
    set_aside = _by_reason(sources)
    return PairManifest(
        fingerprint=_fingerprint(images, seed, files),
        images=images,
        seed=seed,
        sources=sources,
        rejected=set_aside,
        duplicates=sum(written.chosen) - kept - sum(set_aside.values()),
        train=tuple(written.shards["train"]),
        heldout=tuple(written.shards["heldout"]),
    )


def _source_counts(
    images: Images, files: Sequence[SourceFiles], found: Sequence[int | None], written: Written
) -> tuple[PairSourceCount, ...]:
    return tuple(
        PairSourceCount(
            name=source.title,
            content=files[index].content,
            read=written.chosen[index] if found[index] is None else found[index],
            left_out=0 if found[index] is None else (found[index] or 0) - written.chosen[index],
            rejected=dict(written.rejected[index].most_common()),
            train=written.train[index],
            heldout_found=written.heldout_found[index],
            heldout=written.heldout[index],
        )
        for index, source in enumerate(images.sources)
    )


def _by_reason(sources: Sequence[PairSourceCount]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for source in sources:
        total.update(source.rejected)
    return dict(total.most_common())


def _described(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())


def _check_share(images: Images, sources: Sequence[PairSourceCount], folder: Path) -> None:
    """Say how many pairs were set aside, and stop if these are too many."""
    chosen = sum(source.read - source.left_out for source in sources)
    reasons = _by_reason(sources)
    bad = sum(reasons.values())
    if bad == 0:
        return
    found = f"{bad} of {chosen} pairs are of no use and were set aside ({_described(reasons)})"
    if bad > images.bad_share * chosen:
        raise ConfigError(
            f"{found}, more than the share of {images.bad_share} that bad_share allows; {folder / REJECTED} lists "
            "them: mend them, leave them out, or raise bad_share"
        )
    logger.warning("%s: %s lists them", found, folder / REJECTED)


def _check_written(images: Images, folder: Path, sources: Sequence[PairSourceCount], written: Written) -> None:
    if not written.shards["train"]:
        found = "; ".join(f"{s.name}: {_described({'read': s.read, **s.rejected})}" for s in sources)
        raise ConfigError(f"there is no pair to train on ({found}); change path, image or caption of the sources")
    if images.holdout and not written.shards["heldout"]:
        raise ConfigError(
            f"holdout is {images.holdout} but none of {sum(written.train)} pairs fell into that share; "
            "raise the images' holdout or set it to 0"
        )
    check_visible(folder, [*written.shards["train"], *written.shards["heldout"]])


def _settings(images: Images, seed: int) -> dict[str, Any]:
    """What decides which pairs come out."""
    return {"images": images.model_dump(mode="json", exclude=HOW_TO_RUN), "seed": seed}


def _fingerprint(images: Images, seed: int, files: Sequence[SourceFiles]) -> str:
    return fingerprint({**_settings(images, seed), "contents": [found.content for found in files]})


def _same_pairs(folder: Path, images: Images, seed: int, files: Sequence[SourceFiles]) -> PairManifest:
    """The manifest in `folder` if it belongs to these pairs; else `ConfigError` with what differs."""
    manifest = load_pair_manifest(folder)
    if manifest.fingerprint == _fingerprint(images, seed, files):
        return manifest
    was, now = _settings(manifest.images, manifest.seed), _settings(images, seed)
    found = differences(was, now, [(count.name, count.content) for count in manifest.sources], files)
    raise ConfigError(
        f"{folder} holds pairs made otherwise: {found}; "
        f"to prepare them anew delete {folder} alone, finished stages on texts stay; or choose another run folder"
    )
