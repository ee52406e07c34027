"""Ray's start and end in a program of ours, and the private names of Ray that this takes.

Each private name has a test that fails on the day it changes.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from operator import attrgetter
from typing import Any

import ray
from ray import cloudpickle
from ray._private import ray_constants, worker
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data._internal.execution.operators.map_operator import MapOperator

from jasper_ray.command import signals_kept

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
