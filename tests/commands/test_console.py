"""What a person sees of a run: only lines of ours, never ten seconds without one, one sentence when it is stopped."""

from __future__ import annotations

import inspect
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import pytest
import ray
from ray._private import ray_constants, worker
from ray.data import DataContext
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data._internal.execution.operators.map_operator import MapOperator
from ray.data._internal.execution.operators.task_pool_map_operator import TaskPoolMapOperator
from ray.train.torch import TorchTrainer
from ray.train.v2._internal import constants
from watching import foreign

from jasper_ray import cli, ray_runtime


@pytest.mark.parametrize(
    "line",
    [
        "(raylet) WARNING: 8 PYTHON worker processes have been started on node",
        "[2026-01-01 00:00:00,000 E 1 1] core_worker.cc:2146: Actor with class name: 'MapWorker(MapBatches(A))'",
        "12:00:00  transformers.modeling_utils  Some weights were not used",
        "12:00:00  jasper_ray.distill",
        "  warnings.warn(",
        "",
    ],
)
def test_a_line_of_another_is_told_from_ours(line: str) -> None:
    ours = "12:00:00  jasper_ray.distill  starting a local Ray"
    assert foreign([ours, line, ours]) == [line]


STOPPED_TWICE = """
import os, signal, sys, time
from jasper_ray import ray_runtime
from jasper_ray import cli

def main():
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(60)
    finally:
        with cli.signal_handlers_restored(ignored_meanwhile=True):
            os.kill(os.getpid(), int(sys.argv[1]))
            print("cleaned up")

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs lack
cli.run(main, continues=True)
"""


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)])
def test_a_command_that_is_stopped_cleans_up_and_says_how_to_continue(number: int, name: str, code: int) -> None:
    stopped = [sys.executable, "-c", STOPPED_TWICE, str(int(number))]
    done = subprocess.run(stopped, text=True, capture_output=True, timeout=60)
    said = f"stopped by {name}; run the same command again to continue\n"
    assert (done.returncode, done.stdout, done.stderr) == (code, "cleaned up\n", said)


def test_handlers_are_as_before_after_ray_has_set_its_own() -> None:
    before = [signal.getsignal(number) for number in cli.STOPS]
    with cli.signal_handlers_restored():
        for number in cli.STOPS:
            signal.signal(number, signal.SIG_IGN)
    assert [signal.getsignal(number) for number in cli.STOPS] == before


def test_ray_has_the_private_names_that_are_replaced() -> None:
    start = inspect.getsource(ActorPoolMapOperator._start_actor)
    for name in ("_data_context_ref", "_map_transformer_ref"):
        assert isinstance(MapOperator.__dict__[name], cached_property)
        assert f"=self.{name}" in start
    assert "print_to_stdstream(" in inspect.getsource(worker.listen_error_messages)
    assert ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER in (True, False)
    assert constants.ENABLE_PREEMPTION_WATCHER_ENV_VAR == "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
    assert DataContext.get_current().issue_detectors_config.detectors is not None
    assert "The maximum number of concurrent" in inspect.getsource(TaskPoolMapOperator)
    assert "_register_sigint_handler(controller)" in inspect.getsource(TorchTrainer._initialize_and_run_controller)


def test_rays_daemons_know_the_names_and_the_warning() -> None:
    daemon = (Path(ray.__file__).parent / "core" / "src" / "ray" / "raylet" / "raylet").read_bytes()
    for name in ("worker_maximum_startup_concurrency", "num_workers_soft_limit"):
        assert name.encode() in daemon
    assert ray_runtime.INTENDED[0].partition(" ")[2].encode() in daemon


def test_what_rays_daemons_say_is_logged_but_for_what_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    many = "WARNING: 8 PYTHON worker processes have been started on node: 4dac with address: 192.0.2.2, which is 4x"
    ended = "Task ServeController.graceful_shutdown failed. There are infinite retries remaining"
    ray_runtime.log_message({"lines": [many, ended, "a worker was killed, for memory ran out\n"]}, ignore_prefix=False)
    assert caplog.messages == ["Ray: a worker was killed, for memory ran out"]


def test_another_thread_than_the_main_one_leaves_signals_alone() -> None:
    before = [signal.getsignal(number) for number in cli.STOPS]
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(ignoring_signals).result() == before
    assert [signal.getsignal(number) for number in cli.STOPS] == before


def ignoring_signals() -> list[object]:
    with cli.signal_handlers_restored(ignored_meanwhile=True):
        return [signal.getsignal(number) for number in cli.STOPS]
