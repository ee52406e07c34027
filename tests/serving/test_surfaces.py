"""The server over HTTP: OpenAI's and Cohere's own clients, TEI's API, keys, limits, failures, metrics, logs."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cohere
import httpx
import numpy as np
import openai
import pytest
from picture_files import photo, written
from running_server import output_folder, served
from small_student import BASE, small_student
from starlette.requests import ClientDisconnect
from test_serving import samples

from jasper_ray.encoders import StudentEncoder, load_student
from jasper_ray.models.identity import weights_identity
from jasper_ray.models.tokens import Ids
from jasper_ray.serving import bodies
from jasper_ray.serving.errors import Refusal
from jasper_ray.serving.keys import digest_of
from jasper_ray.serving.service import Service
from jasper_ray.vectors import least_cosine, normalise, quantise_binary, quantise_int8

TEXTS = ["How do I reset my card's PIN?", "x", "The wing stalls at high speed. " * 6, "¿Qué tal? 你好", "👩‍🚀 in orbit"]
LONG = "photolithography outmanoeuvred internationalization " * 40
PNG = written(photo(), "PNG")
URI = "data:image/png;base64," + base64.b64encode(PNG).decode()
SECRET, SLOW = "the-secret-of-search", "the-secret-of-a-slow-one"
LIMITS = {"inputs": 20, "images": 2, "request_tokens": 900, "body_mib": 1.0, "text_chars": 50_000}


@dataclass
class Up:
    """A server, its service, and the same student without a server."""

    address: str
    service: Service
    student: StudentEncoder

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.address, headers={"authorization": f"Bearer {SECRET}"}, timeout=30)

    def post(self, path: str, status: int = 200, **body: Any) -> Any:
        """Post a body, check the status, and return the answer."""
        answer = self.http.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def openai(self, **more: Any) -> openai.OpenAI:
        return openai.OpenAI(**{"base_url": f"{self.address}/v1", "api_key": SECRET, "max_retries": 0, **more})

    def cohere(self, key: str = SECRET) -> cohere.ClientV2:
        return cohere.ClientV2(api_key=key, base_url=self.address)

    def metric(self, name: str, **labels: str) -> float:
        """Sum a metric over the samples with these labels."""
        found = samples(self.http.get("/metrics").text).get(name, [])
        return sum(value for own, value in found if labels.items() <= own.items())


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    place = tmp_path_factory.mktemp("served")
    folder = small_student(place / "student", sees=True)
    ranges = output_folder(place / "index", weights_identity(str(folder), None))
    (place / "keys.yaml").write_text(
        f"- {{name: slow, sha256: {digest_of(SLOW)}, tokens_per_minute: 1200}}\n", encoding="utf-8"
    )
    keys: dict[str, Any] = {"keys_file": str(place / "keys.yaml"), "keys": {"search": digest_of(SECRET)}, "open": False}
    with served(folder, ranges=str(ranges), limits=LIMITS, **keys) as (address, service):
        yield Up(address, service, load_student(folder))


def near(found: Any, expected_ND: np.ndarray) -> None:
    """Check that the vectors are equal, in the same order."""
    found_ND = np.asarray(found, np.float32)
    assert found_ND.shape == expected_ND.shape
    assert least_cosine(found_ND, expected_ND) > 0.9999
    np.testing.assert_allclose(np.linalg.norm(found_ND, axis=1), 1, atol=1e-4)


# ---- OpenAI ----


@pytest.mark.parametrize("form", [None, "float", "base64"])
@pytest.mark.parametrize("dim", [None, 32, 96])
def test_openais_client_gets_the_students_vectors(up: Up, form: Any, dim: int | None) -> None:
    asked = {"encoding_format": form} if form else {}
    asked |= {"dimensions": dim} if dim else {}
    found = up.openai().embeddings.create(input=TEXTS, model="small", **asked)
    vectors = [one.embedding for one in found.data]
    if form == "base64":
        vectors = [np.frombuffer(base64.b64decode(one), "<f4").tolist() for one in vectors]  # type: ignore[arg-type]
    near(vectors, up.student.encode(TEXTS, dim=dim))
    assert [one.index for one in found.data] == list(range(len(TEXTS)))
    tokens = sum(len(ids) for ids in up.student.tokenizing()(TEXTS))
    assert (found.model, found.usage.prompt_tokens, found.usage.total_tokens) == ("small", tokens, tokens)


def test_openais_async_client_gets_them_too(up: Up) -> None:
    async def ask() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{up.address}/v1", api_key=SECRET) as client:
            return await asyncio.gather(*(client.embeddings.create(input=text, model="small") for text in TEXTS))

    near([one.data[0].embedding for one in asyncio.run(ask())], up.student.encode(TEXTS))


def test_openais_client_is_told_what_is_wrong(up: Up) -> None:
    client = up.openai()
    wrong: list[tuple[type[openai.APIStatusError], int, str, dict[str, Any]]] = [
        (openai.NotFoundError, 404, "model_not_found", {"model": "large"}),
        (openai.BadRequestError, 400, "empty_input", {"input": []}),
        (openai.BadRequestError, 400, "empty_input", {"input": ["a", ""]}),
        (openai.BadRequestError, 400, "invalid_request", {"dimensions": 0}),
        (openai.BadRequestError, 400, "invalid_request", {"dimensions": 97}),
        (openai.BadRequestError, 400, "invalid_request", {"input": [[1, 2], ["a"]]}),
        (openai.BadRequestError, 400, "invalid_request", {"input": [1.5]}),
        (openai.BadRequestError, 400, "invalid_request", {"extra_body": {"dimension": 32}}),
        (openai.APIStatusError, 413, "too_many_inputs", {"input": ["a"] * 21}),
        (openai.APIStatusError, 413, "context_length_exceeded", {"input": LONG}),
        (openai.APIStatusError, 413, "request_too_large", {"input": ["a " * 3500] * 10}),
    ]
    for kind, status, code, asked in wrong:
        with pytest.raises(kind) as caught:
            client.embeddings.create(**{"input": "a", "model": "small", **asked})
        assert (caught.value.status_code, caught.value.code) == (status, code), asked
    with pytest.raises(openai.AuthenticationError) as refused:
        up.openai(api_key="wrong").embeddings.create(input="a", model="small")
    assert refused.value.response.headers["www-authenticate"] == "Bearer"


def test_openais_client_lists_the_model(up: Up) -> None:
    [card] = up.openai().models.list().data
    assert card.id == "small"
    told = up.openai().models.retrieve("small").model_dump()
    assert (told["dimensions"], told["default_dimensions"], told["int8_dimensions"]) == ([32, 96], 32, [96])
    assert told["modalities"] == ["text", "image"]
    for name in ("large", "org/large"):
        with pytest.raises(openai.NotFoundError) as caught:
            up.openai().models.retrieve(name)
        assert caught.value.code == "model_not_found"


# ---- Cohere ----


def test_coheres_client_gets_every_type(up: Up) -> None:
    kinds = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    found = up.cohere().embed(
        model="small", texts=TEXTS, input_type="classification", embedding_types=kinds, output_dimension=96
    )
    x_ND = up.student.encode(TEXTS, "s2s_query", dim=96)
    told = found.embeddings
    assert told.float_
    near(told.float_, x_ND)
    served_ND = np.array(told.float_, np.float32)
    np.testing.assert_array_equal(told.int8, quantise_int8(served_ND, up.service.ranges[96]))
    np.testing.assert_array_equal(told.binary, quantise_binary(served_ND))
    np.testing.assert_array_equal(np.array(told.uint8) - 128, told.int8)
    np.testing.assert_array_equal(np.array(told.ubinary) - 128, told.binary)
    assert told.base64
    near([np.frombuffer(base64.b64decode(one), "<f4") for one in told.base64], x_ND)
    assert found.texts == TEXTS
    assert found.meta
    assert found.meta.billed_units
    assert found.meta.billed_units.input_tokens


@pytest.mark.parametrize(
    ("kind", "prompt"),
    [
        ("search_query", "s2p_query"),
        ("search_document", None),
        ("classification", "s2s_query"),
        ("clustering", "s2s_query"),
    ],
)
def test_coheres_input_types_choose_prompts(up: Up, kind: str, prompt: str | None) -> None:
    found = up.cohere().embed(model="small", texts=TEXTS, input_type=kind)
    near(found.embeddings.float_, up.student.encode(TEXTS, prompt))


def test_coheres_client_embeds_images_and_images_with_texts(up: Up) -> None:
    images = up.cohere().embed(model="small", images=[URI], input_type="image", embedding_types=["float"])
    near(images.embeddings.float_, up.student.encode(images=[PNG]))
    text, image = {"type": "text", "text": "a flower"}, {"type": "image_url", "image_url": {"url": URI}}
    inputs: Any = [{"content": [text]}, {"content": [image]}, {"content": [image, text]}]
    mixed = up.cohere().embed(model="small", inputs=inputs, input_type="search_document")
    rows: Any = (["a flower", None, "a flower"], [None, PNG, PNG])
    near(mixed.embeddings.float_, up.student.encode(rows[0], images=rows[1]))
    prompted = up.cohere().embed(model="small", inputs=inputs, input_type="classification")
    near(
        prompted.embeddings.float_,
        up.student.encode(rows[0], "s2s_query", images=rows[1]),
    )


def test_coheres_client_cuts_as_it_says(up: Up) -> None:
    def embed(**asked: Any) -> Any:
        return up.cohere().embed(model="small", texts=[LONG], input_type="search_document", **asked).embeddings.float_

    near(embed(), up.student.encode([LONG]))
    near(embed(truncate="END", max_tokens=9), encoded(up, [[*ids_of(up, LONG)[:8], 102]]))
    near(embed(truncate="START", max_tokens=9), encoded(up, [[101, *ids_of(up, LONG)[-8:]]]))
    with pytest.raises(cohere.core.ApiError) as caught:
        embed(truncate="NONE")
    assert caught.value.status_code == 413


def test_coheres_client_is_told_what_is_wrong(up: Up) -> None:
    wrong: list[tuple[type[Exception], dict[str, Any]]] = [
        (cohere.NotFoundError, {"model": "large"}),
        (cohere.BadRequestError, {"texts": []}),
        (cohere.BadRequestError, {"texts": ["a"], "images": [URI]}),
        (cohere.BadRequestError, {"output_dimension": 0}),
        (cohere.BadRequestError, {"output_dimension": 12, "embedding_types": ["binary"]}),
        (cohere.BadRequestError, {"output_dimension": 32, "embedding_types": ["int8"]}),
        (cohere.BadRequestError, {"input_type": "search"}),
        (cohere.BadRequestError, {"texts": None, "images": ["http://127.0.0.1/a.png"]}),
        (cohere.BadRequestError, {"texts": None, "images": ["data:image/png;base64,AAAA"]}),
    ]
    before = up.metric("jasper_ray_inputs_total")
    for kind, asked in wrong:
        asked = {"model": "small", "texts": ["a"], "input_type": "clustering", **asked}
        with pytest.raises(kind) as caught:
            up.cohere().embed(**{name: value for name, value in asked.items() if value is not None})
        assert caught.value.body["message"]  # type: ignore[attr-defined]
    with pytest.raises(cohere.UnauthorizedError):
        up.cohere("wrong").embed(model="small", texts=["a"], input_type="clustering")
    assert up.metric("jasper_ray_inputs_total") == before, "nothing was embedded, or charged"


# ---- TEI ----


def ids_of(up: Up, text: str) -> list[int]:
    ids: list[int] = up.student.tokenizer(text, truncation=False, verbose=False)["input_ids"]
    return ids


def encoded(up: Up, ids: Sequence[Sequence[int]], dim: int = 32) -> np.ndarray:
    return up.student.encode_tokens([np.array(one, np.int32) for one in ids], [dim])[dim]


def test_tei_words(up: Up) -> None:
    near(up.post("/embed", inputs=TEXTS), up.student.encode(TEXTS))
    near(up.post("/embed", inputs="x", dimensions=96), up.student.encode(["x"], dim=96))
    cosines = up.post("/similarity", inputs={"source_sentence": TEXTS[0], "sentences": TEXTS[1:]})
    x_ND = up.student.encode(TEXTS)
    np.testing.assert_allclose(cosines, x_ND[1:] @ x_ND[0], atol=1e-5)
    told = up.http.get("/info").json()
    assert (told["model_id"], told["model_dtype"], told["max_input_length"]) == ("small", "float32", 64)
    assert (told["max_client_batch_size"], told["model_sha"]) == (20, up.service.identity)
    assert httpx.get(f"{up.address}/health").json() == {"status": "ok"}
    up.post("/embed", 400, inputs="x", normalize=False)
    up.post("/similarity", 400, inputs={"source_sentence": "a", "sentences": []})


@pytest.mark.parametrize("direction", ["left", "right", "Left", "Right"])
def test_texts_are_cut_as_tei_says(up: Up, direction: str) -> None:
    ids = ids_of(up, LONG)
    kept = [101, *ids[-63:]] if direction.lower() == "left" else [*ids[:63], 102]
    near(up.post("/embed", inputs=LONG, truncation_direction=direction), encoded(up, [kept]))
    up.post("/embed", 413, inputs=LONG, truncation_direction=direction, truncate=False)


@pytest.mark.parametrize("prompt", [None, "", "s2p_query"])
def test_tokens_give_the_vector_of_their_text(up: Up, prompt: str | None) -> None:
    rows = up.post("/tokenize", inputs=TEXTS, prompt_name=prompt)
    ids = [[token["id"] for token in row] for row in rows]
    near(up.post("/embed", inputs=ids, dimensions=96), up.student.encode(TEXTS, prompt or None, dim=96))
    [found] = up.post("/v1/embeddings", input=ids[0])["data"]
    near([found["embedding"]], up.student.encode(TEXTS[:1], prompt or None))
    text = up.student.prompts[prompt] + TEXTS[0] if prompt else TEXTS[0]
    assert [text[token["start"] : token["stop"]] for token in rows[0][1:-1]] == [one["text"] for one in rows[0][1:-1]]
    assert (rows[0][0]["text"], rows[0][0]["special"], rows[0][1]["special"]) == ("[CLS]", True, False)
    bare = up.post("/tokenize", inputs=TEXTS[0], add_special_tokens=False, prompt_name=prompt)[0]
    assert [token["id"] for token in bare] == ids[0][1:-1]


def test_prompts_are_named_and_no_other_is_known(up: Up) -> None:
    for name in ("s2p_query", "s2s_query", "", None):
        found = up.post("/v1/embeddings", input=TEXTS, prompt_name=name)["data"]
        near([one["embedding"] for one in found], up.student.encode(TEXTS, name or None))
    refused = up.post("/v1/embeddings", 400, input="a", prompt_name="search")["error"]
    assert refused["param"] == "prompt_name"
    assert "s2p_query, s2s_query" in refused["message"]


def test_a_size_between_heads_is_the_next_larger_one_cut(up: Up) -> None:
    found = up.post("/embed", inputs=TEXTS, dimensions=40)
    near(found, normalise(up.student.encode(TEXTS, dim=96)[:, :40]))
    near(up.post("/embed", inputs=TEXTS, dimensions=1), normalise(up.student.encode(TEXTS)[:, :1]))


def test_images_are_embedded_where_texts_are(up: Up) -> None:
    found = up.post("/v1/embeddings", input=["x", URI], dimensions=96)["data"]
    near([one["embedding"] for one in found], up.student.encode(["x", None], dim=96, images=[None, PNG]))
    near(up.post("/embed", inputs=URI), up.student.encode(images=[PNG]))
    for broken in (URI[:-40], "data:image/png,abc", "data:image/png;base64,!!", "data:image/gif;base64,R0lGODlh"):
        assert up.post("/embed", 400, inputs=broken)["error"]["code"].startswith("image_")


def test_company_and_order_change_nothing(up: Up) -> None:
    texts = [LONG[start : start + 3 * start + 5] for start in range(18)]
    whole = np.array(up.post("/embed", inputs=texts, dimensions=96))
    np.testing.assert_allclose(up.post("/embed", inputs=texts[::-1], dimensions=96)[::-1], whole, atol=1e-5)

    async def ask() -> list[Any]:
        async with httpx.AsyncClient(base_url=up.address, headers=dict(up.http.headers), timeout=30) as client:
            asked = [client.post("/embed", json={"inputs": text, "dimensions": 96}) for text in texts]
            return [answer.json()[0] for answer in await asyncio.gather(*asked)]

    np.testing.assert_allclose(asyncio.run(ask()), whole, atol=1e-5)


# ---- Failures ----


class Gate:
    """A gate before the model, which fails on texts with the word `poison`."""

    def __init__(self, student: StudentEncoder) -> None:
        self.inner = student.encode_tokens
        self.poison = student.tokenizer.get_vocab()["poison"]
        self.opened = threading.Event()
        self.came = threading.Event()

    def encode_tokens(self, ids: Ids, dims: Sequence[int], prompt_name: str | None = None) -> dict[int, np.ndarray]:
        self.came.set()
        assert self.opened.wait(20)
        if any(self.poison in one for one in ids):
            raise ValueError("a text would stand here")
        return self.inner(ids, dims, prompt_name)


@pytest.fixture
def gate(up: Up, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(up.student)
    monkeypatch.setattr(up.service.encoder, "encode_tokens", gate.encode_tokens)
    yield gate
    gate.opened.set()


def later(*calls: Callable[[], Any]) -> list[Any]:
    """Run calls in threads; each returned object gets a `result`."""

    def run(call: Callable[[], Any]) -> Any:
        told = SimpleNamespace(result=None)

        def work() -> None:
            told.result = call()

        told.thread = threading.Thread(target=work)
        told.thread.start()
        return told

    return [run(call) for call in calls]


def results(told: Sequence[Any]) -> list[Any]:
    for one in told:
        one.thread.join(timeout=30)
    return [one.result for one in told]


def until(condition: Callable[[], object]) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to be")


def test_a_poisonous_text_fails_alone(up: Up, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    queue = up.service.engine.queue

    def ask(text: str) -> httpx.Response:
        return up.http.post("/v1/embeddings", json={"input": ["a word", text]})

    [busy] = later(lambda: ask("a word"))
    assert gate.came.wait(20)
    told = later(lambda: ask("one mate"), lambda: ask("a poison"), lambda: ask("two mates"))
    until(lambda: len(list(queue.rows)) == 6)
    gate.opened.set()
    answers = results([busy, *told])
    assert [one.status_code for one in answers] == [200, 200, 400, 200]
    assert answers[2].json()["error"]["code"] == "input_failed"
    assert "input 1" in answers[2].json()["error"]["message"]
    found = answers[3].json()["data"][1]["embedding"]
    near([found], up.student.encode(["two mates"]))
    assert up.http.get("/health").status_code == 200
    assert "would stand" not in caplog.text


def test_clients_wait_as_they_are_told_while_the_queue_is_full(
    up: Up, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = up.service.engine.queue
    monkeypatch.setattr(queue, "fixed_tokens", 1)
    monkeypatch.setattr(queue, "rate", 100.0)
    busy = later(*[lambda: up.post("/embed", inputs="a word or two that take a while in the model")] * 3)
    assert gate.came.wait(20)
    until(lambda: queue.counted > 1)
    refused = up.http.post("/v1/embeddings", json={"input": "a"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
    assert 0 < int(refused.headers["retry-after-ms"]) < 1000 * int(refused.headers["retry-after"]) <= 1000
    with pytest.raises(openai.RateLimitError):
        up.openai().embeddings.create(input="a", model="small")
    refusals = up.metric("jasper_ray_requests_total", status="429")
    [patient] = later(lambda: up.openai(max_retries=20).embeddings.create(input="a", model="small"))
    until(lambda: up.metric("jasper_ray_requests_total", status="429") > refusals)
    gate.opened.set()
    found, *_ = results([patient, *busy])
    assert len(found.data[0].embedding) == 32


def test_a_key_over_its_tokens_waits_as_it_is_told(up: Up) -> None:
    client = up.openai(api_key=SLOW)
    for _ in range(2):  # 20 tokens per second, 1200 at first
        client.embeddings.create(input=["word " * 50] * 17, model="small")
    with pytest.raises(openai.RateLimitError, match="'slow' has used its 1200 tokens per minute") as caught:
        client.embeddings.create(input="a", model="small")
    assert float(caught.value.response.headers["retry-after-ms"]) > 1000
    up.post("/embed", inputs="a")
    bucket = up.service.ledger._buckets["slow"]
    bucket.left, bucket.at_s = -5.0, time.monotonic()
    began = bucket.at_s
    client.with_options(max_retries=3).embeddings.create(input="a", model="small")
    assert time.monotonic() - began > 0.2
    bucket.left, bucket.at_s = -5.0, time.monotonic()
    asked = up.cohere(SLOW).embed(model="small", texts=["a"], input_type="clustering")
    assert asked.embeddings.float_


def test_a_fault_of_our_own_says_nothing_of_the_request(
    up: Up, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a text of a request")

    monkeypatch.setattr(up.service, "check_inputs", fail)
    answer = up.http.post("/embed", json={"inputs": "private words"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-jasper-model"]
    until(lambda: re.search(r'failed\n(  File ".*", line \d+, in \w+\n)+RuntimeError\n', caplog.text))
    assert re.search(r'test_surfaces\.py", line \d+, in fail\nRuntimeError', caplog.text)
    assert "a text of" not in caplog.text
    assert "private" not in caplog.text


# ---- Limits of bodies ----


def test_bodies_are_bounded_by_what_they_say_and_by_what_they_are(up: Up) -> None:
    large = json.dumps({"inputs": "a" * 2**20}).encode()

    def parts() -> Iterator[bytes]:
        for start in range(0, len(large), 1 << 16):
            yield large[start : start + (1 << 16)]

    for content in (large, parts()):
        answer = up.http.post("/embed", content=content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert up.post("/embed", 413, inputs="a" * 50_001)["error"]["code"] == "text_too_long"


def test_bodies_that_wait_are_bounded_together(up: Up) -> None:
    limits = {"waiting_mib": 0.01}
    folder = up.service.settings.model
    with served(folder, limits=limits, name="org/small") as (address, service):
        gate = Gate(up.student)
        service.encoder.encode_tokens = gate.encode_tokens  # type: ignore[method-assign]

        def ask(size: int) -> httpx.Response:
            return httpx.post(f"{address}/embed", json={"inputs": "a" * size}, timeout=30)

        [first] = later(lambda: ask(9000))
        assert gate.came.wait(20)
        refused = ask(9000)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert "retry-after" in refused.headers
        [second] = later(lambda: ask(100))
        gate.opened.set()
        assert [one.status_code for one in results([first, second])] == [200, 200]
        assert ask(9000).status_code == 200, "the room has come back"
        assert httpx.get(f"{address}/v1/models/org/small").json()["id"] == "org/small"
        dead(address, service)


def dead(address: str, service: Service) -> None:
    """Break the model, and check that the server's health reports it."""

    def fail(*_: object) -> None:
        raise RuntimeError("device lost")

    service.encoder.encode_tokens = fail  # type: ignore[assignment, method-assign]
    assert httpx.get(f"{address}/health").status_code == 200
    for _ in range(2):
        refused = httpx.post(f"{address}/embed", json={"inputs": "a"}, timeout=30)
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "service_unavailable")
    assert httpx.get(f"{address}/health").status_code == 503


