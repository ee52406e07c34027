"""Clients that measure servers: they count the answers, and a server that computes something else is an error."""

from __future__ import annotations

import asyncio
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import serve, serve_device
from benchmarks.device_workload import Workload
from benchmarks.harness import table
from benchmarks.http_clients import LOST, Address, Reply, Tally, closed_loop, open_loop, post, read_answer
from benchmarks.infinity import infinity_program
from benchmarks.serve import (
    POINTS,
    Point,
    against_plain,
    check_vectors,
    measure,
    median,
    middle,
    run_plain,
    with_ratios,
)
from benchmarks.serve_device import BENCHMARK, Load, benchmark_serve_device
from benchmarks.serve_device import against_plain as share_of_plain
from benchmarks.serve_overload import BENCHMARK as OVERLOAD
from benchmarks.serve_overload import overload
from benchmarks.servers import Counts, Running, counts_on, family, gpu_share, memory, model_figures, server
from running_server import served
from small_student import small_student

from jasper_ray import load_student
from jasper_ray.config import ConfigError
from jasper_ray.recipe import load_recipe
from jasper_ray.serving.ray_serve import free_ports

LINES = ["a red boat", "the wing stalls at high speed", "x", "rain all day"] * 4
HEALTHY = """
import http.server, subprocess, sys
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
"""


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_student(tmp_path_factory.mktemp("models") / "student")


def running(address: str) -> Running:
    return Running(os.getpid(), Address(int(address.rpartition(":")[2])), "/v1/embeddings", "small")


def test_only_what_was_answered_counts_as_speed() -> None:
    replies = [Reply(0, seconds, 200) for seconds in (1.0, 2.0, 3.0, 4.0)] + [Reply(0, 9, 429), Reply(0, 9, LOST)]
    tally = Tally(0, 2, replies)
    assert (tally.per_s, tally.failed) == (2.0, 2)
    assert [tally.percentile(share) for share in (0.5, 0.75, 0.99)] == [2.0, 3.0, 4.0]
    assert tally.percentile(0.5, 429) == 9.0
    assert math.isnan(Tally(0, 2).percentile(0.5))


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{ }\n", 200),
        (b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\nretry-after: 1\r\n\r\n", 429),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{ }\r\nA\r\n0123456789\r\n0\r\n\r\n",
            200,
        ),
    ],
)
def test_an_answer_is_read_to_its_end(data: bytes, status: int) -> None:
    async def read() -> tuple[int, bytes]:
        reader = asyncio.StreamReader()
        reader.feed_data(data + b"next")
        return await read_answer(reader), await reader.readexactly(4)

    assert asyncio.run(read()) == (status, b"next")


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\n{", b"HTTP/1.1 200 OK\r\n\r\n", b"?\r\n\r\n"]
)
def test_what_is_no_whole_answer_is_an_error(data: bytes) -> None:
    async def read() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        await read_answer(reader)

    with pytest.raises((EOFError, ValueError, IndexError)):
        asyncio.run(read())


def test_clients_ask_again_and_again_and_are_all_answered(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "WARM_S", 0.2)
    with served(student) as (address, _):
        ask = running(address)
        exact_ND = load_student(student).encode(LINES)
        check_vectors("ours", ask.vectors(LINES), exact_ND)
        with pytest.raises(ConfigError, match="ours has a cosine of"):
            check_vectors("ours", ask.vectors(LINES[1:] + LINES[:1]), exact_ND)
        with pytest.raises(ConfigError, match=r"ours gives vectors \(16, 32\)"):
            check_vectors("ours", ask.vectors(LINES), np.ones((16, 96), np.float32))
        record = measure(ask, LINES, Point(4, 3, "base64"), seconds=0.5)
    assert record["failed"] == 0
    assert record["requests_per_s"] > 0
    assert record["texts_per_s"] == 3 * record["requests_per_s"]
    assert 0 < record["p50_ms"] <= record["p99_ms"]


