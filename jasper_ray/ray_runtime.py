"""Start, join and stop Ray; and the private names of Ray that this project touches.

Serve's are in `serving.ray_serve`. Each private name has a test that fails when Ray changes it. Ray Data is imported
only where it is used, since a server runs without its dependencies.
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
from typing import TYPE_CHECKING, Any

import ray
from ray import cloudpickle
from ray._private import ray_constants, worker

from jasper_ray.cli import log_progress, signal_handlers_restored
from jasper_ray.config import ConfigError, config_message, first_line

if TYPE_CHECKING:
    from ray.data import DataContext, Dataset, TaskPoolStrategy

logger = logging.getLogger(__name__)

LOCAL_PROCESSES = 8
"""Processes that a local Ray may start at once, and keeps when idle. Its own bound is the number of CPUs: a run
on a laptop has more processes, most of which only wait, and a new one takes two seconds to start."""

INLINED_BYTES = 64 << 10
"""Arguments below this size travel with a call; Ray's own bound is 100 KiB."""

INTENDED = ("PYTHON worker processes have been started on node", "ServeController.graceful_shutdown failed")
"""Parts of warnings that are not logged: actors that reserve fractions of a CPU make a node start more processes than
four for each CPU, and a server that ends kills its controller."""


@contextmanager
def ray_session(cpus: float, gpus: float) -> Iterator[None]:
    """Join or start a Ray in which `cpus` and `gpus` can be reserved at once.

    A process that is connected to a Ray keeps it. RAY_ADDRESS (set by `ray job submit`) names a running cluster;
    without it a local Ray starts for this process, and ends with it. A local Ray counts as many CPUs as the job
    reserves, plus one for its other tasks, even if the machine has fewer: it only runs slower.

    Raises:
        ConfigError: no Ray can be joined or started, it is too small, or a worker raised a ConfigError.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)  # its hints are for its own developers
    joined_before = ray.is_initialized()
    if joined_before:
        logger.info("using the Ray that this process is connected to")
    else:
        join_or_start(cpus)
    try:
        from ray.data import DataContext

        check_room(cpus, gpus)
        configure_data(DataContext.get_current())
        with plain_errors():
            yield
    finally:
        if not joined_before:
            stop_ray()


def starts_ray() -> bool:
    """Tell whether a session that begins now starts a Ray on this machine, instead of joining one."""
    return not ray.is_initialized() and not os.environ.get("RAY_ADDRESS")


def join_or_start(cpus: float) -> None:
    """Join the Ray at RAY_ADDRESS, or start one for this process.

    Raises:
        ConfigError: it failed.
    """
    address = os.environ.get("RAY_ADDRESS")
    what = f"joining Ray at {address}" if address else "starting a local Ray"
    logger.info("%s", what)
    try:
        with log_progress(what):
            if address:
                start_ray(address)
            else:
                start_local_ray(max(os.cpu_count() or 1, round(cpus + 1)))
    except Exception as error:
        if address:
            raise ConfigError(
                f"cannot join the Ray at {address} ({first_line(error)}); start it, or fix or unset RAY_ADDRESS; "
                "if it requires a token, set RAY_AUTH_MODE=token"
            ) from error
        raise ConfigError(
            f"a local Ray did not start ({first_line(error)}); its logs are in /tmp/ray/session_latest/logs; "
            "if the machine is busy, run the same command again later"
        ) from error
    # DeepSpeed, which transformers may import to save a model, prints the devices it finds; none is used here.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


def start_local_ray(cpus: int) -> None:
    """Start a Ray with `cpus` CPUs for this process."""
    processes = str(max(cpus, LOCAL_PROCESSES))
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", processes)
    os.environ.setdefault("RAY_num_workers_soft_limit", processes)
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # saves a process: no one preempts this machine
    # "local", since Ray would otherwise join any cluster that runs on this machine
    start_ray("local", num_cpus=cpus, include_dashboard=False)


def start_ray(address: str, **options: Any) -> None:
    """Call `ray.init` without its output, and keep the program's handlers of Ctrl-C and SIGTERM.

    Ray's core would handle SIGTERM in C++: print a stack and die, even while it shuts down. The environment variable of
    the same name would also reach the workers, whose logs need stacks.
    """
    ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
    worker.print_to_stdstream = log_message
    try:
        with signal_handlers_restored():
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except SystemExit:  # raised by Ray's handler of SIGTERM, which is active while it starts
        signal.raise_signal(signal.SIGTERM)
        raise


def log_message(message: Mapping[str, Any], ignore_prefix: bool) -> None:
    """Log the messages of Ray's daemons to a driver, such as "out of memory", which Ray would print on stdout."""
    for line in message["lines"]:
        if not any(part in line for part in INTENDED):
            logger.warning("Ray: %s", line.strip())