def test_a_student_that_reads_alone_refuses_images(tmp_path: Path) -> None:
    with served(small_student(tmp_path / "blind"), prompt="s2s_query") as (address, _):
        student = load_student(tmp_path / "blind")
        for path, body in (
            ("/v1/embeddings", {"input": URI}),
            ("/v2/embed", {"images": [URI], "input_type": "image"}),
        ):
            refused = httpx.post(address + path, json=body)
            assert (refused.status_code, "this model takes texts only" in refused.text) == (400, True)
        near(httpx.post(f"{address}/embed", json={"inputs": TEXTS}).json(), student.encode(TEXTS, "s2s_query"))
        near(httpx.post(f"{address}/embed", json={"inputs": TEXTS, "prompt_name": ""}).json(), student.encode(TEXTS))
        assert httpx.get(f"{address}/v1/models").json()["data"][0]["modalities"] == ["text"]


def test_any_sentence_transformers_model_is_served() -> None:
    with served(BASE) as (address, service):
        card = httpx.get(f"{address}/v1/models").json()["data"][0]
        assert (card["dimensions"], card["modalities"]) == ([384], ["text"])
        near(httpx.post(f"{address}/embed", json={"inputs": TEXTS}).json(), service.encoder.encode(TEXTS))
        rows = httpx.post(f"{address}/tokenize", json={"inputs": TEXTS}).json()
        ids = [[token["id"] for token in row] for row in rows]
        near(httpx.post(f"{address}/embed", json={"inputs": ids}).json(), service.encoder.encode(TEXTS))
        short = httpx.post(f"{address}/embed", json={"inputs": TEXTS, "dimensions": 64}).json()
        near(short, normalise(service.encoder.encode(TEXTS)[:, :64]))


