"""What an embedding runs on: how many copies of the model, how many readers, for the cluster at hand."""

from __future__ import annotations

from collections.abc import Sequence

import ray

from jasper_ray.config import ConfigError
from jasper_ray.embedding import EmbedSettings
from jasper_ray.ray_runtime import check_room
from jasper_ray.resources import ActorPool, Pool


def needs(settings: EmbedSettings) -> tuple[float, float]:
    """Processors and GPUs that are reserved at once, at least, as far as it was said."""
    pool, readers = settings.pool or ActorPool(cpus=0), settings.readers or Pool(cpus=0)
    return pool.min_size * pool.cpus + readers.min_size * readers.cpus, pool.min_size * pool.gpus


def with_pools(settings: EmbedSettings) -> EmbedSettings:
    """The settings with pools for the cluster at hand, as far as they do not say themselves.

    Raises:
        ConfigError: the cluster, or each of its nodes, is too small.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = ([node.get(name, 0.0) for node in nodes] for name in ("CPU", "GPU"))
    usual = default_pool(cpus, sum(gpus))
    said = {name: getattr(settings.pool, name) for name in settings.pool.model_fields_set} if settings.pool else {}
    pool = usual.model_copy(update=said)
    readers = settings.readers or default_readers(sum(cpus))
    settings = settings.model_copy(update={"pool": pool, "readers": readers})
    check_room(*needs(settings))
    if pool.cpus > max(cpus) or pool.gpus > max(gpus):
        raise ConfigError(
            f"a copy of the model reserves {pool.cpus:g} CPUs and {pool.gpus:g} GPUs, and the largest node has "
            f"{max(cpus):g} and {max(gpus):g}; lower --cpus or --gpus"
        )
    return settings


def default_pool(cpus: Sequence[float], gpus: float) -> ActorPool:
    """A copy of the model on every GPU; without GPUs a copy for one or for four processors, as nodes have few or many.

    A fifth of the processors is left unreserved, for reading. `cpus` are those of each node.
    """
    if gpus >= 1:
        return ActorPool(min_size=1, max_size=int(gpus), gpus=1, cpus=1)
    threads = 1 if min((node for node in cpus if node >= 1), default=1) < 8 else 4
    copies = max(1, sum(int(node // threads) for node in cpus))
    return ActorPool(min_size=copies, max_size=copies, cpus=0.8 * threads, threads=threads)


def default_readers(cpus: float) -> Pool:
    """Two processes beside a few processors; of many, up to a quarter reads and tokenises."""
    return Pool(max_size=2, cpus=0.2) if cpus < 16 else Pool(max_size=int(cpus // 4), cpus=0.8)
