"""Before a job: the plan on the cluster at hand, and the examination of the model on a sample of the corpus.

The examination decides heads, prompt, precision and the ranges of int8. It runs once, in a task that reserves the
resources of one replica of the model.
"""

# Shape legend: N texts, D size of a vector.

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import ray
import torch

from jasper_ray.config import ConfigError
from jasper_ray.embedding.chunks import SPAN_CHUNKS, Chunk, Span, read_chunks
from jasper_ray.embedding.folder import Resolved
from jasper_ray.embedding.output import Heads, encode_chunk
from jasper_ray.embedding.settings import EmbedSettings, VectorColumn
from jasper_ray.encoders import Encoder
from jasper_ray.encoders.base import known_dim
from jasper_ray.encoders.inference import OpenModel, Sample, open_for_inference, open_model
from jasper_ray.models.tokens import Tokenizing
from jasper_ray.ray_runtime import check_room
from jasper_ray.resources import Pool, Replicas
from jasper_ray.sources.tables import Columns
from jasper_ray.vectors import Dtype, int8_ranges

PLACES = 8
"""Most chunks of the corpus that a sample is taken from."""
COMPARED_TEXTS = 64
"""Texts that are compared with float32."""
RANGE_TEXTS = 2048
"""Texts whose vectors give the ranges of int8."""
LEAST_RANGE_TEXTS = 64
"""Fewest texts that give ranges."""


@dataclass(frozen=True)
class Plan:
    """An embedding with its hardware."""

    settings: EmbedSettings
    """Settings whose `revision` is the commit that every process loads."""
    pool: Replicas
    """Replicas of the model."""
    readers: Pool
    """Processes that read and tokenise."""

    @property
    def columns(self) -> Columns:
        return Columns(self.settings.text_column, self.settings.copied)

    def open(self, precision: Dtype) -> OpenModel:
        """Load the model in a known precision, as a replica does."""
        torch.set_num_threads(self.pool.torch_threads)
        return open_model(self.settings, self.pool.device, precision)

    def open_compared(self, sample: Sample) -> OpenModel:
        """Load the model, and choose its precision on a sample."""
        torch.set_num_threads(self.pool.torch_threads)
        return open_for_inference(self.settings, self.pool.device, sample)


def reserved(*pools: Pool | None) -> tuple[float, float]:
    """Sum up the CPUs and GPUs that pools reserve at once, at least; an open one counts nothing."""
    known = [pool.reserved for pool in pools if pool]
    return sum(cpus for cpus, _ in known), sum(gpus for _, gpus in known)


