"""Texts on their way to a student: corpus settings, reading, cleaning, augmentation, mixing and shards."""

from __future__ import annotations

from jasper_ray.data.checking import check_sources
from jasper_ray.data.settings import Augmentation, Corpus, Source
from jasper_ray.data.shards import Manifest, Shard, SourceCount, load_manifest, read_shard

__all__ = [
    "Augmentation",
    "Corpus",
    "Manifest",
    "Shard",
    "Source",
    "SourceCount",
    "check_sources",
    "load_manifest",
    "read_shard",
]
