"""Ray for a run: joined where there is one, started inside this process where there is none."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.data import DataContext

from jasper_ray.command import cannot_join, cannot_start
from jasper_ray.config import ConfigError, for_the_user
from jasper_ray.ray_runtime import hand_over_by_value, start_local_ray, start_ray, stop_ray
from jasper_ray.waiting import telling

logger = logging.getLogger(__name__)


@contextmanager
def ray_session(cpus: float, gpus: float) -> Iterator[None]:
    """A Ray in which `cpus` and `gpus` can be reserved at once.

    A program that has joined a Ray already stays in it. RAY_ADDRESS (which `ray job submit` sets) names a running
    cluster; without it one is started for this process alone, and ends with it. A local Ray counts as many processors
    as the reservations need: on a laptop they order the work, and the operating system shares the cores.

    Raises:
        ConfigError: there is no Ray at RAY_ADDRESS, or too small a one, which would be waited for in vain.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)  # its hints are for its own developers; errors stay
    joined_before = ray.is_initialized()
    if joined_before:
        logger.info("staying in the Ray that this program has joined")
    else:
        join_or_start(cpus)
    try:
        check_room(cpus, gpus)
        set_up_data(DataContext.get_current())
        with plain_errors():
            yield
    finally:
        if not joined_before:
            stop_ray()


def join_or_start(cpus: float) -> None:
    """Join the Ray at RAY_ADDRESS, or start one for this process alone.

    Raises:
        ConfigError: neither succeeds.
    """
    address = os.environ.get("RAY_ADDRESS")
    what = f"joining Ray at {address}" if address else "starting a local Ray"
    logger.info("%s", what)
    try:
        with telling(what):
            if address:
                start_ray(address)
            else:
                start_local_ray(max(os.cpu_count() or 1, round(cpus + 1)))
    except Exception as error:
        raise (cannot_join(address, error) if address else cannot_start(error)) from error
    # DeepSpeed, which transformers may import to save a model, prints what it finds; this process trains nothing.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


def own_device() -> str | None:
    """Where a model goes in this task or actor: on a processor if it reserved no GPU, although it may see those that
    others reserved; None leaves it to the model."""
    return "cpu" if ray.is_initialized() and not ray.get_gpu_ids() else None


@contextmanager
def plain_errors() -> Iterator[None]:
    """A `ConfigError` that a worker raised, as it was said there: without Ray's wrappers and their tracebacks."""
    try:
        yield
    except Exception as error:
        told = for_the_user(error)
        if told is None:
            raise
        raise ConfigError(told) from error


def check_room(cpus: float, gpus: float) -> None:
    """Refuse a cluster that can never run the job."""
    found = ray.cluster_resources()
    for name, needed in (("CPU", cpus), ("GPU", gpus)):
        if needed > found.get(name, 0.0) + 1e-6:
            raise ConfigError(
                f"{needed:g} {name}s would be reserved at once, but the cluster has {found.get(name, 0.0):g}; "
                "lower pools, workers, or their cpus or gpus, or add machines"
            )


def set_up_data(context: DataContext) -> None:
    """How Ray Data behaves in a run.

    Our own lines tell how far it is; Ray Data's bars and hints would tear them apart. Errors of our functions reach
    the driver as they are: the wrapper that Ray Data puts around them loses what they said on its way.
    """
    hand_over_by_value()
    context.raise_original_map_exception = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []
    warnings.filterwarnings("ignore", "The m..imum number of concurrent", UserWarning)  # small data leave actors idle
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
