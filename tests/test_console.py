"""What a person sees of a run: only lines of ours, never ten seconds without one, one sentence when it is stopped."""

from __future__ import annotations

import inspect
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import IO

import psutil
import pytest
import yaml
from ray._private import worker
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data._internal.execution.operators.map_operator import MapOperator
from ray.train.torch import TorchTrainer
from small_run import recipe_values, stage, title

from jasper_ray import cli, ray_runtime
from jasper_ray.evaluation import load
from jasper_ray.evaluation.report import render
from jasper_ray.training.job import latest_step

ROOT = Path(__file__).resolve().parent.parent
STOPPED = "stopped by SIGTERM; run the same command again to continue"
OURS = re.compile(r"\d\d:\d\d:\d\d  jasper_ray[.\w]*  \S.*")

NAMING = """
import logging, runpy, sys
logging.basicConfig(level=logging.WARNING, format="%(asctime)s  %(name)s  %(message)s", datefmt="%H:%M:%S")
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a command whose lines also name the logger that they come from."""


@dataclass
class Watched:
    """A process, its lines as they came, and the processes below it with what they called themselves."""

    process: subprocess.Popen[str]
    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    below: dict[psutil.Process, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.process.stdout
        assert self.process.stderr
        pipes = ((self.process.stdout, self.out), (self.process.stderr, self.err))
        self.readers = [threading.Thread(target=self.read, args=pair, daemon=True) for pair in pipes]
        for reader in self.readers:
            reader.start()

    def read(self, pipe: IO[str], lines: list[str]) -> None:
        for line in pipe:
            self.times.append(time.monotonic())
            lines.append(line.rstrip("\n"))

    def look_below(self) -> None:
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.below = {child: title(child) for child in children}

    def wait(self) -> int:
        code = self.process.wait(timeout=400)
        for reader in self.readers:
            reader.join(timeout=30)
        return code

    def alive(self) -> list[str]:
        """What still runs of the processes below it, a few seconds after its end."""
        _, alive = psutil.wait_procs(list(self.below), timeout=5)
        return [title(process) for process in alive if title(process)]


def watch(folder: Path) -> Watched:
    run = [str(ROOT / "jobs" / "distill.py"), str(folder / "recipe.yaml"), "--run", str(folder / "run")]
    pipe = subprocess.PIPE
    return Watched(
        subprocess.Popen([sys.executable, "-c", NAMING, *run], cwd=folder, text=True, stdout=pipe, stderr=pipe)
    )


@dataclass
class Runs:
    """A run that SIGTERM stopped in its stage, and the same command again."""

    folder: Path
    stopped: Watched
    step: int
    """Of the newest checkpoint when it had stopped."""
    finished: Watched


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("console")
    values = recipe_values(folder, stage("only", steps=40, checkpoint_every=10))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    stopped = watch(folder)
    while not list(folder.glob("run/stages/1-only-*/checkpoints/step-*/state.json")):
        assert stopped.process.poll() is None, stopped.err
        time.sleep(0.1)
    stopped.look_below()
    stopped.process.send_signal(signal.SIGTERM)
    time.sleep(1)
    stopped.process.send_signal(signal.SIGTERM)  # by now it cleans up, which nothing interrupts
    stopped.wait()
    (checkpoints,) = folder.glob("run/stages/1-only-*/checkpoints")
    step = latest_step(checkpoints)
    finished = watch(folder)
    finished.wait()
    return Runs(folder, stopped, step, finished)


def foreign(lines: Iterable[str]) -> list[str]:
    """The lines that none of our loggers wrote."""
    return [line for line in lines if not OURS.fullmatch(line)]


@pytest.mark.slow
def test_sigterm_in_a_stage_ends_with_one_sentence_and_leaves_nothing_behind(runs: Runs) -> None:
    assert runs.stopped.process.returncode == 143
    assert runs.stopped.err[-1] == STOPPED
    assert foreign(runs.stopped.err[:-1]) == runs.stopped.out == []
    assert any("RayTrainWorker" in name for name in runs.stopped.below.values())
    assert runs.stopped.alive() == []


@pytest.mark.slow
def test_the_same_command_continues_after_sigterm(runs: Runs) -> None:
    assert runs.finished.process.returncode == 0, runs.finished.err
    assert 10 <= runs.step < 40, "the stage had ended before it was stopped"
    (log,) = runs.folder.glob("run/stages/1-only-*/metrics.jsonl")
    steps = [json.loads(line)["step"] for line in log.read_text(encoding="utf-8").splitlines()]
    assert steps == list(range(40))


@pytest.mark.slow
def test_every_line_of_a_run_is_ours(runs: Runs) -> None:
    assert runs.finished.err
    assert foreign(runs.finished.err) == []
    table = render(load(runs.folder / "run" / "evaluation.json"))
    last = f"The student is in {runs.folder / 'run' / 'student'}"
    assert runs.finished.out == [*table.splitlines(), "", last]


@pytest.mark.slow
def test_no_ten_seconds_pass_without_a_line(runs: Runs) -> None:
    times = sorted(runs.finished.times)
    assert max(later - earlier for earlier, later in pairwise(times)) < 10


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
        with cli.signals_kept(ignored_meanwhile=True):
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
    with cli.signals_kept():
        for number in cli.STOPS:
            signal.signal(number, signal.SIG_IGN)
    assert [signal.getsignal(number) for number in cli.STOPS] == before


def test_ray_has_the_private_names_that_are_replaced() -> None:
    start = inspect.getsource(ActorPoolMapOperator._start_actor)
    for name in ("_data_context_ref", "_map_transformer_ref"):
        assert isinstance(MapOperator.__dict__[name], cached_property)
        assert f"=self.{name}" in start
    assert "print_to_stdstream(" in inspect.getsource(worker.listen_error_messages)
    assert "_register_sigint_handler(controller)" in inspect.getsource(TorchTrainer._initialize_and_run_controller)


def test_what_rays_daemons_say_is_logged_but_for_what_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    many = "WARNING: 8 PYTHON worker processes have been started on node: 4dac with address: 192.0.2.2, which is 4x"
    ray_runtime.log_message({"lines": [many, "a worker was killed, for memory ran out\n"]}, ignore_prefix=False)
    assert caplog.messages == ["Ray: a worker was killed, for memory ran out"]


def test_another_thread_than_the_main_one_leaves_signals_alone() -> None:
    before = [signal.getsignal(number) for number in cli.STOPS]
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(ignoring_signals).result() == before
    assert [signal.getsignal(number) for number in cli.STOPS] == before


def ignoring_signals() -> list[object]:
    with cli.signals_kept(ignored_meanwhile=True):
        return [signal.getsignal(number) for number in cli.STOPS]