def plan_on_cluster(settings: EmbedSettings, revision: str | None) -> Plan:
    """Fill in the pools that the settings leave open from the cluster's nodes.

    Raises:
        ConfigError: the cluster, or each of its nodes, is too small.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = ([node.get(name, 0.0) for node in nodes] for name in ("CPU", "GPU"))
    given = settings.pool.model_dump(exclude_unset=True) if settings.pool else {}
    pool = default_pool(cpus, sum(gpus)).model_copy(update=given)
    readers = settings.readers or default_readers(sum(cpus))
    check_room(*reserved(pool, readers))
    if pool.cpus > max(cpus) or pool.gpus > max(gpus):
        raise ConfigError(
            f"a replica of the model reserves {pool.cpus:g} CPUs and {pool.gpus:g} GPUs, and the largest node has "
            f"{max(cpus):g} and {max(gpus):g}; lower --cpus or --gpus"
        )
    return Plan(settings.model_copy(update={"revision": revision}), pool, readers)


def default_pool(cpus: Sequence[float], gpus: float) -> Replicas:
    """Choose a replica per GPU; without GPUs, one per CPU, or per four on large nodes.

    `cpus` are those of each node. A fifth of the CPUs stays unreserved, for reading.
    """
    if gpus >= 1:
        return Replicas(min_size=1, max_size=int(gpus), gpus=1, cpus=1)
    threads = 1 if min((node for node in cpus if node >= 1), default=1) < 8 else 4
    copies = max(1, sum(int(node // threads) for node in cpus))
    return Replicas(min_size=copies, max_size=copies, cpus=0.8 * threads, threads=threads)


def default_readers(cpus: float) -> Pool:
    """Choose two readers, or a quarter of many CPUs."""
    return Pool(max_size=2, cpus=0.2) if cpus < 16 else Pool(max_size=int(cpus // 4), cpus=0.8)


@dataclass(frozen=True)
class Examined:
    """The results of the examination."""

    resolved: Resolved
    tokenizing: bytes
    """Pickled `Tokenizing | None` for the readers: the driver need not load a tokenizer."""
    ranges: dict[int, np.ndarray]
    """`[2, D]` for each size that is stored as int8, unless an earlier call wrote them."""


def examine(plan: Plan, spans: Sequence[Span], before: Resolved | None) -> Examined:
    """Load the model and resolve the settings that are left open; `before` is the resolution of an earlier call.

    Raises:
        ConfigError: the model does not load, or has no such prompt, head or length; the required precision is too
            inexact; there are too few texts for ranges.
    """
    sample = CorpusSample(plan.settings, spans)
    opened = plan.open(before.precision) if before else plan.open_compared(sample.compared)
    columns = columns_of(plan.settings, opened.encoder)
    resolved = before or Resolved(
        prompt=opened.prompt,
        vectors=columns,
        precision=opened.precision,
        agreement=opened.cosine,
        max_length=opened.tokenizing.max_length if opened.tokenizing else 0,
    )
    return Examined(resolved, pickle.dumps(opened.tokenizing), {} if before else find_ranges(sample, opened, columns))


def columns_of(settings: EmbedSettings, encoder: Encoder) -> tuple[VectorColumn, ...]:
    """List the columns of vectors, by default the encoder's default head.

    Raises:
        ConfigError: a size that the model does not have. A student has its heads, another model every prefix.
    """
    columns = settings.vectors or (VectorColumn(dim=encoder.dims[0], dtype=settings.dtype),)
    for column in columns:
        if not (encoder.allows_prefixes and column.dim < encoder.dims[0]):
            known_dim(encoder.dims, column.dim)
    return columns


def find_ranges(sample: CorpusSample, opened: OpenModel, columns: Sequence[VectorColumn]) -> dict[int, np.ndarray]:
    """Find the ranges of each size that is stored as int8."""
    dims = sorted({column.dim for column in columns if column.dtype == "int8"})
    if not dims:
        return {}
    vectors = sample.vectors(opened, dims, RANGE_TEXTS)
    texts = len(vectors[dims[0]])
    if texts < LEAST_RANGE_TEXTS:
        raise ConfigError(
            f"int8 needs the ranges of a sample, and {texts} texts are too few for one; "
            f"begin with at least {LEAST_RANGE_TEXTS}, or choose float16"
        )
    return {dim: int8_ranges(vectors[dim]) for dim in dims}


class CorpusSample:
    """Texts from all over the corpus, the same at every call."""

    def __init__(self, settings: EmbedSettings, spans: Sequence[Span]) -> None:
        self.settings = settings
        self.spans = spans
        self.read: list[Chunk] | None = None

    def compared(self, opened: OpenModel) -> Heads:
        """Compute the vectors that are compared between precisions."""
        dims = [column.dim for column in columns_of(self.settings, opened.encoder)]
        return self.vectors(opened, dims, COMPARED_TEXTS)

    def vectors(self, opened: OpenModel, dims: Sequence[int], texts: int) -> Heads:
        """Compute vectors `[N, D]` of about `texts` texts, equally many from each place; fewer if there are fewer."""
        chunks = self.chunks(opened.tokenizing)
        share = math.ceil(texts / max(1, len(chunks)))
        parts = [
            encode_chunk(chunk._replace(texts=chunk.texts.slice(0, share)), opened, dims).heads for chunk in chunks
        ]
        empty = {dim: np.empty((0, dim), np.float32) for dim in dims}
        return {dim: np.concatenate([empty[dim], *(part[dim] for part in parts)]) for dim in dims}

    def chunks(self, tokenizing: Tokenizing | None) -> list[Chunk]:
        """Read evenly spread chunks that have a text, once."""
        if self.read is None:
            chunks = [chunk for span in spread(self.spans) for chunk in read_chunks(span, self.settings, tokenizing)]
            self.read = [chunk for chunk in chunks if len(chunk.texts)]
        return self.read


def spread(spans: Sequence[Span]) -> list[Span]:
    """Choose at most `PLACES` spans of one chunk each; of a file read from its start only the first chunks."""
    singles = [
        replace(span, chunks=(chunk,))
        for span in spans
        for chunk in (span.chunks[:1] if span.offset else span.chunks[:SPAN_CHUNKS])
    ]
    step = max(1, len(singles) // PLACES)
    return singles[::step][:PLACES]