# ---- Keys, metrics, headers, logs ----


def test_everything_but_health_and_the_schema_needs_a_key(up: Up) -> None:
    paths = httpx.get(f"{up.address}/openapi.json").json()["paths"]
    assert len(paths) >= 10
    for path, methods in paths.items():
        for method in methods:
            answer = httpx.request(method, up.address + path.replace("{name}", "small"), content=b"no json")
            assert answer.status_code == (200 if path == "/health" else 401), path
    assert httpx.get(up.address).headers["content-security-policy"].startswith("default-src 'none'")


def test_what_is_not_there_is_told_as_everything_else(up: Up) -> None:
    for method, path, status in (("GET", "/nothing", 404), ("GET", "/embed", 405), ("DELETE", "/v1/models", 405)):
        answer = up.http.request(method, path)
        assert answer.status_code == status
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert up.http.get("/embed").headers["allow"] == "POST"


def test_the_page_of_metrics_tells_the_work(up: Up) -> None:
    names = ("tokens_total", "inputs_total", "batch_tokens_total", "computed_tokens_total", "phase_seconds_count")
    before = {name: up.metric(f"jasper_ray_{name}") for name in names}
    requests = {"route": "/embed", "status": "200", "key": "search"}
    earlier = up.metric("jasper_ray_requests_total", **requests)
    tokens = sum(len(ids) for ids in up.student.tokenizing()(TEXTS))
    up.post("/embed", inputs=TEXTS)
    until(lambda: up.metric("jasper_ray_requests_total", **requests) == earlier + 1)
    after = {name: up.metric(f"jasper_ray_{name}") for name in names}
    grown = {name: after[name] - before[name] for name in names}
    assert (grown["tokens_total"], grown["inputs_total"]) == (tokens, len(TEXTS))
    assert grown["batch_tokens_total"] == tokens <= grown["computed_tokens_total"]
    assert grown["phase_seconds_count"] == 4, "prepare, queue, model and total of what embeds, and of nothing else"
    assert up.metric("jasper_ray_drain_tokens_per_second", replica="0") > 0
    assert up.metric("jasper_ray_queue_tokens") == 0
    assert up.metric("jasper_ray_batch_seconds_count") > 0


