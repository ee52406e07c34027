"""Texts and image–caption pairs on their way to a student: settings, reading, cleaning, mixing and shards."""

from __future__ import annotations

from jasper_ray.data.checking import check_sources
from jasper_ray.data.pair_checking import check_pair_sources
from jasper_ray.data.pair_reading import Pair, read_pairs
from jasper_ray.data.pair_shards import PairManifest, PairSourceCount, load_pair_manifest, read_pair_shard
from jasper_ray.data.pairs import FolderPairs, Images, PairSource, ParquetPairs, WebdatasetPairs
from jasper_ray.data.settings import Augmentation, Corpus, Source
from jasper_ray.data.shards import Manifest, Shard, SourceCount, load_manifest, read_shard

__all__ = [
    "Augmentation",
    "Corpus",
    "FolderPairs",
    "Images",
    "Manifest",
    "Pair",
    "PairManifest",
    "PairSource",
    "PairSourceCount",
    "ParquetPairs",
    "Shard",
    "Source",
    "SourceCount",
    "WebdatasetPairs",
    "check_pair_sources",
    "check_sources",
    "load_manifest",
    "load_pair_manifest",
    "read_pair_shard",
    "read_pairs",
    "read_shard",
]
