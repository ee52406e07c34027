"""Random requests: the server answers each as its schema says, and stays healthy.

`JASPER_RAY_FUZZ` is how many requests are made of every endpoint and kind; a long run takes some hundreds. With
`JASPER_RAY_FUZZ_RAY=1` they go through Ray and HAProxy.
"""

from __future__ import annotations

import json
import os
import random
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed
from hypothesis import settings as examples
from running_server import output_folder, served, wait_for
from schemathesis.checks import CHECKS, not_a_server_error
from schemathesis.generation import GenerationMode
from small_student import small_student

from jasper_ray.models.identity import weights_identity
from jasper_ray.serving.ray_serve import free_ports
from jasper_ray.serving.run import serve_session, start
from jasper_ray.serving.settings import ServeSettings

ON_RAY = os.environ.get("JASPER_RAY_FUZZ_RAY") == "1"
EXAMPLES = int(os.environ.get("JASPER_RAY_FUZZ", "12"))
LIMITS = {"inputs": 50, "request_tokens": 2000, "body_mib": 2.0, "text_chars": 100_000}
TIMEOUT_S = 30.0
NAMES = ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
SENT: Counter[tuple[str, int]] = Counter()
"""Number of answers by path and status."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = tmp_path_factory.mktemp("fuzz")
    folder = small_student(place / "student", sees=True)
    ranges = output_folder(place / "index", weights_identity(str(folder), None))
    with on_ray(folder, ranges) if ON_RAY else without_ray(folder, ranges) as address:
        yield address
    print(f"{sum(SENT.values())} requests", dict(sorted(SENT.items())))  # noqa: T201


@contextmanager
def without_ray(student: Path, ranges: Path) -> Iterator[str]:
    with served(student, limits=LIMITS, ranges=str(ranges)) as (address, service):
        yield address
        wait_for(lambda: service.engine.queue.waiting == service.engine.being_read == 0)  # all that was admitted leaves
        assert service.engine.model.dead is None


@contextmanager
def on_ray(student: Path, ranges: Path) -> Iterator[str]:
    values = {"model": str(student), "name": "small", "open": True, "limits": LIMITS, "ranges": str(ranges)}
    settings, (port,) = ServeSettings.model_validate(values), free_ports(1)
    with serve_session(settings, port):
        start(settings, "127.0.0.1", port)
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def schema(address: str) -> Any:
    return schemathesis.openapi.from_url(f"{address}/openapi.json")


@pytest.fixture(autouse=True)
def health(address: str) -> Iterator[None]:
    """Check that the server is healthy after each test."""
    yield
    assert httpx.get(f"{address}/health", timeout=TIMEOUT_S).status_code == 200


# ---- What the schema says ----


def sensible(body: Any) -> Any:
    """Fill in names that this server knows and texts that are not empty; random bodies hardly ever reach the model."""
    if isinstance(body, dict):
        if "input_type" in body:  # Cohere's, with one of three fields
            body = {**body, "texts": body.get("texts") or [], "images": None, "inputs": None}
        return {key: KNOWN.get(key, sensible(value)) for key, value in body.items()}
    if isinstance(body, list):
        return [sensible(one) for one in body] or ["a word"]
    return body or "a word" if isinstance(body, str) else body


KNOWN = {"model": "small", "prompt_name": "s2s_query", "normalize": True, "dimensions": 40, "output_dimension": 96}
OPERATIONS = [
    *(("POST", path) for path in ("/v1/embeddings", "/v2/embed", "/embed", "/similarity", "/tokenize")),
    *(("GET", path) for path in ("/v1/models", "/v1/models/{name}", "/info", "/health", "/metrics")),
]


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=lambda part: part)
def test_answers_are_those_of_the_schema(schema: Any, method: str, path: str, mode: GenerationMode) -> None:
    operation = schema[path][method]
    if mode.is_negative and method == "GET":
        pytest.skip("it takes nothing that could be wrong")
    checks: list[Any] = [not_a_server_error, *CHECKS.get_by_names(NAMES)]

    @seed(1)
    @examples(
        max_examples=EXAMPLES if method == "POST" else min(EXAMPLES, 50),
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        bodies = [case.body, sensible(case.body)] if mode.is_positive and method == "POST" else [case.body]
        for case.body in bodies:
            answer = case.call_and_validate(checks=checks, timeout=TIMEOUT_S)
            SENT[path, answer.status_code] += 1

    ask()


def test_every_endpoint_of_the_schema_is_tried(address: str) -> None:
    paths = httpx.get(f"{address}/openapi.json").json()["paths"]
    assert {(method.upper(), path) for path, methods in paths.items() for method in methods} == set(OPERATIONS)


# ---- What no schema says ----


def deep(levels: int) -> bytes:
    return b'{"inputs": ' + b"[" * levels + b"]" * levels + b"}"


BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"\x00\xff{",
    "half of it": b'{"inputs": "a',
    "deep lists": deep(100_000),
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "not UTF-8": b'{"inputs": "caf\xe9"}',
    "half a pair": b'{"inputs": "\\ud83d"}',
    "a NUL": b'{"inputs": "a\\u0000b"}',
    "control characters": b'{"inputs": "a\x01b"}',
    "NaN": b'{"inputs": "a", "dimensions": NaN}',
    "infinity": b'{"inputs": [Infinity]}',
    "a float": b'{"inputs": [1e400]}',
    "a huge size": b'{"inputs": "a", "dimensions": ' + b"9" * 4000 + b"}",
    "huge digits": b'{"inputs": [' + b"9" * 100_000 + b"]}",
    "huge ids": b'{"inputs": [9223372036854775807, -9223372036854775809]}',
    "true": b'{"inputs": [true, false]}',
    "a list": b"[]",
    "null": b"null",
    "twice": b'{"inputs": "a", "inputs": 7}',
    "an object": b'{"inputs": {"a": "b"}}',
    "mixed": b'{"inputs": ["a", [1], null]}',
    "empty lists": b'{"inputs": [[], []]}',
    "many": json.dumps({"inputs": ["a"] * 60_000}).encode(),
    "spaces": json.dumps({"inputs": " " * 90_000}).encode(),
    "one long word": json.dumps({"inputs": "a" * 90_000}).encode(),
    "combining": json.dumps({"inputs": "e" + "\u0301" * 50_000}).encode(),
    "a broken image": b'{"inputs": "data:image/png;base64,iVBORw0KGgo="}',
    "no image": b'{"inputs": "data:image/"}',
    "a byte order mark": b'\xef\xbb\xbf{"inputs": "a"}',
    "UTF-16": '{"inputs": "a"}'.encode("utf-16"),
}
FINE = {"a NUL", "spaces", "one long word", "combining"}


@pytest.mark.parametrize("path", ["/embed", "/tokenize"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_body_of_any_kind_is_answered(address: str, path: str, body: bytes) -> None:
    answer = httpx.post(address + path, content=body, timeout=TIMEOUT_S)
    told = answer.json()
    if answer.status_code == 200:
        assert body in [BODIES[name] for name in FINE]
    else:
        assert answer.status_code in (400, 413)
        assert told["error"]["message"]
        assert len(answer.content) < 2000, "what was sent is not sent back"
    SENT[path, answer.status_code] += 1


def test_other_types_and_encodings_of_bodies_are_read_as_json(address: str) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "\xff", ""):
        headers = [(b"content-type", kind.encode("latin-1"))]
        answer = httpx.post(f"{address}/embed", content=b'{"inputs": "a"}', headers=headers, timeout=TIMEOUT_S)
        assert answer.status_code == 200
    zipped = httpx.post(f"{address}/embed", content=b"\x1f\x8b\x08", headers={"content-encoding": "gzip"})
    assert zipped.status_code == 400


# ---- What is no proper request ----


def speak(address: str, *parts: bytes, wait_s: float = TIMEOUT_S) -> bytes:
    """Return the first line of the answer; less if the server hangs up or is silent for `wait_s`."""
    host, port = address.removeprefix("http://").split(":")
    heard = b""
    with socket.create_connection((host, int(port)), timeout=wait_s) as line:
        try:
            for part in parts:
                line.sendall(part)
            while b"\n" not in heard and (more := line.recv(1 << 16)):
                heard += more
        except (ConnectionError, TimeoutError):
            pass
    return heard


def request(body: bytes = b"", *headers: bytes, path: bytes = b"/embed") -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"host: here", b"connection: close", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def status(heard: bytes) -> int:
    return int(heard.split(b" ", 2)[1]) if heard.startswith(b"HTTP/1.1 ") else 0


LINE = {
    "50 MB": (request(b"x" * 50_000_000, b"content-length: 50000000"), {413, 0}),
    "a length that is no number": (request(b"{}", b"content-length: many"), {400}),
    "a negative length": (request(b"{}", b"content-length: -5"), {400}),
    "a huge length": (request(b"{}", b"content-length: " + b"9" * 19), {400, 413}),
    "two lengths": (request(b"{}", b"content-length: 2", b"content-length: 3"), {400}),
    "no chunks": (request(b"xyz\r\n", b"transfer-encoding: chunked"), {400}),
    "a large header": (request(b"{}", b"content-length: 2", b"x-large: " + b"a" * 65_536), {400, 431}),
    "many headers": (request(b"{}", b"content-length: 2", *(b"x-%d: 1" % n for n in range(1000))), {400, 431}),
    "a broken header": (request(b"{}", b"content-length: 2", b"no colon"), {400}),
    "a key of any bytes": (request(b"{}", b"content-length: 2", b"authorization: Bearer \xff\xfe"), {400}),
    "an id of any bytes": (request(b"{}", b"content-length: 2", b"x-request-id: \xff\x7f"), {400}),
    "a path of any bytes": (request(b"{}", b"content-length: 2", path=b"/%ff%00%0d%0a"), {404}),
    "a long path": (request(b"{}", b"content-length: 2", path=b"/" + b"a" * 60_000), {400, 404, 414}),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", {400, 0}),
}


@pytest.mark.parametrize(("sent", "expected"), LINE.values(), ids=LINE.keys())
def test_a_line_of_any_kind_is_answered(address: str, sent: bytes, expected: set[int]) -> None:
    assert status(speak(address, sent)) in expected


def test_a_body_without_end_is_refused_at_its_bound(address: str) -> None:
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    heard = speak(address, request(b"", b"transfer-encoding: chunked"), *[chunk] * 64)
    assert status(heard) in (413, 0), "0: it hung up while we still spoke"


def test_who_falls_silent_holds_nobody_up(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    silent = [socket.create_connection((host, int(port)), timeout=TIMEOUT_S) for _ in range(30)]
    try:
        for place, line in enumerate(silent):
            line.sendall(request(b"5\r\n{    \r\n", b"transfer-encoding: chunked")[: 20 if place % 2 else None])
        answer = httpx.post(f"{address}/embed", json={"inputs": "a"}, timeout=TIMEOUT_S)
        assert answer.status_code == 200
    finally:
        for line in silent:
            line.close()


def test_who_hangs_up_at_once_harms_nobody(address: str) -> None:
    body = json.dumps({"inputs": ["some words of a text"] * 40}).encode()
    host, port = address.removeprefix("http://").split(":")
    for _ in range(40):
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as line:
            line.sendall(request(body, b"content-length: %d" % len(body)))
    answer = httpx.post(f"{address}/embed", json={"inputs": "a"}, timeout=TIMEOUT_S)
    assert answer.status_code in (200, 429)


def test_random_bytes_are_no_request(address: str) -> None:
    generator = random.Random(0)
    for _ in range(30):
        assert status(speak(address, generator.randbytes(300) + b"\r\n\r\n", wait_s=2)) in (0, 400)
