"""Serving without HTTP: the queue, the model's thread, inputs, vectors, keys, the ledger, metrics, fetched images."""

from __future__ import annotations

import asyncio
import logging
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from picture_files import photo, written
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError
from ray._private import ray_constants
from ray.serve._private import constants
from ray.serve._private.replica import SERVE_BUILD_ASGI_APP_METHOD
from ray.serve.config import AutoscalingConfig
from running_server import output_folder
from small_student import small_student

from jasper_ray.commands.serve import command_line, make_key, settings_of
from jasper_ray.config import ConfigError
from jasper_ray.embedding.folder import OutputFolder
from jasper_ray.embedding.store import open_store
from jasper_ray.encoders import StudentEncoder, load_student
from jasper_ray.encoders.token_budget import TokenBudget
from jasper_ray.models.identity import weights_identity
from jasper_ray.models.tokens import Ids
from jasper_ray.serving import fetching, keys, middleware, ray_serve
from jasper_ray.serving.deployment import Server
from jasper_ray.serving.engine import Engine
from jasper_ray.serving.errors import Refusal, safe_traceback
from jasper_ray.serving.inputs import Cut, ImageInput, Input, Prepared, TextInput, TokenInput
from jasper_ray.serving.keys import EVERYONE, Key, Keys, Ledger, charge, digest_of, new_key, parse_keys
from jasper_ray.serving.load import open_service
from jasper_ray.serving.metrics import Metrics, merged
from jasper_ray.serving.model import Model
from jasper_ray.serving.prepare import Preparer
from jasper_ray.serving.queue import PendingRequest, QueueRow, TokenQueue
from jasper_ray.serving.service import Service
from jasper_ray.serving.settings import Copies, Limits, ServeSettings
from jasper_ray.serving.vectors import head_for, truncate_dims, typed
from jasper_ray.vectors import int8_ranges, normalise, quantise_binary, quantise_int8

