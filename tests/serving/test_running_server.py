"""The server on Ray: replicas die, are replaced, updated and added under load, without a failed request."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import psutil
import pytest
import ray
from ray import serve
from running_server import PATIENCE_S, command_running, wait_for
from small_run import title
from small_student import small_student
from test_fuzz import BODIES, LINE, speak, status

from jasper_ray import load_student
from jasper_ray.serving.deployment import build_app
from jasper_ray.serving.ray_serve import free_ports
from jasper_ray.serving.run import APP, serve_session, start
from jasper_ray.serving.settings import ServeSettings

pytestmark = pytest.mark.slow

TEXTS = [f"a sentence about number {number}, and another word" for number in range(16)]


def settings_for(model: Path, **copies: Any) -> ServeSettings:
    copies = {"min": 2, "max": 2, "cpus": 0.5, **copies}
    values = {"model": str(model), "name": "small", "open": True, "precision": "float32", "threads": 1}
    return ServeSettings.model_validate({**values, "copies": copies})


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_student(tmp_path_factory.mktemp("first") / "student", seed=1)


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_student(tmp_path_factory.mktemp("second") / "student", seed=2)


@pytest.fixture(scope="module")
def address(student: Path) -> Iterator[str]:
    """A server of two replicas."""
    (port,) = free_ports(1)
    settings = settings_for(student)
    with serve_session(settings, port):
        start(settings, "127.0.0.1", port)
        yield f"http://127.0.0.1:{port}"


def measured(address: str) -> set[str]:
    """Return the replicas on the page of metrics."""
    page = httpx.get(f"{address}/metrics", timeout=30).text
    return set(re.findall(r'jasper_ray_queue_tokens\{replica="(\w+)"', page))


class Asked(collections.Counter[str]):
    """Counts of the answers to clients that ask without pause: by model, and failures."""

    vectors: dict[str, np.ndarray]


@contextmanager
def asking(address: str, clients: int = 4) -> Iterator[Asked]:
    """Run OpenAI's clients, which retry by default, until the block ends."""
    asked, stop, lock = Asked(), threading.Event(), threading.Lock()
    asked.vectors = {}

    def ask(number: int) -> None:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=5, timeout=60)
        while not stop.is_set():
            try:
                answer = client.embeddings.with_raw_response.create(model="small", input=TEXTS)
                told = answer.headers["x-jasper-model"]
                vectors = np.array([one.embedding for one in answer.parse().data])
                with lock:
                    asked[told] += 1
                    seen = asked.vectors.setdefault(told, vectors)
                assert np.abs(seen - vectors).max() < 1e-5
            except Exception as error:
                with lock:
                    asked[f"failed: {type(error).__name__} {error}"[:200]] += 1

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield asked
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=60)


def failures(asked: Asked) -> list[str]:
    return [name for name in asked if name.startswith("failed")]


def replicas() -> list[psutil.Process]:
    """Find the processes of the server's replicas."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] == [f"ray::ServeReplica:{APP}:Server"]:
                found.append(process)
    return found


def test_no_header_breaks_it_and_the_log_tells_of_requests_and_no_texts(address: str) -> None:
    for name in ("x-request-id", "x-request-timeout-seconds", "x-session-id", "serve-multiplexed-model-id"):
        answer = httpx.post(
            f"{address}/embed", json={"inputs": "a secret of mine"}, headers={name.encode(): b"\xff"}, timeout=60
        )
        assert answer.status_code == 200, name
    assert httpx.post(f"{address}/embed/", json={}, headers={"host": "elsewhere"}).status_code == 404
    logs = Path("/tmp/ray", ray.get_runtime_context().get_session_name(), "logs", "serve")
    lines = "".join(path.read_text() for path in logs.glob(f"replica_{APP}_Server_*"))
    assert '"route": "/embed", "status": 200, "key": "everyone"' in lines
    assert "a secret" not in lines


def test_requests_of_any_kind_are_answered_behind_haproxy_too(address: str) -> None:
    for name, body in BODIES.items():
        told = httpx.post(f"{address}/embed", content=body, timeout=60)
        assert told.status_code in (200, 400, 413), name
        assert told.status_code == 200 or told.json()["error"]["message"], name
    for name, (sent, expected) in LINE.items():
        assert status(speak(address, sent)) in expected, name
    assert httpx.get(f"{address}/health").status_code == 200


def test_the_command_answers_and_leaves_nothing_behind(student: Path) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "jobs/serve.py", "--model", str(student), "--port", str(port), "--precision", "float32"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_SERVE_")}
    home, pipe = Path(__file__).parents[2], subprocess.PIPE
    with command_running(command, cwd=home, env=own, stdout=pipe, stderr=pipe) as process:
        assert process.stdout
        assert process.stderr
        told: list[str] = []
        while not told or (told[-1] and "answers at" not in told[-1]):
            told.append(process.stderr.readline())
        assert f"http://127.0.0.1:{port}/" in told[-1], told
        family = psutil.Process(process.pid).children(recursive=True)
        assert any("haproxy" in title(one) for one in family)
        assert httpx.get(f"http://127.0.0.1:{port}/health").json() == {"status": "ok"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert process.stdout.read() == ""
    assert psutil.wait_procs(family, 30)[1] == []


def running() -> int:
    states = serve.status().applications[APP].deployments["Server"].replica_states
    return int(states.get("RUNNING", 0))


def test_a_killed_replica_is_replaced_and_no_client_sees_it(address: str, student: Path) -> None:
    with asking(address) as asked:
        wait_for(lambda: asked.total() > 10)
        victim = replicas()[0]
        victim.kill()
        wait_for(lambda: running() < 2)
        wait_for(lambda: running() == 2)
        before = asked.total()
        wait_for(lambda: asked.total() > before + 10)
    assert failures(asked) == []
    expected = load_student(student).encode(TEXTS)
    for vectors in asked.vectors.values():
        assert np.abs(vectors - expected).max() < 1e-4


def test_a_rolling_update_fails_no_request_and_mixes_no_models(address: str, student: Path, another: Path) -> None:
    with asking(address) as asked:
        wait_for(lambda: asked.total() > 10)
        serve.run(build_app(settings_for(another)), name=APP, route_prefix="/")
        wait_for(lambda: len(asked) > 1)
        wait_for(lambda: len(replicas()) == 2)
    assert failures(asked) == []
    assert len(asked) == 2  # the identities of both students; no answer mixes them (`asking` compares)
    expected = [load_student(path).encode(TEXTS) for path in (student, another)]
    for vectors in asked.vectors.values():
        assert min(np.abs(vectors - one).max() for one in expected) < 1e-4


def test_load_brings_a_second_replica_and_idleness_takes_it_away(address: str, student: Path) -> None:
    quick = {"min": 1, "max": 2, "upscale_delay_s": 1.0, "downscale_delay_s": 2.0}
    serve.run(build_app(settings_for(student, **quick)), name=APP, route_prefix="/")
    wait_for(lambda: running() == 1 and len(measured(address)) == 1)
    with asking(address, clients=8) as asked:
        wait_for(lambda: running() == 2 and len(measured(address)) == 2)
        before = asked.total()
        wait_for(lambda: asked.total() > before + 20)
    wait_for(lambda: running() == 1 and len(measured(address)) == 1)
    assert failures(asked) == []