def test_headers_tell_the_request_the_model_and_the_time(up: Up) -> None:
    answer = up.http.post("/embed", json={"inputs": "a"})
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])
    assert answer.headers["x-jasper-model"] == f"small@{up.service.identity}"
    phases = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"]))
    assert phases.keys() == {"prepare", "queue", "model"}
    assert all(0 <= float(value) < 60_000 for value in phases.values())


@pytest.mark.parametrize(("given", "kept"), [("abc-1/2:3", True), ("a b", False), ("x" * 129, False), ("ü", False)])
def test_a_line_of_the_log_is_json_without_texts(
    up: Up, given: str, kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        sent = [(b"x-request-id", given.encode("latin-1"))]
        up.http.post("/v1/embeddings", json={"input": "private words"}, headers=sent)
        up.http.post("/v1/embeddings", json={"input": "private words", "secret_field": "private"})
        up.http.post("/v1/embeddings", json={"input": "a"}, headers={"authorization": "Bearer private-key"})
        until(lambda: len([one for one in caplog.records if one.name == "jasper_ray.access"]) == 3)
    lines = [json.loads(one.getMessage()) for one in caplog.records if one.name == "jasper_ray.access"]
    assert lines[0].keys() == {"id", "route", "status", "key", "tokens", "ms"}
    assert (lines[0]["route"], lines[0]["status"], lines[0]["key"]) == ("/v1/embeddings", 200, "search")
    assert lines[0]["tokens"] == 4
    assert (lines[0]["id"] == given) == kept
    assert [(line["status"], line["key"]) for line in lines[1:]] == [(400, "search"), (401, "-")]
    ours = [one.getMessage() for one in caplog.records if one.name.startswith("jasper_ray")]
    assert not any(word in line for line in ours for word in ("private", SECRET))


def test_a_request_has_so_many_images_and_no_more(up: Up) -> None:
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/v1/embeddings", {"input": [URI] * 3}),
        ("/v2/embed", {"images": [URI] * 3, "input_type": "image"}),
        (
            "/v2/embed",
            {"inputs": [{"content": [{"type": "image_url", "image_url": {"url": URI}}]}] * 3, "input_type": "image"},
        ),
    ]
    for path, body in requests:
        refused = up.http.post(path, json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_many_images"), path


def test_an_answer_goes_out_in_slices_and_is_given_up_where_nobody_takes_it(
    up: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "SLICE", 4)
    memory = bodies.BodyMemory(up.service)
    before, sent = memory.free, []

    async def take(message: Any) -> None:
        assert memory.free == before - 10
        sent.append(message)

    async def tell(send: Any) -> None:
        await memory.answer(b"0123456789", {"x-a": "b"})({"type": "http"}, None, send)  # type: ignore[arg-type]

    async def never(_: Any) -> None:
        await asyncio.Event().wait()

    asyncio.run(tell(take))
    assert [(one["body"], one["more_body"]) for one in sent[1:]] == [(b"0123", True), (b"4567", True), (b"89", False)]
    assert {(b"x-a", b"b"), (b"content-length", b"10")} <= set(sent[0]["headers"])
    monkeypatch.setattr(bodies, "SLOW_S", 0.05)
    with pytest.raises(ClientDisconnect):
        asyncio.run(tell(never))
    assert memory.free == before
    with pytest.raises(Refusal, match="is overloaded"):
        memory.answer(b"x" * (before + 1), {})


def test_a_body_that_does_not_come_is_given_up(up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SLOW_S", 0.2)
    port = up.http.base_url.port
    assert port
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        line.sendall(b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n")
        line.sendall(f"authorization: Bearer {SECRET}\r\n\r\n{{".encode())
        assert line.recv(65536).startswith(b"HTTP/1.1 408 ")