POISON, STRANGE = 7, 8
"""Token on which `Held` fails, and token for which its vector is not finite."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_student(tmp_path_factory.mktemp("model") / "student", sees=True)


@pytest.fixture(scope="module")
def student(folder: Path) -> StudentEncoder:
    return load_student(folder)


@pytest.fixture(scope="module")
def preparer(student: StudentEncoder) -> Iterator[Preparer]:
    preparer = Preparer(student, Limits(text_chars=5000), threads=2)
    yield preparer
    preparer.close()


def refusal(call: Callable[[], object]) -> Refusal:
    """Return the refusal that the call raises."""
    with pytest.raises(Refusal) as caught:
        call()
    return caught.value


# ---- Options ----


def options(*words: str, environment: Mapping[str, str] | None = None) -> ServeSettings:
    return settings_of(command_line().parse_args(["--model", "some/model", *words]), environment or {})


def test_a_laptop_needs_no_key_and_an_open_address_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert options().open
    assert options("--host", "0.0.0.0", "--open").open
    with pytest.raises(ConfigError, match=r"--host 0\.0\.0\.0 is reachable by others and no API key was given"):
        options("--host", "0.0.0.0")
    guarded = options("--host", "0.0.0.0", environment={"JASPER_RAY_API_KEYS": "me:a-key-of-some-length"})
    assert (guarded.open, guarded.keys) == (False, {"me": digest_of("a-key-of-some-length")})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys.yaml").write_text("[]")
    assert options("--keys", "keys.yaml").keys_file == str(tmp_path / "keys.yaml")


def test_replicas_are_so_many_to_so_many() -> None:
    copies = options("--replicas", "2:5", "--cpus", "0.5").copies
    assert (copies.min, copies.max, copies.cpus) == (2, 5, 0.5)
    for wrong in ("", "x", ":2", "-1", "²"):
        with pytest.raises(ConfigError, match="is not a number of copies"):
            options(f"--replicas={wrong}")
    with pytest.raises(ConfigError, match="min is 3 and max is 2"):
        options("--replicas", "3:2")


@pytest.mark.parametrize("name", ["search", "2024", "on", "null", "1.5", "2024-01-01"])
def test_a_new_key_is_one_whatever_its_name(tmp_path: Path, name: str) -> None:
    secret, entry = make_key(name)
    (tmp_path / "keys.yaml").write_text(f"{entry}\n{make_key('another')[1]}\n")
    assert Keys(str(tmp_path / "keys.yaml"), {}, False).caller(f"Bearer {secret}").name == name


def test_the_readme_sets_the_flags_that_a_local_server_sets() -> None:
    readme = (Path(__file__).parents[2] / "cluster" / "README.md").read_text(encoding="utf-8")
    block = readme[readme.index("export RAY_SERVE_ENABLE_HA_PROXY") :].partition("ray get-auth-token")[0]
    told = dict(part.split("=", 1) for part in shlex.split(block, comments=True) if "=" in part)
    ours = {**ray_serve.FLAGS, **ray_serve.HAPROXY_FLAGS}
    assert told == {name: ours[name] for name in told}
    assert set(told) >= set(ray_serve.HAPROXY_FLAGS)


def test_ray_serve_has_the_private_names_that_serving_uses() -> None:
    known = "".join(Path(module.__file__ or "").read_text("utf-8") for module in (constants, ray_constants))
    names = (*ray_serve.FLAGS, *ray_serve.HAPROXY_FLAGS, *ray_serve.PORTS, *ray_serve.FILES)
    assert [name for name in names if f'"{name}"' not in known] == []
    headers = [constants.SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER, constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER]
    headers += [constants.SERVE_SESSION_ID, constants.SERVE_MULTIPLEXED_MODEL_ID]
    assert {name.encode() for name in headers} <= middleware.RAY_HEADERS
    module, _, function = ray_serve.FLAGS["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].rpartition(".")
    assert (module, function) == (middleware.__name__, middleware.middlewares.__name__)
    assert hasattr(Server, SERVE_BUILD_ASGI_APP_METHOD)


def test_rays_controller_imports_no_model_for_the_autoscaling_policy() -> None:
    module, _, policy = ray_serve.autoscaling(Copies(max=2))["policy"]["policy_function"].partition(":")
    code = f"import sys; from {module} import {policy}; print(*{{'torch', 'transformers', 'ray'}} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == []


def test_replicas_follow_queued_work_and_the_busy_share() -> None:
    policy = ray_serve.QueuedWork(target_s=0.5)
    cases = [([0.0], [0.0], 1), ([1.0], [0.5], 2), ([0.5, 0.6], [0.1, 0.1], 3), ([0.0, 0.0], [0.9, 0.9], 3)]
    for queued, busy, replicas in cases:
        metrics = {ray_serve.QUEUED: dict(enumerate(queued)), ray_serve.BUSY: dict(enumerate(busy))}
        context: Any = SimpleNamespace(aggregated_metrics=metrics)
        assert policy(context) == (replicas, {})


@pytest.mark.parametrize("delay_s", [0.0, 2.0, 300.0])
@pytest.mark.filterwarnings("error")
def test_serve_takes_any_delay_of_scaling(delay_s: float) -> None:
    AutoscalingConfig(**ray_serve.autoscaling(Copies(max=2, upscale_delay_s=delay_s, downscale_delay_s=delay_s)))


# ---- Errors in logs ----


def test_a_traceback_for_logs_has_places_and_classes_and_no_values() -> None:
    def embed(text: str) -> None:
        try:
            int(text)
        except ValueError as error:
            raise RuntimeError(f"cannot embed {text}") from error

    with pytest.raises(RuntimeError) as caught:
        embed("private words")
    written = safe_traceback(caught.value)
    frame = r'  File ".*test_serving\.py", line \d+, in '
    assert re.fullmatch(rf"{frame}embed\nValueError\n{frame}test_\w+\n{frame}embed\nRuntimeError", written)


# ---- The queue ----


def row(tokens: int, kind: object = None, abandoned: bool = False) -> QueueRow:
    """Make the row of a request with a single row."""
    return request(tokens, kind=kind, abandoned=abandoned)[0]


def request(*lengths_: int, kind: object = None, abandoned: bool = False) -> list[QueueRow]:
    """Make the rows of one request."""
    answer: Any = SimpleNamespace(done=lambda: abandoned)
    pending = PendingRequest((32,), answer, [None] * len(lengths_), len(lengths_))
    return [
        QueueRow(pending, place, Prepared(np.ones(tokens, np.int32), tokens), kind)
        for place, tokens in enumerate(lengths_)
    ]


def queue_of(*requests: Sequence[QueueRow] | QueueRow, seconds: float = 10.0, rate: float = 1.0) -> TokenQueue:
    queue = TokenQueue(seconds, rate=rate)
    for rows in requests:
        queue.put([rows] if isinstance(rows, QueueRow) else rows)
    return queue


def lengths(rows: Iterable[QueueRow]) -> list[int]:
    return [one.input.tokens for one in rows]


def test_a_batch_is_the_first_row_and_those_most_like_it() -> None:
    queue = queue_of(*(row(tokens) for tokens in (10, 60, 9, 30, 11, 10)))
    assert sorted(lengths(queue.take(44, 99))) == [9, 10, 10, 11]
    assert lengths(queue.rows) == [60, 30]
    assert queue.ready == 90


def test_the_first_row_goes_whatever_its_size_and_so_nothing_starves() -> None:
    queue = queue_of(row(500), *(row(5) for _ in range(50)))
    assert lengths(queue.take(100, 99)) == [500]
    generator = np.random.default_rng(0)
    queue = queue_of(*(row(int(tokens)) for tokens in generator.integers(1, 200, 2000)))
    waited = 0
    while queue.requests:
        first = next(queue.rows)
        batch = queue.take(256, 8)
        assert batch[0] is first
        assert len(batch) <= 8
        assert len(batch) == 1 or max(lengths(batch)) * len(batch) <= 256
        waited += len(batch)
    assert waited == 2000
    assert queue.ready == 0


def test_a_large_request_delays_a_small_one_by_a_batch() -> None:
    large, small = request(*[20] * 1000), request(50)
    queue = queue_of(large, small)
    assert {one.request for one in queue.take(100, 99)} == {large[0].request}
    assert queue.take(100, 99)[0] is small[0]
    assert len(queue.take(100, 99)) == 5  # then the large one has the model to itself


def test_a_small_request_of_many_lengths_is_done_in_its_turn() -> None:
    mixed = request(5, 40, 6, 41)
    queue = queue_of(mixed, *(row(20) for _ in range(50)))
    taken = [lengths(queue.take(100, 99, padding=4)) for _ in range(2)]
    assert taken == [[5, 6], [40, 41]]


def test_a_large_request_fills_half_of_the_budget_at_most() -> None:
    large = request(*[100] * 10)
    queue = queue_of(large, seconds=2.0, rate=100.0)
    assert (queue.waiting, queue.counted, queue.budget) == (1000, 100, 200)
    queue.check()
    queue.put(request(*[100] * 10))
    queue.check()
    queue.put(request(1))
    assert refusal(queue.check).status == 429
    for one in large:
        queue.uncount(one.request, one.input.tokens)
    assert (queue.waiting, queue.counted) == (1001, 101)


def test_a_batch_is_padded_little() -> None:
    queue = queue_of(*(row(tokens) for tokens in (10, 10, 12, 13, 40)))
    assert lengths(queue.take(200, 99, padding=4)) == [10, 10, 12]


def test_kinds_do_not_mix() -> None:
    queue = queue_of(row(5, "a"), row(5, "b"), row(5, "a"))
    assert [one.kind for one in queue.take(100, 99)] == ["a", "a"]
    assert [one.kind for one in queue.take(100, 99)] == ["b"]
    assert queue.take(100, 99) == []


def test_more_is_refused_by_what_waits_and_not_by_what_comes() -> None:
    queue = TokenQueue(2.0, rate=100.0)
    queue.reserve(200)
    queue.check()
    queue.reserve(50)
    refused = refusal(queue.check)
    assert (refused.status, refused.retry_after_s) == (429, 0.5)
    assert refused.headers == {"retry-after": "1", "retry-after-ms": "500"}
    fixed = TokenQueue(2.0, fixed_tokens=1000, rate=100.0)
    fixed.reserve(1000)
    fixed.check()


def test_abandoned_rows_leave_with_their_tokens() -> None:
    queue = queue_of(row(5), row(7, abandoned=True), row(9, abandoned=True))
    assert queue.waiting == 21
    queue.drop_abandoned()
    assert (lengths(queue.rows), queue.ready, queue.waiting, queue.counted) == ([5], 5, 5, 5)


# ---- The model's thread ----


class Held(StudentEncoder):
    """A student that waits for a gate, and fails on one token."""

    def __init__(self, student: StudentEncoder) -> None:
        super().__init__(student.student, student.tokenizer, student.card)
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False
        self.tight: int | None = None
        """Tokens of a row above which memory runs out."""
        self.batches: list[list[int]] = []

    def encode_tokens(self, ids: Ids, dims: Sequence[int], prompt_name: str | None = None) -> dict[int, np.ndarray]:
        self.batches.append([len(one) for one in ids])
        assert self.gate.wait(20)
        if self.broken or any(POISON in one for one in ids):
            raise ValueError("the text itself")
        if self.tight and max(map(len, ids)) > self.tight:
            raise torch.OutOfMemoryError
        found = super().encode_tokens(ids, dims, prompt_name)
        for place, one in enumerate(ids):
            if STRANGE in one:
                found[dims[-1]][place, 0] = np.nan
        return found


@pytest.fixture
def held(student: StudentEncoder) -> Held:
    return Held(student)


@asynccontextmanager
async def running(encoder: StudentEncoder, threads: int = 1, **queue: Any) -> AsyncIterator[Engine]:
    """Run an engine until the end of the block."""
    queue = {"seconds": 10.0, "rate": 1e4, **queue}
    engine = Engine(Model(encoder, TokenBudget(1024)), TokenQueue(**queue), 0.002, Metrics(), threads)
    engine.start()
    try:
        yield engine
    finally:
        if isinstance(encoder, Held):
            encoder.gate.set()
        engine.close()


async def ask(engine: Engine, *rows: Sequence[int], head: int = 32) -> np.ndarray:
    """Embed rows of token ids."""
    inputs = [Prepared(np.array(one, np.int32), len(one)) for one in rows]
    with engine.admit(sum(map(len, rows))) as admission:
        done = await engine.embed(inputs, [head], admission)
    return np.stack([one[head] for one in done.vectors if one is not None])


async def until(condition: Callable[[], object]) -> None:
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to be")


async def together(held: Held, engine: Engine, *requests: Sequence[Sequence[int]]) -> list[Any]:
    """Return the outcomes of requests that share a batch: the model is busy until all are queued."""
    held.gate.clear()
    busy = asyncio.create_task(ask(engine, [101, 102]))
    await until(lambda: held.batches)
    tasks = [asyncio.create_task(ask(engine, *rows)) for rows in requests]
    await until(lambda: len(list(engine.queue.rows)) == sum(map(len, requests)))
    held.gate.set()
    _, *found = await asyncio.gather(busy, *tasks, return_exceptions=True)
    return found


def test_one_input_that_fails_fails_alone(held: Held) -> None:
    good, bad = [[101, 2000 + n, 102] for n in range(9)], [101, POISON, 102]

    async def tell() -> None:
        async with running(held) as engine:
            found = await together(held, engine, good[:4], [good[4], bad], good[5:])
            assert held.batches[1] == [3] * 10, "they shared a batch"
            assert isinstance(found[1], Refusal)
            assert (found[1].status, found[1].code) == (400, "input_failed")
            assert found[1].message == "input 1: the model cannot embed this input (ValueError)"
            alone = held.encode_tokens([np.array(one, np.int32) for one in good], [32])[32]
            np.testing.assert_allclose(found[0], alone[:4], atol=1e-5)
            np.testing.assert_allclose(found[2], alone[5:], atol=1e-5)
            assert (engine.model.dead, engine.queue.waiting) == (None, 0)

    asyncio.run(tell())


def test_a_vector_that_is_not_finite_is_refused_alone(held: Held) -> None:
    async def tell() -> None:
        async with running(held) as engine:
            good, strange = await together(held, engine, [[101, 2000, 102]], [[101, STRANGE, 102]])
            assert np.isfinite(good).all()
            assert (strange.status, strange.code) == (400, "input_failed")

    asyncio.run(tell())


def test_a_text_that_does_not_fit_into_memory_is_refused_alone(held: Held) -> None:
    async def tell() -> None:
        async with running(held) as engine:
            held.tight = 20
            short, long = await together(held, engine, [[101, 2000, 102]], [[101, *[2001] * 30, 102]])
            assert isinstance(short, np.ndarray)
            assert (long.status, long.code) == (413, "out_of_memory")

    asyncio.run(tell())


def test_a_model_that_fails_altogether_is_dead(held: Held, caplog: pytest.LogCaptureFixture) -> None:
    async def tell() -> None:
        async with running(held) as engine:
            held.broken = True
            found = await together(held, engine, [[101, 2000, 102]] * 2, [[101, 2001, 102]])
            assert [one.status for one in found] == [503, 503]
            assert engine.model.dead
            assert "ValueError" in engine.model.dead
            assert refusal(engine.check).status == 503
            with pytest.raises(Refusal, match="will be replaced"):
                await ask(engine, [101, 102])
            assert re.search(
                r'model has failed.*\n(  File .*\n)+  File ".*", line \d+, in encode_tokens\nValueError', caplog.text
            )
            assert "the text itself" not in caplog.text

    asyncio.run(tell())


def test_who_goes_away_leaves_the_queue(held: Held) -> None:
    async def tell() -> None:
        async with running(held) as engine:
            held.gate.clear()
            busy = asyncio.create_task(ask(engine, [101, 102]))
            await until(lambda: held.batches)
            gone = asyncio.create_task(ask(engine, [101, 2000, 102]))
            stays = asyncio.create_task(ask(engine, [101, 2001, 2002, 102]))
            await until(lambda: len(list(engine.queue.rows)) == 2)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            held.gate.set()
            await asyncio.gather(busy, stays)
            await until(lambda: engine.queue.waiting == 0)
            assert held.batches == [[2], [4]]

    asyncio.run(tell())


@pytest.mark.parametrize("threads", [1, 3])
def test_no_company_no_order_and_no_thread_changes_a_vector(student: StudentEncoder, threads: int) -> None:
    generator = np.random.default_rng(1)
    rows = [generator.integers(1000, 20000, length).tolist() for length in generator.integers(2, 60, 80)]

    async def tell() -> None:
        async with running(student, threads, seconds=1e6) as engine:
            whole = await ask(engine, *rows, head=96)
            parts = await asyncio.gather(*(ask(engine, one, head=96) for one in rows[::-1]))
            np.testing.assert_allclose(np.concatenate(parts)[::-1], whole, atol=1e-5)
            alone = [student.encode_tokens([np.array(one, np.int32)], [96])[96] for one in rows]
            np.testing.assert_allclose(np.concatenate(alone), whole, atol=1e-5)
            assert (engine.queue.waiting, engine.queue.ready, round(engine.queue.counted)) == (0, 0, 0)

    asyncio.run(tell())


def test_light_load_does_not_look_like_a_slow_model(held: Held) -> None:
    """Single short rows take a batch each, and admission needs the rate of full batches."""

    async def tell() -> None:
        async with running(held) as engine:
            for _ in range(40):
                await ask(engine, [101, 102])
            assert engine.queue.rate == 1e4

    asyncio.run(tell())


def test_the_rate_follows_a_model_that_is_busy(held: Held) -> None:
    async def tell() -> None:
        async with running(held, rate=1e9, seconds=1e6) as engine:
            await ask(engine, *([101, 2000, 102] for _ in range(3000)))
            assert engine.queue.rate < 0.8e9

    asyncio.run(tell())


def test_a_thread_that_fails_of_itself_leaves_nobody_waiting(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    async def tell() -> None:
        async with running(held) as engine:
            held.gate.clear()
            asked = [asyncio.create_task(ask(engine, [101, number, 102])) for number in range(2000, 2600)]
            await until(lambda: held.batches and engine.queue.waiting == 1800)
            monkeypatch.setattr(engine, "_answer", None)
            held.gate.set()
            told = await asyncio.gather(*asked, return_exceptions=True)
            assert {one.status for one in told if isinstance(one, Refusal)} == {503}
            assert len(told) == 600
            assert refusal(engine.check).status == 503

    asyncio.run(tell())


def test_too_much_is_refused(held: Held) -> None:
    async def tell() -> None:
        async with running(held, fixed_tokens=3) as engine:
            held.gate.clear()
            let_in = [asyncio.create_task(ask(engine, [101, 1, 1, 102])) for _ in range(3)]
            await until(lambda: held.batches and engine.queue.waiting == 12)
            with pytest.raises(Refusal, match="is overloaded") as caught:
                await ask(engine, [101, 102])
            assert caught.value.status == 429
            held.gate.set()
            await asyncio.gather(*let_in)

    asyncio.run(tell())


def test_an_engine_that_ends_answers_what_waits_and_takes_no_more(held: Held) -> None:
    async def tell() -> None:
        async with running(held) as engine:
            held.gate.clear()
            busy = asyncio.create_task(ask(engine, [101, 102]))
            await until(lambda: held.batches)
            waits = asyncio.create_task(ask(engine, [101, 2000, 102]))
            await until(lambda: engine.queue.requests)
            held.gate.set()
            engine.close()
            assert len(await busy) == len(await waits) == 1
            assert refusal(engine.check).status == 503

    asyncio.run(tell())


# ---- Inputs ----


def prepared(preparer: Preparer, *inputs: Input) -> list[Prepared]:
    return asyncio.run(preparer.prepare(inputs))


def ids_of(preparer: Preparer, text: str, cut: Cut = None, **more: Any) -> list[int]:
    [found] = prepared(preparer, TextInput(text, cut=cut, **more))
    return found.ids.tolist()


LONG = (
    "Unbelievable: internationalization, photolithography and antidisestablishmentarianism "
    "outmanoeuvred Krzyzewski's ne'er-do-well subcontractors; 日本語 text, naïve café -- "
) * 6


@pytest.mark.parametrize("prompt", [None, "s2s_query"])
def test_texts_are_cut_at_either_end_as_slow_twins_do(
    preparer: Preparer, student: StudentEncoder, prompt: str | None
) -> None:
    def plain(text: str) -> list[int]:
        ids: list[int] = student.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return ids

    first = plain(student.prompts[prompt]) if prompt else []
    for start in range(0, 200, 7):
        text = LONG[start : 700 + start].strip()
        ids = plain(text)
        for room in (64, 41, 33):
            left = ids_of(preparer, text, "start", prompt_name=prompt, max_tokens=room)
            assert left == [101, *first, *ids[-(room - 2 - len(first)) :], 102]
            right = ids_of(preparer, text, "end", prompt_name=prompt, max_tokens=room)
            assert right == [101, *first, *ids[: room - 2 - len(first)], 102]


def test_a_prompt_that_fills_the_room_is_cut_like_a_text(preparer: Preparer) -> None:
    for cut_ in ("start", "end"):
        assert len(ids_of(preparer, LONG, cut_, prompt_name="s2p_query", max_tokens=5)) == 5


def test_texts_that_are_too_long_are_refused_or_cut(preparer: Preparer) -> None:
    refused = refusal(lambda: prepared(preparer, TextInput("short"), TextInput("word " * 80)))
    assert (refused.status, refused.code) == (413, "context_length_exceeded")
    assert refused.message.startswith("input 1 has 82 tokens and 64 are allowed")
    assert len(ids_of(preparer, "word " * 80, "end")) == 64
    assert len(ids_of(preparer, "word " * 80, "end", max_tokens=9)) == 9
    assert len(ids_of(preparer, "word " * 80, "end", max_tokens=900)) == 64
    assert refusal(lambda: prepared(preparer, TextInput("a" * 5001, cut="end"))).code == "text_too_long"


def test_prompts_are_known_by_name(preparer: Preparer) -> None:
    mixed = prepared(preparer, TextInput("a"), TextInput("a", "s2s_query"), TextInput("a"))
    assert [one.tokens for one in mixed] == [3, mixed[1].tokens, 3]
    assert mixed[1].tokens > 10
    refused = refusal(lambda: prepared(preparer, TextInput("a", "search")))
    assert (refused.status, refused.param) == (400, "prompt_name")


@pytest.mark.parametrize(
    ("ids", "status"), [((101, 30525), 400), ((-1,), 400), ((0,) * 64, None), ((0,) * 65, 413), ((30524,), None)]
)
def test_token_ids_are_the_models(preparer: Preparer, ids: tuple[int, ...], status: int | None) -> None:
    if status is None:
        assert prepared(preparer, TokenInput(ids))[0].ids.tolist() == list(ids)
    else:
        assert refusal(lambda: prepared(preparer, TokenInput(ids))).status == status


def test_texts_after_images_are_bounded_and_prompted_like_others(preparer: Preparer, student: StudentEncoder) -> None:
    png = written(photo(), "PNG")
    [bare] = prepared(preparer, ImageInput(png))
    [prompted] = prepared(preparer, ImageInput(png, TextInput("a flower", "s2s_query")))
    assert bare.tokens == 9
    for one, text, prompt in ((bare, None, None), (prompted, "a flower", "s2s_query")):
        assert one.pixels_3SS is not None
        found = student.encode_pixels([one.ids], one.pixels_3SS[None], [32])[32]
        np.testing.assert_allclose(found, student.encode([text], prompt, images=[png]), atol=1e-5)
    assert (
        refusal(lambda: prepared(preparer, ImageInput(png, TextInput("word " * 80)))).code == "context_length_exceeded"
    )
    [cut_] = prepared(preparer, ImageInput(png, TextInput("word " * 80, cut="end", max_tokens=30)))
    assert cut_.tokens == 30
    assert (
        refusal(lambda: prepared(preparer, ImageInput(png, TextInput("a" * 5001, cut="end")))).code == "text_too_long"
    )
    [late] = prepared(preparer, ImageInput(png, TextInput("word " * 80 + "flower", cut="start")))
    assert (late.tokens, late.ids[:8].tolist()) == (64, bare.ids[:8].tolist())
    assert student.tokenizer.decode(late.ids[-2:-1]) == "flower"
    small = ImageInput(png, TextInput("", cut="end", max_tokens=3))
    assert refusal(lambda: prepared(preparer, small)).param == "max_tokens"
    assert refusal(lambda: prepared(preparer, ImageInput(b"GIF89a"))).code.startswith("image_")


# ---- Vectors ----


def test_a_size_between_heads_is_cut_from_the_next_larger_one() -> None:
    dims = (32, 96, 64)
    assert [head_for(dims, dim) for dim in (None, 32, 33, 65, 1)] == [(32, 32), (32, 32), (64, 33), (96, 65), (32, 1)]
    for dim in (0, -1, 97):
        assert refusal(lambda dim=dim: head_for(dims, dim, "output_dimension")).param == "output_dimension"  # type: ignore[misc]
    x_ND = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    np.testing.assert_allclose(truncate_dims(x_ND, 3), normalise(x_ND[:, :3]))


def test_types_are_those_of_embedding() -> None:
    x_ND = normalise(np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32))
    ranges = {16: int8_ranges(x_ND[:10])}
    np.testing.assert_array_equal(typed(x_ND, "int8", ranges), quantise_int8(x_ND, ranges[16]))
    np.testing.assert_array_equal(typed(x_ND, "binary", {}), quantise_binary(x_ND))
    for kind, unsigned in (("int8", "uint8"), ("binary", "ubinary")):
        signed = np.asarray(typed(x_ND, kind, ranges)).astype(int)  # type: ignore[arg-type]
        np.testing.assert_array_equal(typed(x_ND, unsigned, ranges), signed + 128)  # type: ignore[arg-type]
        assert np.asarray(typed(x_ND, unsigned, ranges)).dtype == np.uint8  # type: ignore[arg-type]
    assert refusal(lambda: typed(x_ND[:, :9], "binary", {})).status == 400
    assert refusal(lambda: typed(x_ND, "uint8", {})).param == "embedding_types"


def settings(folder: Path, **changes: Any) -> ServeSettings:
    values = {"model": str(folder), "name": "small", "open": True, "precision": "float32", "threads": 1, **changes}
    return ServeSettings.model_validate(values)


def test_ranges_are_those_of_the_index_and_of_no_other_model(folder: Path, tmp_path: Path) -> None:
    identity = weights_identity(str(folder), None)
    mine = output_folder(tmp_path / "mine", identity)
    service = open_service(settings(folder, ranges=str(mine)), Ledger())
    assert list(service.ranges) == [96]
    np.testing.assert_array_equal(service.ranges[96], OutputFolder(open_store(str(mine))).ranges([96])[96])
    service.preparer.close()
    other = output_folder(tmp_path / "other", "sha256:" + "0" * 64)
    with pytest.raises(ConfigError, match="were made with another model"):
        open_service(settings(folder, ranges=str(other)), Ledger())
    with pytest.raises(ConfigError, match=r"no output folder of jobs/embed\.py with an int8 column"):
        open_service(settings(folder, ranges=str(tmp_path / "none")), Ledger())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prompt": "search"}, "no prompt 'search'"),
        ({"max_length": 5000}, "cannot read 5000 tokens .* lower max_length"),
        ({"keys_file": "/nowhere/keys.yaml"}, "cannot read the keys in '/nowhere/keys.yaml'"),
        ({"model": "/nowhere/student"}, "nowhere"),
    ],
)
def test_what_cannot_be_served_is_said_at_the_start(folder: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        open_service(settings(folder, **changes), Ledger())


# ---- Keys and what they may use ----


def key_file(path: Path, **secrets: str) -> Path:
    path.write_text("\n".join(f"- {{name: {name}, sha256: {digest_of(secret)}}}" for name, secret in secrets.items()))
    return path


def test_keys_come_from_a_file_and_from_settings(tmp_path: Path) -> None:
    given = parse_keys(" web:abcdefghijklmnop , job:0123456789abcdef,")
    known = Keys(str(key_file(tmp_path / "keys.yaml", search="secret-of-search")), given, open_=False)
    for secret, name in (("secret-of-search", "search"), ("abcdefghijklmnop", "web"), ("0123456789abcdef", "job")):
        assert known.caller(f"Bearer {secret}").name == name
        assert known.caller(f"bearer  {secret} ").name == name
    for wrong in (None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic secret-of-search", "secret-of-search"):
        refused = refusal(lambda wrong=wrong: known.caller(wrong))  # type: ignore[misc]
        assert (refused.status, refused.headers) == (401, {"www-authenticate": "Bearer"})
    assert Keys(None, {}, open_=True).caller(None) is EVERYONE
    assert len({new_key() for _ in range(100)}) == 100
    with pytest.raises(ConfigError, match="NAME:KEY with a key of at least 16 characters") as caught:
        parse_keys("web:short")
    assert "short" not in str(caught.value)


def test_keys_rotate_while_the_server_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys, "CHECK_S", 0.0)
    file = key_file(tmp_path / "keys.yaml", old="the-old-secret-1")
    known = Keys(str(file), {}, open_=False)
    key_file(file, old="the-old-secret-1", new="the-new-secret-22")
    assert {known.caller(f"Bearer {secret}").name for secret in ("the-old-secret-1", "the-new-secret-22")} == {
        "old",
        "new",
    }
    key_file(file, new="the-new-secret-22")
    assert refusal(lambda: known.caller("Bearer the-old-secret-1")).status == 401
    for broken in ("[", "- {name: a, sha256: the-new-secret-22}", "", "\x00", "[1]", "a: b"):
        file.write_text(broken)
        assert known.caller("Bearer the-new-secret-22").name == "new"
    file.unlink()
    assert known.caller("Bearer the-new-secret-22").name == "new"
    key_file(file, last="the-last-secret-333")
    assert known.caller("Bearer the-last-secret-333").name == "last"
    assert "could not reload API keys, keeping the old ones" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    "wrong", [{"a": "jr-a-secret-by-mistake"}, {"a b": "0" * 64}, {"": "0" * 64}], ids=["plain", "space", "empty"]
)
def test_given_keys_are_named_and_hashed(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Keys(None, wrong, open_=False)
    assert "jr-a-secret" not in str(caught.value)


def test_a_key_written_where_its_hash_belongs_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text("- {name: a, sha256: jr-a-secret-by-mistake}")
    with pytest.raises(ConfigError, match=r"keys\.0\.sha256.*64 hex digits") as caught:
        Keys(str(tmp_path / "keys.yaml"), {}, open_=False)
    assert "jr-a-secret" not in str(caught.value)


def test_a_key_uses_its_tokens_of_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(keys, "time", SimpleNamespace(monotonic=lambda: now))
    book, key = Ledger(), Key(name="a", sha256="0" * 64, tokens_per_minute=600)

    def take(tokens: int) -> float:
        return asyncio.run(charge(book, key, tokens))

    assert (take(500), take(400)) == (0.0, 0.0), "who has some left may use more at once, and owes the rest"
    assert take(1) == pytest.approx((1 + 300) / 10)
    now += 29
    assert take(1) > 0
    now += 1.2
    assert take(1) == 0.0
    now += 1e6
    assert take(601) == 0.0
    assert take(1) == pytest.approx(0.2)
    assert asyncio.run(charge(book, Key(name="b", sha256="0" * 64), 10**9)) == 0.0


def test_a_server_without_keys_says_that_it_is_open() -> None:
    with pytest.raises(ValidationError, match="no API key was given"):
        ServeSettings(model="m")
    assert ServeSettings(model="m", open=True).served_name == "m"
    assert ServeSettings(model="runs/quick/student/", keys={"a": "0" * 64}).served_name == "quick"
    with pytest.raises(ValidationError, match="min is 2 and max is 1"):
        Copies(min=2)
    with pytest.raises(ValidationError, match="Extra inputs"):
        ServeSettings.model_validate({"model": "m", "open": True, "prot": 1})


# ---- Metrics ----


def samples(page: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(page):
        for one in family.samples:
            found.setdefault(one.name, []).append((one.labels, one.value))
    return found


def test_pages_of_replicas_become_one() -> None:
    first, second = Metrics(), Metrics()
    first.batch(rows=4, tokens=30, computed=40, seconds=0.1)
    first.tokens.labels("search").inc(30)
    second.tokens.labels("search").inc(12)
    told = samples(merged({"r1": first.text(), "r2": second.text()}))
    assert told["jasper_ray_tokens_total"] == [
        ({"key": "search", "replica": "r1"}, 30.0),
        ({"key": "search", "replica": "r2"}, 12.0),
    ]
    assert told["jasper_ray_batch_tokens_total"][0] == ({"replica": "r1"}, 30.0)
    assert told["jasper_ray_computed_tokens_total"][0] == ({"replica": "r1"}, 40.0)
    assert told["jasper_ray_batch_rows_sum"] == [({"replica": "r1"}, 4.0), ({"replica": "r2"}, 0.0)]


def test_a_replica_that_is_gone_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(keys, "time", SimpleNamespace(monotonic=lambda: now))
    book = Ledger()
    assert asyncio.run(book.exchange("a", "1")) == {"a": "1"}
    now = keys.FORGET_S - 1
    assert asyncio.run(book.exchange("b", "2")) == {"a": "1", "b": "2"}
    now = keys.FORGET_S + 1
    assert asyncio.run(book.exchange("b", "3")) == {"b": "3"}


# ---- Fetched images ----


@contextmanager
def local_files() -> Iterator[int]:
    """Run a web server with an image, a redirect to it, and a long body; yield its port."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response({"/moved": 302, "/gone": 404}.get(self.path, 200))
            self.send_header("location", "/image")
            self.end_headers()
            try:
                for _ in range(1 if self.path == "/image" else 1000):
                    self.wfile.write(b"x" * 1000)
            except OSError:
                return

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def fetch(url: str, allowed: Callable[[str], bool] = fetching.is_public) -> bytes:
    return asyncio.run(fetching.fetch(url, 5000, allowed))


