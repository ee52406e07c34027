"""The clients that measure servers: they count what comes, and are told when a server is not what it says."""

from __future__ import annotations

import asyncio
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from serving import served
from small_student import small_student

from jasper_ray import load_student
from jasper_ray.benchmarks.infinity import infinity_program
from jasper_ray.benchmarks.load import LOST, Address, Reply, Tally, closed_loop, open_loop, post, read_answer
from jasper_ray.benchmarks.overload import overload, render
from jasper_ray.benchmarks.serve import (
    POINTS,
    Point,
    against_plain,
    check_vectors,
    measure,
    middle,
    run_plain,
    with_ratios,
)
from jasper_ray.benchmarks.servers import Running, family, free_port, memory, server
from jasper_ray.config import ConfigError

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


def test_clients_ask_again_and_again_and_are_all_answered(student: Path) -> None:
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
    assert 0 < record["p50_ms"] <= record["p99_ms"] < 500


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
    nobody = asyncio.run(closed_loop(Address(free_port()), [wrong], 2, 0.2))
    assert set(nobody.statuses) == {LOST}


def test_a_flood_keeps_its_rate_and_its_bounds(student: Path) -> None:
    with served(student) as (address, _):
        ask = running(address)
        flood = asyncio.run(open_loop(ask.address, ask.requests(LINES, 1), 100, 0.5, 64))
        assert 45 <= flood.sent + flood.unsent <= 51
        assert set(flood.statuses) == {200}
        narrow = asyncio.run(open_loop(ask.address, ask.requests(LINES, 1), 10_000, 0.3, 2))
        assert narrow.unsent > narrow.sent > 0


def test_a_server_that_has_too_much_to_do_says_so_and_recovers(student: Path) -> None:
    with served(student, limits={"queue_tokens": 200}) as (address, _):
        ask = running(address)
        record = overload(ask.address, ask.pid, ask.requests(LINES, 4), 1.0, queue_s=0.1, calm_s=0.5)
    assert record["other"] == 0
    assert record["refused"] > 0
    assert record["answered"] > 0
    assert record["after_per_s"] > 0
    assert record["peak_mib"] >= record["before_mib"] > 100
    assert render([record]).splitlines()[0].split()[0] == "precision"


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
    (plain,) = against_plain(best, {"float32": 1200.0})
    assert plain == {"way": "encode float32", "texts_per_s": 1200.0, "overhead": 1.25}
    assert point in POINTS


def test_the_round_in_the_middle_speaks_for_all_and_hides_no_failure() -> None:
    rounds = [{"requests_per_s": speed, "failed": failed} for speed, failed in ((30.0, 1), (10.0, 0), (20.0, 2))]
    assert middle(rounds) == {"requests_per_s": 20.0, "failed": 3}


def test_the_model_alone_embeds_all_lines(student: Path) -> None:
    assert run_plain(str(student), LINES, 1, "float32")["texts_per_s"] > 0


def test_a_server_is_waited_for_looked_at_and_stopped() -> None:
    port = free_port()
    with server([sys.executable, "-c", HEALTHY, str(port)], "/v1/embeddings", "small", port, {}) as found:
        children = family(found.pid)
        assert len(children) == 2
        alone, together = memory(found.pid)
        assert 1 < alone < together
    assert not Path(f"/proc/{found.pid}").exists()


def test_a_server_that_does_not_start_is_told_with_its_last_words() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    starting = server(command, "/v1/embeddings", "small", free_port(), {})
    with pytest.raises(ConfigError, match=r"(?s)ended with 1.*no such model"), starting:
        pass


def test_an_environment_without_infinity_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*infinity_emb; give --peer-venv"):
        infinity_program(tmp_path)