def stop_ray() -> None:
    """Call `ray.shutdown`, which no second Ctrl-C or SIGTERM interrupts: it would leave processes behind."""
    with signal_handlers_restored(ignored_meanwhile=True):
        ray.shutdown(wait_for_processes=True)


def check_room(cpus: float, gpus: float, settings: str = "pools, workers, or their cpus or gpus") -> None:
    """Refuse a cluster that can never run the job; `settings` names what the user can lower.

    Raises:
        ConfigError: it has too few CPUs or GPUs.
    """
    resources = ray.cluster_resources()
    for name, needed in (("CPU", cpus), ("GPU", gpus)):
        if needed > resources.get(name, 0.0) + 1e-6:
            raise ConfigError(
                f"{needed:g} {name}s would be reserved at once, but the cluster has {resources.get(name, 0.0):g}; "
                f"lower {settings}, or add machines"
            )


def own_device() -> str | None:
    """Return the device of a model in this task or actor: "cpu" if it reserved no GPU, as it may see those of others.

    None lets the model choose.
    """
    return "cpu" if ray.is_initialized() and not ray.get_gpu_ids() else None


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise the `ConfigError` of a worker with its own message, without Ray's wrappers and their tracebacks."""
    try:
        yield
    except Exception as error:
        message = config_message(error)
        if message is None:
            raise
        raise ConfigError(message) from error


def configure_data(context: DataContext) -> None:
    """Configure Ray Data for a run.

    Its progress bars and hints would tear our log lines. Errors of our functions reach the driver unwrapped, since Ray
    Data's wrapper loses their message.
    """
    pass_small_arguments_by_value()
    context.raise_original_map_exception = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []
    warnings.filterwarnings("ignore", "The m..imum number of concurrent", UserWarning)  # small data leave actors idle
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


def pass_small_arguments_by_value() -> None:
    """Let the actors of Ray Data's pools receive small constructor arguments by value.

    Ray Data passes references to objects in the store, and Ray's core warns in every run that such an actor cannot be
    rebuilt once the objects are lost. Large values are stored either way, and would be freed once an actor has started:
    they keep Ray Data's reference, which lives as long as the pool.
    """
    from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
    from ray.data._internal.execution.operators.map_operator import MapOperator

    for name, value in (("_data_context_ref", "data_context"), ("_map_transformer_ref", "_map_transformer")):
        handed = cached_property(partial(value_or_reference, attrgetter(value), MapOperator.__dict__[name].func))
        handed.__set_name__(ActorPoolMapOperator, name)  # as Python does in the body of a class
        setattr(ActorPoolMapOperator, name, handed)


def value_or_reference(value: Callable[[Any], Any], reference: Callable[[Any], Any], operator: Any) -> Any:
    """Return an operator's argument for its actors: a small value itself, else the operator's reference to it."""
    small = len(cloudpickle.dumps(value(operator))) < INLINED_BYTES
    return value(operator) if small else reference(operator)


def repartition_with(dataset: Dataset, block_rows: int, num_cpus: float, compute: TaskPoolStrategy) -> Dataset:
    """Cut a dataset into blocks of exactly `block_rows`, in order, by tasks of a pool that reserve `num_cpus` each.

    Ray's own repartition reserves a whole processor a task, runs as many tasks as blocks wait, and has no setting for
    either. On a machine that teachers and trainers fill, it would run only after the last teacher; were only the
    reservation lowered, a process would start for every waiting block. So both are set on its logical operator. Ray
    2.64 removes `ray_remote_args` from its calls in favour of named ones such as `num_cpus`; if the operator's field
    goes too, set the one that replaces it.
    """
    blocks = dataset.repartition(target_num_rows_per_block=block_rows, strict=True)
    operator = blocks._logical_plan.dag
    operator.ray_remote_args["num_cpus"] = num_cpus
    object.__setattr__(operator, "compute", compute)  # a frozen dataclass
    return blocks


def fit_trainer(trainer: Any) -> None:
    """Call `fit` of a Ray Train trainer; Ctrl-C ends its workers and is raised.

    Ray Train's own handler of Ctrl-C, which is replaced here, ends the program with exit code 0.
    """
    controllers: list[Any] = []
    trainer._register_sigint_handler = controllers.append
    try:
        trainer.fit()
    except BaseException:
        for controller in controllers:
            ray.kill(controller)
        raise