def anywhere(_: str) -> bool:
    return True


def test_an_image_is_fetched_up_to_a_size_and_from_nowhere_else() -> None:
    with local_files() as port:
        assert fetch(f"http://localhost:{port}/image", anywhere) == b"x" * 1000
        told = {
            path: refusal(lambda path=path: fetch(f"http://localhost:{port}{path}", anywhere))  # type: ignore[misc]
            for path in ("/moved", "/gone", "/endless")
        }
    assert {path: (one.status, one.code) for path, one in told.items()} == {
        "/moved": (400, "image_not_fetched"),
        "/gone": (400, "image_not_fetched"),
        "/endless": (413, "image_too_large"),
    }


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "localhost.", "LOCALHOST", "0", "2130706433", "0x7f000001", "0x7f.1", "127.1"),
        *("017700000001", "0x7f.0x0.0x0.0x1", "[::1]", "[::ffff:127.0.0.1]", "user@127.0.0.1", "①27.0.0.1"),
        *(
            "127\u30020\u30020\u30021",
            "127\uff0e0\uff0e0\uff0e1",
            "127\uff610\uff610\uff611",
            "\uff11\uff12\uff17\u30020\u30020\u30021",
            "127\u30020.0.1",
        ),  # dots and digits of other scripts
    ],
)
def test_this_machine_is_not_fetched_from_however_it_is_written(host: str) -> None:
    with local_files() as port:
        assert refusal(lambda: fetch(f"http://{host}:{port}/image")).code == "image_not_fetched"


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://a/b", "//a/b", "", "http://", "http://[::1", "gopher://a"]
)
def test_nothing_but_the_web_is_fetched_from(url: str) -> None:
    assert refusal(lambda: fetch(url)).code == "image_not_fetched"


