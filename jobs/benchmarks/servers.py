"""Servers in processes of their own: started, waited for, asked for vectors, looked at, and stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.load import Address, post
from benchmarks.process import Looking
from jasper_ray.config import ConfigError

START_S = 300.0
STOP_S = 60.0
SHOWN = 2_000
"""Characters of what a server said that an error shows."""
REPLICA = b"ray::ServeReplica"
"""How Ray calls the processes that hold the model."""


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    pid: int
    address: Address
    path: str
    """Where it takes OpenAI's requests for vectors."""
    model: str
    """What it calls the model."""

    def requests(self, lines: Sequence[str], inputs: int, encoding: str = "float", **more: object) -> list[bytes]:
        """Whole requests with so many texts each, and more fields where they are given."""
        return [
            post(self.address, self.path, {**self.body(lines[start : start + inputs], encoding), **more})
            for start in range(0, len(lines) - inputs + 1, inputs)
        ]

    def body(self, texts: Sequence[str], encoding: str = "float") -> dict[str, object]:
        """What OpenAI's clients send."""
        return {"model": self.model, "input": list(texts), "encoding_format": encoding}

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """The server's vectors, float32 `[N, D]`."""
        request = urllib.request.Request(
            f"http://{self.address.host}:{self.address.port}{self.path}",
            json.dumps(self.body(texts)).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            data = json.loads(answer.read())["data"]
        return np.array([row["embedding"] for row in sorted(data, key=lambda row: row["index"])], np.float32)


@contextmanager
def server(
    command: Sequence[str], path: str, model: str, port: int, environment: Mapping[str, str]
) -> Iterator[Running]:
    """The server that `command` starts, from when `/health` is answered on; what it says goes to a file.

    Raises:
        ConfigError: it ends, or is not up within minutes; with the last that it said.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C reaches us alone, and we stop it
        )
        try:
            wait_for(process, port, said.fileno())
            yield Running(process.pid, Address(port), path, model)
        finally:
            stop(process)


def wait_for(process: subprocess.Popen[bytes], port: int, said: int) -> None:
    """Return when the server is healthy."""
    deadline = time.monotonic() + START_S
    while not healthy(port):
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            told = os.pread(said, 1 << 24, 0).decode(errors="replace")[-SHOWN:]
            what = f"ended with {process.returncode}" if ended else f"was not up after {START_S:.0f} s"
            raise ConfigError(f"the server {what}: {process.args!r}\n{told}")
        time.sleep(0.2)


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, and kill it where it does not within a minute."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class PeakMemory(Looking):
    """MiB that a server's processes hold at most: those with the model, and all together; looked at twice a second.

    Pages that processes share are counted in each of them.
    """

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.pid = pid
        self.before_mib, self.all_mib = memory(pid)
        self.peak_mib = self.before_mib

    def look(self) -> None:
        model, all_ = memory(self.pid)
        self.peak_mib, self.all_mib = max(self.peak_mib, model), max(self.all_mib, all_)


def memory(pid: int) -> tuple[float, float]:
    """MiB of the processes with the model, and of the whole family; a server without replicas is itself the model's."""
    held = {one: resident_mib(one) for one in family(pid)}
    replicas = [one for one in held if named(one).startswith(REPLICA)]
    return sum(held[one] for one in replicas or [pid]), sum(held.values())


def family(pid: int) -> list[int]:
    """A process, its children, and theirs."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            children.setdefault(parent(int(entry.name)), []).append(int(entry.name))
    found = [pid]
    for one in found:  # grows as it goes
        found += children.get(one, [])
    return found


def parent(pid: int) -> int:
    """0 for a process that has ended meanwhile."""
    stat = of_process(pid, "stat")
    return int(stat.rpartition(b")")[2].split()[1]) if stat else 0


def resident_mib(pid: int) -> float:
    pages = of_process(pid, "statm").split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if pages else 0.0


def named(pid: int) -> bytes:
    return of_process(pid, "cmdline")


def of_process(pid: int, file: str) -> bytes:
    """What Linux says of a process; nothing of one that has ended meanwhile."""
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes()
    except OSError:
        return b""
