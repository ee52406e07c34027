"""The plan of an embedding: settings with nothing left open, and the replicas on the cluster at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ray
import torch

from jasper_ray.config import ConfigError
from jasper_ray.embedding.settings import EmbedSettings
from jasper_ray.encoders.inference import OpenModel, Sample, open_for_inference, open_model
from jasper_ray.ray_runtime import check_room
from jasper_ray.resources import Pool, Replicas
from jasper_ray.sources.tables import Columns
from jasper_ray.vectors import Dtype


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
        """Columns that are read."""
        return Columns(self.settings.text_column, self.settings.copied)

    def open(self, precision: Dtype) -> OpenModel:
        """Load the model in a known precision, as a replica does."""
        torch.set_num_threads(self.pool.torch_threads)
        return open_model(self.settings, self.pool.device, precision)

    def open_compared(self, sample: Sample) -> OpenModel:
        """Load the model, and choose its precision on a sample."""
        torch.set_num_threads(self.pool.torch_threads)
        return open_for_inference(self.settings, self.pool.device, sample)


def reserved(settings: EmbedSettings) -> tuple[float, float]:
    """Sum up the CPUs and GPUs of the pools that the settings describe."""
    return together([pool for pool in (settings.pool, settings.readers) if pool])


def together(pools: Sequence[Pool]) -> tuple[float, float]:
    """Sum up the CPUs and GPUs that pools reserve at once, at least."""
    return sum(pool.reserved[0] for pool in pools), sum(pool.reserved[1] for pool in pools)


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
    check_room(*together([pool, readers]))
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