def test_only_public_addresses_are_public() -> None:
    for address in ("1.1.1.1", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"):
        assert fetching.is_public(address)
    own = ("127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.9.9", "169.254.169.254", "100.64.0.1", "0.0.0.0")
    others = ("224.0.0.1", "240.0.0.1", "255.255.255.255", "1.1.1", "", "name")
    six = ("::1", "::", "::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "fe80::1%eth0", "fd00::1", "ff02::1", "::127.0.0.1")
    for address in (*own, *others, *six, "64:ff9b::7f00:1", "2002:7f00:1::"):
        assert not fetching.is_public(address), address


# ---- What a service refuses before anything is tokenised ----


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    limits = {"inputs": 5, "request_tokens": 300, "text_chars": 100_000}
    service = open_service(settings(folder, limits=limits), Ledger())
    yield service
    service.preparer.close()


def test_what_can_never_fit_is_refused_before_it_is_read(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.preparer, "_ids", None)
    cases: dict[str, list[Input]] = {
        "empty_input": [],
        "too_many_inputs": [TextInput("a")] * 6,
        "request_too_large": [TextInput("word " * 8000)],
    }
    for code, inputs in cases.items():
        assert refusal(lambda inputs=inputs: service.check_inputs(inputs)).code == code  # type: ignore[misc]
    for empty in (TextInput(""), TokenInput(())):
        refused = refusal(lambda empty=empty: service.check_inputs([TextInput("a"), empty]))  # type: ignore[misc]
        assert (refused.status, refused.message) == (400, "input 1 is empty; remove it")


def test_what_will_be_cut_counts_as_what_is_left_of_it(service: Service) -> None:
    service.check_inputs([TextInput("word " * 8000, cut="end")] * 4)


def test_tokens_are_told_up_to_the_size_of_a_request(service: Service) -> None:
    assert len(asyncio.run(service.preparer.tokens(["a " * 298], None, True))[0]) == 300
    with pytest.raises(Refusal, match="301 tokens and 300 are allowed"):
        asyncio.run(service.preparer.tokens(["a " * 149, "a " * 148], None, True))
    with pytest.raises(Refusal, match="characters"):
        asyncio.run(service.preparer.tokens(["a" * 100_001], None, True))


def test_logs_of_settings_hold_no_secrets(folder: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    file = key_file(tmp_path / "keys.yaml", search="secret-of-search")
    with caplog.at_level(logging.DEBUG):
        Keys(str(file), {}, open_=False)
    assert "secret-of" not in caplog.text
