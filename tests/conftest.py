"""Shared fixtures: one local Ray for all tests that do not start their own, and a small run on it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

if TYPE_CHECKING:
    from small_run import SmallRun

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the processors: read before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

LONGEST = ("test_running_server", "test_embedding_job", "test_distill", "test_benchmarks", "test_cluster")
"""The files that take longest: begun first, neither of two processes waits for the other at the end."""
TESTS = [str(folder) for folder in Path(__file__).parent.iterdir() if folder.is_dir()]
"""Folders in which workers find what tests have defined."""


class SharedRay:
    """A local Ray in this process: started when a test first asks for it, stopped where a test starts its own."""

    def __init__(self) -> None:
        self.running = ExitStack()
        self.is_running = False

    def start(self) -> None:
        """Start it unless it runs."""
        if self.is_running:
            return
        import ray

        from jasper_ray.ray_runtime import ray_session

        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        with patch.dict(os.environ, PYTHONPATH=os.pathsep.join([*TESTS, *os.environ.get("PYTHONPATH", "").split()])):
            ray.init("local", num_cpus=4, object_store_memory=256 << 20, **quiet)
        self.is_running = True
        self.running.callback(ray.shutdown)
        self.running.enter_context(ray_session(cpus=4, gpus=0))

    def stop(self) -> None:
        """Stop it if it runs; the next test that asks gets another."""
        self.running.close()
        self.is_running = False


RAY = SharedRay()


@pytest.fixture(scope="session")
def shared_ray() -> None:
    """A running Ray of four CPUs."""


@pytest.fixture
def no_ray() -> None:
    """No running Ray in this process: a test of a command that must not start one can tell."""
    RAY.stop()


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """A corpus, its target in a cache, and a student before training; tests write to its `stages` alone."""
    from small_run import SmallRun

    return SmallRun(tmp_path_factory.mktemp("small"))


def uses_shared_ray(item: pytest.Item) -> bool:
    return "shared_ray" in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the longest files to the front where processes share the tests, and tests on the shared Ray to the end of
    what a process runs: those before them may start a Ray of their own."""
    shares = "PYTEST_XDIST_WORKER" in os.environ
    rank = {file: place for place, file in enumerate(LONGEST)} if shares else {}
    items.sort(key=lambda item: (rank.get(item.path.stem, len(LONGEST)), uses_shared_ray(item)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Whatever the order: who asks for the shared Ray has it, and who may start another finds none in this process."""
    if uses_shared_ray(item):
        RAY.start()
    elif item.get_closest_marker("slow"):
        RAY.stop()


def pytest_sessionfinish() -> None:
    RAY.stop()
