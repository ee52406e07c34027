"""The commands of cluster/README.md for a server, on a head of Ray of its own."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from running_server import PATIENCE_S, command_running, wait_for
from small_run import title
from small_student import small_student

from jasper_ray.commands.serve import make_key
from jasper_ray.serving.ray_serve import FILES, PORTS, free_ports

pytestmark = pytest.mark.slow

PROGRAMS = Path(sys.executable).parent
HOME = Path(__file__).parents[2]
PORT_OPTIONS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "ray-client-server-port",
)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for sockets, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="jr-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def environment(short_folder: Path) -> dict[str, str]:
    """The README's variables, a token, and no port or file of another server."""
    block = (HOME / "cluster" / "README.md").read_text().split("## Serve")[1]
    said = dict(re.findall(r'(RAY_\w+)=("[^"]*"|\S+)', block.split("ray start")[0]))
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own |= {name: value.strip('"') for name, value in said.items()}
    own |= {"RAY_AUTH_TOKEN": secrets.token_hex(32), "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    own |= {name: str(port) for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True)}
    return own | {name: str(short_folder / file) for name, file in FILES.items()}


@pytest.fixture
def head(short_folder: Path, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """A head started by `ray start --head`, and the environment in which commands find it."""
    ports = free_ports(len(PORT_OPTIONS))
    command = ["ray", "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={short_folder}"]
    command += [f"--{option}={port}" for option, port in zip(PORT_OPTIONS, ports, strict=True)]
    log = short_folder / "head.log"
    with log.open("w") as file, command_running(command, env=environment, stdout=file, stderr=file) as process:
        gcs, dashboard = (f"127.0.0.1:{port}" for port in ports[:2])
        yield {**environment, "RAY_ADDRESS": gcs, "RAY_DASHBOARD_ADDRESS": f"http://{dashboard}"}
        assert process.poll() is None, log.read_text()
        family = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert not [title(one) for one in psutil.wait_procs(family, 30)[1]]


def edited(folder: Path, student: Path, digest_entry: str, port: int) -> Path:
    """Copy `cluster/serve.yaml` with this test's address, model and keys."""
    (folder / "keys.yaml").write_text(digest_entry)
    config = yaml.safe_load((HOME / "cluster" / "serve.yaml").read_text())
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    args = config["applications"][0]["args"]
    args |= {"model": str(student), "keys_file": str(folder / "keys.yaml")}
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    return folder / "serve.yaml"


def test_serve_deploy_brings_a_server_up_and_serve_shutdown_ends_it(head: dict[str, str], tmp_path: Path) -> None:
    secret, entry = make_key("tests")
    (port,) = free_ports(1)
    config = edited(tmp_path, small_student(tmp_path / "student"), entry, port)
    address = f"http://127.0.0.1:{port}"

    def told(*command: str) -> str:
        done = subprocess.run(command, env=head, cwd=HOME, capture_output=True, text=True, timeout=PATIENCE_S)
        return done.stdout + done.stderr if done.returncode else ""

    applications = f"{head['RAY_DASHBOARD_ADDRESS']}/api/serve/applications/"
    wait_for(lambda: status(applications, head["RAY_AUTH_TOKEN"]) == 200)
    assert told("serve", "deploy", str(config)) == ""
    wait_for(lambda: status(f"{address}/health") == 200)
    assert told("serve", "status") == ""
    assert status(f"{address}/v1/models") == 401
    assert status(f"{address}/v1/models", secret) == 200
    model = ("--model", str(tmp_path / "student"), "--port", str(free_ports(1)[0]))
    assert "Ray Serve runs at" in told(sys.executable, "jobs/serve.py", *model)
    changed = config.read_text().replace("name: quickstart", "name: renamed")
    config.write_text(changed)
    with asking(address, secret) as statuses:
        assert told("serve", "deploy", str(config)) == ""
        wait_for(lambda: name(address, secret) == "renamed")
    assert set(statuses) == {200}, "the only replica stays until another answers"
    assert told("serve", "shutdown", "-y") == ""
    wait_for(lambda: status(f"{address}/health") == 0)  # HAProxy is gone, too


@contextmanager
def asking(address: str, secret: str) -> Iterator[list[int]]:
    """Ask without pause until the block ends; collect the statuses."""
    statuses: list[int] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            statuses.append(status(f"{address}/v1/models", secret))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield statuses
    finally:
        over.set()
        thread.join(60)


def name(address: str, secret: str) -> str:
    """Return the model's name."""
    answer = httpx.get(f"{address}/v1/models", headers={"authorization": f"Bearer {secret}"}, timeout=30)
    return str(answer.json()["data"][0]["id"])


def status(url: str, key: str = "none") -> int:
    """Return a GET's status; 0 if nobody listens."""
    try:
        headers = {"authorization": f"Bearer {key}"} if key != "none" else {}
        return httpx.get(url, headers=headers, timeout=30).status_code
    except httpx.TransportError:
        return 0
