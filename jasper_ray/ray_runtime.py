"""Start, join and stop Ray; and all private names of Ray that this project touches.

Each private name has a test that fails on the day it changes.
"""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from operator import attrgetter
from typing import Any

import ray
from ray import cloudpickle
from ray._private import ray_constants, worker
from ray.data import DataContext
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data._internal.execution.operators.map_operator import MapOperator

from jasper_ray.cli import cannot_join, cannot_start, signals_kept, telling
from jasper_ray.config import ConfigError, for_the_user

STARTING_AT_ONCE = 8
"""Processes that a local Ray may start side by side. It warns of four times as many, and its own bound is the number of
processors: a run on a laptop has more processes than that, most of which only wait."""


IDLE_KEPT = 8
"""Processes without work that a local Ray keeps for the next actor or task, which takes two seconds to start anew."""
INLINED_BYTES = 64 << 10
"""Arguments below this travel with a call; Ray's own bound is 100 KiB."""
MANY_PROCESSES = "PYTHON worker processes have been started on node"
"""In the message of a node that has started four times as many processes as it has processors."""

logger = logging.getLogger(__name__)


def start_local_ray(cpus: int) -> None:
    """Start a Ray for this process alone, which counts so many processors."""
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(max(cpus, STARTING_AT_ONCE)))
    os.environ.setdefault("RAY_num_workers_soft_limit", str(max(cpus, IDLE_KEPT)))
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process more; nobody takes this machine away
    # "local", since Ray would otherwise join whatever cluster happens to run on this machine
    start_ray("local", num_cpus=cpus, include_dashboard=False)


def start_ray(address: str, **options: Any) -> None:
    """`ray.init`, without its lines, and with the program's own handlers of Ctrl-C and SIGTERM after it.

    Ray's core would handle SIGTERM in C++ here: print a stack and die, and as soon as it shuts down die at once. The
    setting stands in a variable of the environment too, but that would also reach the workers, whose logs need stacks.
    """
    ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
    worker.print_to_stdstream = log_message
    try:
        with signals_kept():
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except SystemExit:  # by Ray's handler of SIGTERM, which is in place while it starts
        signal.raise_signal(signal.SIGTERM)
        raise


def log_message(message: Mapping[str, Any], ignore_prefix: bool) -> None:
    """Log what Ray's daemons have to say to a driver, such as that memory ran out; Ray would print it on stdout. That
    many processes run on a node is no news: actors with fractions of processors are how runs are made."""
    for line in message["lines"]:
        if MANY_PROCESSES not in line:
            logger.warning("Ray: %s", line.strip())


def stop_ray() -> None:
    """`ray.shutdown`, which a second Ctrl-C or SIGTERM does not interrupt: processes would be left behind."""
    with signals_kept(ignored_meanwhile=True):
        ray.shutdown(wait_for_processes=True)


def hand_over_by_value() -> None:
    """Let the actors of Ray Data's pools get small constructor arguments by value.

    Ray Data passes references to objects in the store, without which a lost actor cannot be built again; Ray's core
    warns of that in every run. Large values go into the store either way, and would be forgotten once an actor has
    started: these keep Ray Data's reference, which lives as long as the pool.
    """
    for name, value in (("_data_context_ref", "data_context"), ("_map_transformer_ref", "_map_transformer")):
        handed = cached_property(partial(small_or_held, attrgetter(value), MapOperator.__dict__[name].func))
        handed.__set_name__(ActorPoolMapOperator, name)  # as Python does where a class defines it
        setattr(ActorPoolMapOperator, name, handed)


def small_or_held(value: Callable[[Any], Any], held: Callable[[Any], Any], operator: Any) -> Any:
    """What an operator hands to its actors: a value, or where that is large a reference that the operator holds."""
    return value(operator) if len(cloudpickle.dumps(value(operator))) < INLINED_BYTES else held(operator)


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
