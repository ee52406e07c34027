"""Benchmarks measure what they say; never how fast."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark import BENCHMARKS, arguments
from benchmarks import corpus_stream, device, device_workload, embed_device
from benchmarks.corpus_stream import BATCH, benchmark_stream
from benchmarks.device import check_tokens
from benchmarks.device_workload import docstrings, operations, stand_in_tokenizer, workloads
from benchmarks.distill import Side, ratios
from benchmarks.distill_workload import comparable, sizes
from benchmarks.embed import largest_and_smallest, run_plain_loop, steady_speed
from benchmarks.embed_device import BENCHMARK, benchmark_embed_device
from benchmarks.embed_peers import best_batch, encode_onnx, export, open_session, run_sentence_transformers
from benchmarks.embed_stream import TimedChunk, by_tenths, while_all_work
from benchmarks.harness import table
from benchmarks.lone_trainer import full_texts
from benchmarks.losses import BENCHMARK as LOSSES
from benchmarks.losses import growth, measure
from benchmarks.train import benchmark_train, device_of, on_one_worker, row_operations
from small_student import small_student

from jasper_ray import load_student
from jasper_ray.config import ConfigError
from jasper_ray.models.body import BodySettings
from jasper_ray.models.student import StudentSettings, build_student, meta_student
from jasper_ray.models.tokens import Tokenizing
from jasper_ray.recipe import Recipe, Stage, load_recipe
from jasper_ray.vectors import least_cosine

TOKENS = 16
LAYERS, HIDDEN, INNER, FULL = 2, 32, 64, 48


def tiny_student() -> StudentSettings:
    shape = {"num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_attention_heads": 2}
    body = BodySettings(base="pypi:all-MiniLM-L6-v2", random_weights=True, architecture={"model_type": "bert", **shape})
    return StudentSettings(body=body, heads=(FULL,), max_length=TOKENS)


def stage_of(recipe: Recipe, train: str) -> Stage:
    losses = {FULL: {"cosine": 1}}
    return Stage.model_validate({**recipe.stages[0].model_dump(), "train": [train], "losses": losses})


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_option_is_an_argument_of_the_benchmark(name: str) -> None:
    benchmark = BENCHMARKS[name]
    values = vars(arguments([name]))
    inspect.signature(benchmark.function).bind(
        **{option.argument: values[option.argument] for option in benchmark.options}
    )
    assert len(set(benchmark.columns.split())) > 3


def test_both_forms_of_the_loss_agree_where_they_are_compared() -> None:
    record = measure(24, ("ours", "matrix"), threads=1, device="cpu")
    assert record["comparisons"] == 276 * 275 // 2
    assert record["relative_error"] < 1e-5
    assert {"ours_s", "matrix_s", "times_faster", "ours_mib", "matrix_mib"} <= record.keys()
    assert table([record], LOSSES.columns).splitlines()[1].split()[0] == "24"


def test_the_matrix_form_grows_with_the_fourth_power_of_the_batch() -> None:
    assert growth("matrix", 96, threads=1) > 4 * 4560**2 / 2**20


def test_a_side_is_its_start_up_and_then_its_speed() -> None:
    side = Side("ours", lambda work, rows, passes: {}, (100, 1), (300, 1), {(100, 1): [7.0], (300, 1): [11.0]})
    assert side.record() == {"what": "ours", "texts_per_s": 50.0, "start_up_s": 5.0, "end_to_end_per_s": 300 / 11}


def test_ratios_set_ours_over_theirs() -> None:
    fast, slow = ({"texts_per_s": speed, "end_to_end_per_s": speed} for speed in (30.0, 20.0))
    of_parts, of_usual, of_cached = ratios(slow, fast, slow, slow, fast)
    assert of_parts["texts_per_s"] == of_usual["end_to_end_per_s"] == 1.5
    assert of_cached["texts_per_s"] == pytest.approx(2 / 3)
    assert table([of_parts], "what texts_per_s start_up_s").split()[-2:] == ["1.5", "-"]


@pytest.mark.parametrize("rows", [6144, 1000, 256])
def test_both_lengths_are_whole_shards_and_whole_batches(rows: int) -> None:
    short, long, shard_rows = sizes(rows, shard_rows=256, batch_size=128)
    assert 0 < short < long
    assert short % shard_rows == long % shard_rows == shard_rows % 128 == 0
    assert abs(long - rows) <= 128


def test_too_few_texts_for_two_lengths_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 256"):
        sizes(128, shard_rows=256, batch_size=128)


def test_both_ways_get_one_head_and_cosine_alone() -> None:
    recipe = load_recipe("quickstart")
    cut = comparable(recipe, 256)
    assert cut.student.heads == (1152,)
    assert len(cut.stages) == 1
    assert cut.teachers == recipe.teachers
    assert list(cut.stages[0].losses[1152].weighed()) == ["cosine"]
    assert cut.stages[0].train == ("*",)
    assert cut.corpus.holdout == 0


@pytest.mark.parametrize(("train", "backward"), [("*", "all"), ("heads.*", "head")])
def test_operations_are_those_that_what_learns_needs(train: str, backward: str) -> None:
    student = build_student(tiny_student(), seed=0)
    stage = on_one_worker(stage_of(load_recipe("quickstart"), train), batch=4, steps=1)
    matrices = TOKENS * 2 * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER)
    attention = 2 * 2 * TOKENS * TOKENS * HIDDEN  # scores, and what they weigh
    head = 2 * HIDDEN * FULL
    pooler = 2 * HIDDEN * HIDDEN  # BERT's own, computed and left aside
    forward = LAYERS * (matrices + attention) + head
    expected = pooler + (3 * forward if backward == "all" else forward + head)
    assert row_operations(student, stage, full_texts(student, stage, TOKENS)) == expected


def test_what_cannot_be_timed_is_refused() -> None:
    stage = load_recipe("quickstart").stages[0]
    with pytest.raises(ConfigError, match=r"stage 'fc1'.* needs micro batches of at least 3 rows"):
        on_one_worker(stage, batch=2, steps=1)
    with pytest.raises(ConfigError, match="--steps is 0"):
        benchmark_train(load_recipe("quickstart"), None, None, steps=0, threads=1, peak=None)
    with pytest.raises(ConfigError, match=r"--tokens is 513, but the body takes 1 to 512"):
        check_tokens(build_student(tiny_student(), seed=0), 513)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_stage_for_a_gpu_is_not_timed_on_a_processor() -> None:
    with pytest.raises(ConfigError, match=r"stage 'fc1' trains on a GPU .* torch sees none"):
        device_of(load_recipe("jasper-2b").stages[0])


@pytest.mark.slow
def test_a_stage_alone_steps_at_some_share_of_what_the_device_can_do() -> None:
    quickstart = load_recipe("quickstart")
    recipe = quickstart.model_copy(
        update={"student": tiny_student(), "stages": (stage_of(quickstart, "heads.*"),), "teachers": ()}
    )
    (record,) = benchmark_train(recipe, batch=4, tokens=TOKENS, steps=2, threads=1, peak=None)
    assert record["learns_m"] == (HIDDEN + 1) * FULL / 1e6
    assert record["tokens_per_s"] == pytest.approx(TOKENS * record["rows_per_s"])
    assert 0 < record["share_of_peak"] < 1


@pytest.mark.slow
def test_a_stage_on_images_alone_steps_and_says_what_decoding_takes() -> None:
    quickstart = load_recipe("quickstart")
    sight = quickstart.stages[-1]
    losses = {FULL: sight.losses[1152]}
    recipe = quickstart.model_copy(
        update={
            "student": tiny_student().model_copy(update={"vision": quickstart.student.vision}),
            "stages": (Stage.model_validate({**sight.model_dump(), "losses": losses, "precision": "bf16"}),),
        }
    )
    (record,) = benchmark_train(recipe, batch=4, tokens=TOKENS, steps=2, threads=1, peak=1.0)
    assert record["learns_m"] == pytest.approx(0.62, abs=0.01)
    assert record["decoding_cpus"] == pytest.approx(record["rows_per_s"] / record["decoded_per_s"])
    assert 0 < record["share_of_peak"] < 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_a_device_reaches_is_measured_in_the_precision_of_the_stage(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "MATRIX", {"cpu": 128})
    assert 0 < device.product_tflops(torch.device("cpu"), precision) < 100


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_every_line_of_a_stream_is_accounted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_stream, "in_fresh_process", lambda call, *arguments: call(*arguments))
    (record,) = benchmark_stream(4 * BATCH)
    assert record["unaccounted"] == 0
    assert record["trained"] == 3 * BATCH
    assert 0 < record["dropped"] < BATCH
    assert record["driver_mib"] > 100


LINES = ["a red boat", "the wing stalls at high speed, which nobody had expected", "x", "rain all day"] * 3


def test_each_way_of_embedding_embeds_all_lines(tmp_path: Path) -> None:
    student = str(small_student(tmp_path / "student"))
    assert largest_and_smallest(load_student(student).dims) == (96, 32)
    assert run_sentence_transformers(student, LINES, 1, "float32")["seconds"] > 0
    plain = run_plain_loop({"model": student, "precision": "float32", "block_rows": 2}, LINES)
    assert plain["steady_rows_per_s"] > 0


def test_onnx_runtime_computes_what_we_do(tmp_path: Path) -> None:
    student = str(small_student(tmp_path / "student"))
    tokenizing = export(student, str(tmp_path / "model.onnx"))
    session = open_session(str(tmp_path / "model.onnx"), 1)
    encode_onnx(session, tokenizing, LINES, 5)
    ids_BT, mask_BT = tokenizing.padded([np.array(row) for row in tokenizing(LINES[:4])])
    [found_BD] = session.run(None, {"ids": ids_BT, "mask": mask_BT})
    assert least_cosine(found_BD, load_student(student).encode(LINES[:4])) > 0.9999


def test_speed_is_taken_where_all_actors_work(tmp_path: Path) -> None:
    for place in range(8):
        (tmp_path / f"{place}.parquet").touch()
        seconds = 100 + (0 if place == 0 else 60 + place)  # a slow start
        os.utime(tmp_path / f"{place}.parquet", (seconds, seconds))
    assert steady_speed(tmp_path, 10) == pytest.approx(10)


def block(actor: str, written: float, read: float = 0.0, seconds: float = 1.0) -> TimedChunk:
    return TimedChunk(actor, 10, read, began=written - seconds, written=written)


def test_tenths_are_of_the_time_when_every_actor_and_the_readers_work() -> None:
    alone = [block("a", written) for written in (1.0, 1.25, 1.5)]  # one actor, the second still loads its model
    both = [block("ab"[second % 2], float(second), read=second - 1.0) for second in range(6, 107)]
    last = [block("a", 106.0 + place / 4) for place in range(1, 20)]  # nothing is left to read
    steady = while_all_work([*last, *both, *alone])
    assert steady == both[:-1]
    assert by_tenths(steady) == pytest.approx([10.0] * 10)


def test_too_few_blocks_for_tenths_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"only 10 blocks .* raise --rows"):
        by_tenths([block("a", float(second)) for second in range(10)])


def test_docstrings_are_many_different_texts_and_the_same_ones_every_time() -> None:
    texts = docstrings(least=20_000)
    assert sum(map(len, texts)) >= 20_000
    assert len(set(texts)) == len(texts) > 20
    assert all(text.strip() for text in texts)
    assert texts == docstrings(least=20_000)


@pytest.mark.parametrize("rows", [1, 7, 500])
def test_a_device_gets_texts_of_full_and_of_natural_length_with_as_many_tokens(rows: int) -> None:
    texts = docstrings(least=20_000)
    tokenizing = Tokenizing(stand_in_tokenizer(texts, 1000), TOKENS)
    full, natural = workloads(tiny_student(), texts, tokenizing, rows)
    assert [len(ids) for ids in tokenizing(full.texts)] == [TOKENS] * rows
    assert full.tokens == rows * TOKENS <= natural.tokens < (rows + 1) * TOKENS
    assert natural.tokens == sum(len(ids) for ids in tokenizing(natural.texts))
    assert set(natural.texts) <= set(texts)


def test_operations_of_texts_are_those_of_weights_and_attention() -> None:
    def forward(tokens: int) -> int:
        matrices = tokens * 2 * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER)
        attention = 2 * 2 * tokens * tokens * HIDDEN
        pooler, head = 2 * HIDDEN * HIDDEN, 2 * HIDDEN * FULL
        return LAYERS * (matrices + attention) + pooler + head

    lengths = np.array([1, 16, 300, 16])
    expected = sum(forward(int(tokens)) for tokens in lengths)
    assert operations(meta_student(tiny_student()), FULL, lengths) == pytest.approx(expected)


def test_a_batch_that_does_not_fit_is_not_the_best() -> None:
    def seconds(_: list[str], batch: int) -> float:
        if batch > 64:
            raise torch.OutOfMemoryError
        return 1 / batch

    assert best_batch(seconds, LINES, embed_device.BATCHES) == 64


def test_what_cannot_be_embedded_on_a_device_is_refused() -> None:
    recipe = load_recipe("quickstart")
    with pytest.raises(ConfigError, match="--rows is 0"):
        benchmark_embed_device(recipe, None, 0, "cpu", None)
    with pytest.raises(ConfigError, match="--tokens is 513, but the body takes 1 to 512"):
        benchmark_embed_device(recipe, 513, 1, "cpu", None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"torch sees no GPU here.*--device cpu"):
        benchmark_embed_device(load_recipe("jasper-2b"), None, 1, "cuda", None)


def test_a_students_size_embeds_on_a_device_at_some_share_of_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (embed_device, device_workload):
        monkeypatch.setattr(module, "in_fresh_process", lambda call, *arguments: call(*arguments))
    recipe = load_recipe("quickstart").model_copy(update={"student": tiny_student(), "teachers": ()})
    records = benchmark_embed_device(recipe, None, rows=4, device="cpu", peak=1.0)
    ways = ["sentence-transformers bfloat16", "sentence-transformers float32", "ours bfloat16"]
    assert [(record["texts"], record["way"]) for record in records] == [
        (texts, way) for texts in (f"{TOKENS} tokens", "natural lengths") for way in ways
    ]
    for record in records:
        assert record["tokens_per_s"] == pytest.approx(record["tokens"] / record["seconds"])
        assert 0 < record["share_of_peak"] < 1
        assert record.keys() >= set(BENCHMARK.columns.split()) - {"padding", "tokenising"}
    assert records[2]["padding"] == 0
    assert records[0]["times"] == records[3]["times"] == 1