def test_a_request_has_as_many_texts_as_was_asked_for() -> None:
    ask = Running(1, Address(80), "/v1/embeddings", "small")
    requests = ask.requests(LINES, 5)
    assert len(requests) == 3
    assert all(request.count(b'", "') >= 4 for request in requests)
    assert ask.body(LINES[:2]) == {"model": "small", "input": LINES[:2], "encoding_format": "float"}


def test_refusals_and_silence_are_failures(student: Path) -> None:
    with served(student) as (address, _):
        ask = running(address)
        wrong = post(ask.address, ask.path, {"input": "a", "model": "other"})
        tally = asyncio.run(closed_loop(ask.address, [wrong], 2, 0.3))
        assert set(tally.statuses) == {404}
        assert tally.failed == len(tally.replies) > 0
    nobody = asyncio.run(closed_loop(Address(free_ports(1)[0]), [wrong], 2, 0.2))
    assert set(nobody.statuses) == {LOST}


def test_a_flood_keeps_its_rate_and_its_bounds(student: Path) -> None:
    with served(student) as (address, _):
        ask = running(address)
        flood = asyncio.run(open_loop(ask.address, ask.requests(LINES, 1), 100, 2.0, 64))
        assert 150 <= flood.sent + flood.unsent <= 201
        assert set(flood.statuses) == {200}
        narrow = asyncio.run(open_loop(ask.address, ask.requests(LINES, 1), 10_000, 0.3, 2))
        assert narrow.unsent > narrow.sent > 0


def test_a_server_that_has_too_much_to_do_says_so_and_recovers(student: Path) -> None:
    with served(student, limits={"queue_tokens": 200}) as (address, _):
        ask = running(address)
        record = overload(ask.address, ask.pid, ask.requests(LINES, 4), 2.0, queue_s=0.1, calm_s=1.0)
    assert record["other"] == 0
    assert record["refused"] > 0
    assert record["answered"] > 0
    assert record["after_per_s"] > 0
    assert record["peak_mib"] >= record["before_mib"] > 100
    assert table([record], OVERLOAD.columns).splitlines()[0].split()[0] == "precision"


def test_ours_is_told_in_units_of_theirs() -> None:
    def record(speed: float) -> dict[str, float]:
        return {"requests_per_s": speed, "texts_per_s": 32 * speed, "failed": 0}

    point = Point(8, 32)
    best = {
        ("ours", "float32", point): record(30),
        ("Infinity", "float32", point): record(20),
        ("ours", "bfloat16", point): record(50),
        ("Infinity", "bfloat16", point): record(40),
    }
    found = {each["way"]: each for each in with_ratios(best)}
    assert (found["ours float32"]["times"], found["ours float32"]["times_float32"]) == (1.5, 1.5)
    assert (found["ours bfloat16"]["times"], found["ours bfloat16"]["times_float32"]) == (1.25, 2.5)
    assert "times" not in found["Infinity float32"]
    assert point in POINTS


def test_the_model_alone_is_held_against_the_server_of_its_round() -> None:
    rounds = ((1200.0, 1000.0), (650.0, 500.0), (600.0, 400.0))
    found = median([against_plain("encode float32", alone, served) for alone, served in rounds])
    assert found == {"way": "encode float32", "texts_per_s": 650.0, "overhead": 1.3}
    assert against_plain("encode float32", 10.0, served=0.0)["overhead"] == math.inf


def test_the_round_in_the_middle_speaks_for_all_and_hides_no_failure() -> None:
    rounds = [{"requests_per_s": speed, "failed": failed} for speed, failed in ((30.0, 1), (10.0, 0), (20.0, 2))]
    assert middle(rounds) == {"requests_per_s": 20.0, "failed": 3}


def test_the_model_alone_embeds_all_lines(student: Path) -> None:
    found = run_plain(str(student), LINES, 1, "float32")
    assert set(found) == {"encode", "sorted batches"}
    assert min(found.values()) > 0


def test_a_server_is_waited_for_looked_at_and_stopped() -> None:
    port = free_ports(1)[0]
    with server([sys.executable, "-c", HEALTHY, str(port)], "/v1/embeddings", "small", port, {}) as found:
        children = family(found.pid)
        assert len(children) == 2
        alone, together = memory(found.pid)
        assert 1 < alone < together
    assert not Path(f"/proc/{found.pid}").exists()


