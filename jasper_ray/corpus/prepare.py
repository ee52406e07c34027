"""Preparing a corpus, once: from source files to shards of texts in training order, on Ray Data.

    files ─read, clean─▶ texts ─hold out, augment─▶ rows ─count──▶ bounds for limits and weights
                                                  rows ─choose─▶ sort by hash ─▶ equal shards ─▶ train/, heldout/

The sources are read once to count and once more to write (and a third time, for held-out texts, if there are any): what
happens to a row depends on its hash alone, so each pass sees the same rows and nothing needs to be kept in between.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from jasper_ray.config import ConfigError, fingerprint
from jasper_ray.corpus.counting import SourceReport, count_sources
from jasper_ray.corpus.mixing import choice_bounds
from jasper_ray.corpus.prepared import check_visible, check_writable, differences
from jasper_ray.corpus.settings import Corpus
from jasper_ray.corpus.sharding import Mixture, Written, write_heldout, write_train
from jasper_ray.corpus.shards import MANIFEST, Manifest, SourceCount, load_manifest, save_manifest
from jasper_ray.ray_runtime import plain_errors
from jasper_ray.sources.checks import check_source
from jasper_ray.sources.files import SourceFiles, find_files
from jasper_ray.sources.hashing import HASH_END

logger = logging.getLogger(__name__)


def prepare_corpus(corpus: Corpus, folder: str | Path, seed: int) -> Manifest:
    """Write the shards of `corpus` below `folder` and return their manifest; return at once if they are there already.

    `folder` is a local or mounted path that every node of the cluster sees. Needs a running Ray (`ray.init`). Which
    texts come out, and their order, depend on settings, seed and files alone, not on the cluster. The same text is kept
    once. An interrupted call leaves no manifest and is simply repeated.

    Raises `ConfigError` if a source is missing or unreadable, if no text is left, if `folder` cannot be written, or if
    it holds a corpus made with other settings, another seed or from files that have changed since.
    """
    folder = Path(folder).expanduser().absolute()
    files = tuple(find_files(source) for source in corpus.sources)
    if (folder / MANIFEST).is_file():
        return _same_corpus(folder, corpus, seed, files)
    for source, found in zip(corpus.sources, files, strict=True):
        check_source(source, found)
    check_writable(folder)
    with plain_errors():
        manifest = _write(corpus, folder, seed, files)
    save_manifest(manifest, folder)
    return manifest


def _write(corpus: Corpus, folder: Path, seed: int, files: tuple[SourceFiles, ...]) -> Manifest:
    reports = count_sources(corpus, files, seed)
    bounds = choice_bounds(corpus.sources, [r.found for r in reports], [r.smallest for r in reports])
    mixture = Mixture(corpus, files, seed, tuple(bounds))
    row_bytes = sum(r.counts["bytes"] * bound // HASH_END for r, bound in zip(reports, bounds, strict=True))
    train = write_train(mixture, row_bytes, folder)
    heldout = write_heldout(mixture, folder)
    _check_written(corpus, folder, reports, train, heldout)
    found = sum(report.counts["train_found"] for report in reports)
    return Manifest(
        fingerprint=_corpus_fingerprint(corpus, seed, files),
        corpus=corpus,
        seed=seed,
        sources=_source_counts(mixture, reports, train, heldout),
        duplicates=train.duplicates,
        left_out=found - train.duplicates - sum(train.by_source),
        train=train.shards,
        heldout=heldout.shards,
    )


def _source_counts(
    mixture: Mixture, reports: Sequence[SourceReport], train: Written, heldout: Written
) -> tuple[SourceCount, ...]:
    return tuple(
        SourceCount(
            name=source.title,
            content=mixture.files[index].content,
            kept_share=mixture.bounds[index] / HASH_END,
            train=train.by_source[index],
            heldout=heldout.by_source[index],
            **{name: count for name, count in reports[index].counts.items() if name != "bytes"},
        )
        for index, source in enumerate(mixture.corpus.sources)
    )


def _corpus_fingerprint(corpus: Corpus, seed: int, files: Sequence[SourceFiles]) -> str:
    contents = [found.content for found in files]
    return fingerprint({**_settings(corpus, seed), "contents": contents})


def _settings(corpus: Corpus, seed: int) -> dict[str, object]:
    return {"corpus": corpus.model_dump(mode="json"), "seed": seed}


def _same_corpus(folder: Path, corpus: Corpus, seed: int, files: Sequence[SourceFiles]) -> Manifest:
    """The manifest in `folder` if it belongs to this corpus; else `ConfigError` with what differs."""
    manifest = load_manifest(folder)
    if manifest.fingerprint == _corpus_fingerprint(corpus, seed, files):
        return manifest
    was, now = _settings(manifest.corpus, manifest.seed), _settings(corpus, seed)
    found = differences(was, now, [(count.name, count.content) for count in manifest.sources], files)
    raise ConfigError(
        f"{folder} holds a corpus made otherwise: {found}; "
        "choose another run folder, or delete this one to make the corpus anew"
    )


def _check_written(
    corpus: Corpus, folder: Path, reports: Sequence[SourceReport], train: Written, heldout: Written
) -> None:
    if not train.shards:
        found = "; ".join(f"{s.title}: {_describe(r)}" for s, r in zip(corpus.sources, reports, strict=True))
        raise ConfigError(f"the corpus has no text to train on ({found}); change the path or column of its sources")
    if corpus.holdout and not heldout.shards:
        raise ConfigError(
            f"holdout is {corpus.holdout} but none of {sum(train.by_source)} texts fell into that share; "
            "raise the corpus' holdout or set it to 0"
        )
    check_visible(folder, train.shards)


def _describe(report: SourceReport) -> str:
    return ", ".join(f"{count} {name}" for name, count in report.counts.items() if count)


def tell_corpus(manifest: Manifest) -> None:
    """Say how many texts there are."""
    train = sum(shard.rows for shard in manifest.train)
    heldout = sum(shard.rows for shard in manifest.heldout)
    logger.info("corpus  %d training texts in %d shards, %d held out", train, len(manifest.train), heldout)