def test_a_server_that_does_not_start_is_told_with_its_last_words() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    starting = server(command, "/v1/embeddings", "small", free_ports(1)[0], {})
    with pytest.raises(ConfigError, match=r"(?s)ended with 1.*no such model"), starting:
        pass


def test_an_environment_without_infinity_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*infinity_emb; give --peer-venv"):
        infinity_program(tmp_path)


def test_a_point_tells_how_fast_and_how_busy_a_server_was(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_device, "WARM_S", 0.3)
    workload = Workload("natural lengths", [*LINES, "too long " * 1000], tokens=200, operations=0.0)
    with served(student) as (address, _):
        few, many = serve_device.served(running(address), workload, "cpu", Load((1, 8), inputs=20, seconds=2.5))
    assert (few["clients"], many["clients"], many["inputs"], many["precision"]) == (1, 8, 20, "float32")
    for record in (few, many):
        assert record["requests_per_s"] > 0
        assert record["refused"] == record["failed"] == 0
        assert record["tokens_per_s"] > 0
        assert record["batches_at_once"] > 0
        assert record["gpu_busy"] is None
        assert {**record, **share_of_plain(record, 1.0)}.keys() >= set(BENCHMARK.columns.split())


def test_tokens_are_counted_from_the_end_of_a_batch_to_the_end_of_another() -> None:
    def at(seconds: float, batches: int) -> tuple[float, Counts]:
        return seconds, Counts(batches, 1000.0 * batches, 1.5 * batches, rate=1.0)

    looks = [at(0, 7), at(1, 7), at(2, 8), at(3, 8), at(4, 9), at(5, 9), at(6, 10), at(7, 10)]
    assert model_figures(looks) == {"tokens_per_s": 500.0, "batches_at_once": 0.75, "batch_tokens": 1000.0}
    assert set(model_figures(looks[:4]).values()) == {None}


def test_a_page_of_metrics_counts_all_replicas() -> None:
    page = """
# TYPE jasper_ray_batch_seconds histogram
jasper_ray_batch_seconds_bucket{le="+Inf",replica="a"} 2
jasper_ray_batch_seconds_count{replica="a"} 2
jasper_ray_batch_seconds_count{replica="b"} 3
jasper_ray_batch_seconds_sum{replica="a"} 0.5
jasper_ray_batch_seconds_sum{replica="b"} 0.25
# TYPE jasper_ray_batch_tokens counter
jasper_ray_batch_tokens_total{replica="a"} 100
# TYPE jasper_ray_drain_tokens_per_second gauge
jasper_ray_drain_tokens_per_second{replica="a"} 70
"""
    assert counts_on(page) == Counts(5, 100, 0.75, 70)


def test_the_share_of_the_model_is_left_out_where_nothing_was_counted() -> None:
    assert share_of_plain({"tokens_per_s": 30.0}, 40.0) == {"plain_tokens_per_s": 40.0, "share": 0.75}
    assert share_of_plain({"tokens_per_s": None}, 40.0) == {"plain_tokens_per_s": 40.0, "share": None}


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (((1, 0), 1, 8), "--clients is 1,0"),
        (((1,), 0, 8), "--inputs is 0"),
        (((1,), 1, 0), "--seconds is 0"),
    ],
)
def test_what_asks_nothing_is_refused(load: tuple[tuple[int, ...], int, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        benchmark_serve_device(load_recipe("quickstart"), None, "cpu", *load)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_server_is_started_for_a_device_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"torch sees no GPU here.*--device cpu"):
        benchmark_serve_device(load_recipe("jasper-2b"), None, "cuda", (1,), 1, 8)


@pytest.mark.parametrize(("answer", "share"), [("87", 0.87), ("[N/A]", None), ("No devices were found", None)])
def test_a_gpu_is_as_busy_as_its_driver_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, share: float | None
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_share() is None
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{answer}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert gpu_share() == share
