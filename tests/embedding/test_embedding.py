"""Embedding without Ray: rows and reasons, chunks, tokens, budgets, quantised vectors, and refusals of a folder."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from jobs_called import JOBS, Commands
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings
from small_student import BASE, small_student

from jasper_ray.assets import locate
from jasper_ray.commands.embed import command_line, settings_of
from jasper_ray.config import ConfigError
from jasper_ray.embedding.chunks import Preparation, Span, chunk_name, chunk_of, plan_spans, read_span, unpack
from jasper_ray.embedding.folder import OutputFolder, Provenance, Resolved
from jasper_ray.embedding.inputs import Scan, ScannedFile, list_inputs
from jasper_ray.embedding.output import ChunkWriter, encode_chunk, parquet, record_in
from jasper_ray.embedding.reading import scan
from jasper_ray.embedding.settings import EmbedSettings, VectorColumn, vector_column
from jasper_ray.embedding.store import open_store
from jasper_ray.encoders import Encoder, load_encoder
from jasper_ray.encoders.inference import OpenModel
from jasper_ray.encoders.token_budget import TokenBudget
from jasper_ray.models.tokens import Ids
from jasper_ray.sources.files import printable
from jasper_ray.sources.rows import read_texts
from jasper_ray.sources.settings import Source
from jasper_ray.sources.tables import REASON, TEXT, Columns, read_rows
from jasper_ray.vectors import int8_ranges, least_cosine, quantise_binary, quantise_int8

TEXTS = [
    "a red boat",
    "¿Qué tal? 你好",
    "The wing stalls at high speed. " * 30,
    "x",
    "naïve façade",
    "שלום עולם",
    "👩‍🚀 in orbit",
]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_student(tmp_path_factory.mktemp("model") / "student")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of sentence-transformers, cut to two layers."""
    model = SentenceTransformer(locate(BASE))
    body = model[0].auto_model
    body.encoder.layer = body.encoder.layer[:2]
    body.config.num_hidden_layers = 2
    folder = tmp_path_factory.mktemp("plain") / "model"
    model.save(str(folder))
    return folder


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return Path(locate("pypi:vader-sentences")).read_text(encoding="utf-8").splitlines()[:300]


def settings(folder: Path, **changes: Any) -> EmbedSettings:
    return EmbedSettings.model_validate({"model": "unused", "inputs": [str(folder)], "block_rows": 4, **changes})


def rows_of_file(path: Path, *copied: str, **changes: Any) -> list[tuple[str | None, str | None]]:
    """Read the text and the reason of every row of the only file."""
    [file] = list_inputs(settings(path, **changes))
    tables = [table for _, table in read_rows(file, Columns("text", copied))]
    table = pa.concat_tables(tables)
    return list(zip(table[TEXT].to_pylist(), table[REASON].to_pylist(), strict=True))


# rows


def test_lines_of_text_are_rows_and_nothing_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n\n  \ntw\x00o\u2028same line\n".encode() + b"caf\xe9\nlast")
    assert rows_of_file(path) == [
        ("one", None),
        (None, "empty"),
        (None, "empty"),
        ("tw\x00o\u2028same line", None),
        (None, "undecodable"),
        ("last", None),
    ]


def test_json_says_why_a_line_has_no_text(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good", "n": 7}',
        b'{"text": null}',
        b'{"n": 1}',
        b'{"text": 12}',
        b'{"text": ""}',
        b'{"text": "half \\ud83d of a pair"}',
        b'{"text": "caf\xe9"}',
        b'["text"]',
        b'{"text": "cut',
        b'{"n": ' + b"1" * 5000 + b"}",
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    assert [reason for _, reason in rows_of_file(tmp_path)] == [
        *(None, "null", "null", "not_text", "empty", "undecodable", "undecodable"),
        *("malformed",) * 3,
    ]


def test_a_corpus_drops_what_embedding_rejects(tmp_path: Path) -> None:
    values = ["good ", None, 12, ["a"], "", " \n", "half \ud83d of a pair", "zwölf"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": value}) + "\n" for value in values))
    with pa.OSFile(str(tmp_path / "a.jsonl")) as stream:
        cleaned = pa.concat_tables(read_texts(stream, "a.jsonl", Source(path="a.jsonl", format="jsonl"))).to_pylist()
    counted_as = {"undecodable": "not_text"}
    assert [(row["text"], row["dropped"]) for row in cleaned] == [
        (text and text.strip(), reason and counted_as.get(reason, reason)) for text, reason in rows_of_file(tmp_path)
    ]


def test_csv_keeps_ragged_lines_as_rows_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,text\n1,"two\nlines"\n2\n3,plain\n4,a,b\n5,caf\xe9\n6,\n')
    assert rows_of_file(path, "id") == [
        ("two\nlines", None),
        (None, "malformed"),
        ("plain", None),
        (None, "malformed"),
        (None, "undecodable"),
        (None, "empty"),
    ]


def test_a_blank_line_is_a_row_where_there_is_one_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\none\n\ntwo\n")
    assert rows_of_file(tmp_path) == [("one", None), (None, "empty"), ("two", None)]
    (tmp_path / "a.csv").write_text('text\none\n"never closed\ntwo\n')
    [file] = list_inputs(settings(tmp_path))
    assert "is not CSV" in scan(file, Columns("text", ()), 4).fault


def test_one_file_under_two_names_is_one_file(tmp_path: Path) -> None:
    write_lines(tmp_path, "txt", 3)
    (tmp_path / "sub").mkdir()
    inputs = [str(tmp_path), str(tmp_path / "sub" / ".." / "a.txt")]
    assert len(list_inputs(settings(tmp_path, inputs=inputs))) == 1


def test_parquet_of_any_type_is_read_row_for_row(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"text": ["a", None, "", "b"], "n": [1, 2, 3, 4]}), tmp_path / "a.parquet", row_group_size=2
    )
    assert rows_of_file(tmp_path, "n") == [("a", None), (None, "null"), (None, "empty"), ("b", None)]
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    assert [reason for _, reason in rows_of_file(tmp_path)] == ["not_text", "not_text"]


def test_texts_that_arrow_took_for_utf8_are_checked(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"caf\xe9"], pa.binary())
    pq.write_table(pa.table({"text": raw.view(pa.string())}), tmp_path / "a.parquet")
    assert rows_of_file(tmp_path) == [("good", None), (None, "undecodable")]


def test_a_damaged_row_group_costs_its_own_rows_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"text number {row}" for row in range(30)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=10, compression="none", use_dictionary=False)
    place = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[place : place + 40] = b"\xff" * 40
    path.write_bytes(data)
    found = rows_of_file(tmp_path)
    assert [text for text, _ in found[:10] + found[20:]] == texts[:10] + texts[20:]
    assert {reason for _, reason in found[10:20]} == {"unreadable"}


# scans and chunks


def write_lines(folder: Path, form: str, rows: int) -> list[str]:
    """Write a file of `rows` numbered texts."""
    texts = [f"text {row} {'é' * (row % 3)}" for row in range(rows)]
    if form == "parquet":
        pq.write_table(pa.table({"text": texts}), folder / "a.parquet", row_group_size=3)
    elif form == "csv":
        (folder / "a.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in texts), encoding="utf-8")
    elif form == "jsonl":
        (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    elif form == "txt.gz":
        (folder / "a.txt.gz").write_bytes(gzip.compress("\n".join(texts).encode()))
    else:
        (folder / "a.txt").write_text("\n".join(texts), encoding="utf-8")
    return texts


@pytest.mark.parametrize("form", ["txt", "txt.gz", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("rows", [1, 4, 11, 12])
def test_any_block_can_be_read_without_those_before_it(tmp_path: Path, form: str, rows: int) -> None:
    texts = write_lines(tmp_path, form, rows)
    [file] = list_inputs(settings(tmp_path))
    columns = Columns("text", ())
    found = scan(file, columns, 4)
    assert (found.rows, found.fault) == (rows, "")
    chunks = range(-(-rows // 4))
    for chunk in chunks:
        finished = {chunk_name(file.known.key, other) for other in chunks if other != chunk}
        [span] = plan_spans(file, found, 4, finished)
        [(number, table)] = read_span(span, columns, 4)
        assert (number, span.rows) == (chunk, len(table))
        assert table[TEXT].to_pylist() == texts[chunk * 4 : chunk * 4 + 4]


def test_offsets_are_right_beyond_the_first_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jasper_ray.embedding.reading.READ_BYTES", 7)
    texts = write_lines(tmp_path, "txt", 41)
    [file] = list_inputs(settings(tmp_path))
    found = scan(file, Columns("text", ()), 4)
    data = (tmp_path / "a.txt").read_bytes()
    assert [data[offset:].split(b"\n")[0].decode() for offset in found.offsets] == texts[::4]


def test_a_file_that_cannot_be_read_is_said_to_be_so(tmp_path: Path) -> None:
    write_lines(tmp_path, "parquet", 12)
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-20])
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "other.parquet")
    faults = {Path(f.path).name: scan(f, Columns("text", ()), 4).fault for f in list_inputs(settings(tmp_path))}
    assert faults["a.parquet"] == ""
    assert "magic" in faults["cut.parquet"].lower()
    assert faults["other.parquet"] == "there is no column 'text'; its columns are body"


def test_names_of_blocks_can_be_told_apart() -> None:
    assert chunk_of(chunk_name("part-7-0a1b2c3d0a1b2c3d", 12)) == ("part-7-0a1b2c3d0a1b2c3d", 12)
    assert chunk_of(chunk_name("x-0a1b2c3d0a1b2c3d", 12_345_678)) == ("x-0a1b2c3d0a1b2c3d", 12_345_678)


def test_a_folder_of_two_formats_wants_to_be_told_which(tmp_path: Path) -> None:
    write_lines(tmp_path, "txt", 3)
    write_lines(tmp_path, "csv", 3)
    with pytest.raises(ConfigError, match=r"several formats, csv, text.*--format"):
        list_inputs(settings(tmp_path))
    assert [Path(file.path).name for file in list_inputs(settings(tmp_path, format="csv"))] == ["a.csv"]


def test_equal_texts_are_embedded_once_and_each_row_finds_its_own(tmp_path: Path) -> None:
    values: list[str | None] = ["b", "a", None, "b", "", "a", "b"]
    rows = rows_from_parquet(tmp_path, values)
    chunk = Preparation(None, True, None, ()).chunk("n", "f", 100, rows)
    assert chunk.texts["text"].to_pylist() == ["b", "a"]
    assert chunk.kept[TEXT].to_pylist() == [0, 1, 0, 1, 0]
    assert chunk.kept["id"].to_pylist() == ["f#100", "f#101", "f#103", "f#105", "f#106"]
    assert chunk.rejected.select(["row", "reason"]).to_pylist() == [
        {"row": 102, "reason": "null"},
        {"row": 104, "reason": "empty"},
    ]
    assert unpack(chunk.packed()) == chunk


def rows_from_parquet(folder: Path, values: Sequence[str | None], **columns: Sequence[Any]) -> pa.Table:
    pq.write_table(pa.table({"text": pa.array(values, pa.string()), **columns}), folder / "rows.parquet")
    [file] = list_inputs(settings(folder / "rows.parquet"))
    return pa.concat_tables(table for _, table in read_rows(file, Columns("text", tuple(columns))))


def test_long_texts_are_cut_or_set_aside(tmp_path: Path, student: Path) -> None:
    tokenizing = load_encoder(str(student)).tokenizing()
    rows = rows_from_parquet(tmp_path, ["short", "long " * 200, "short", "y " * 50_000])
    cut = Preparation(tokenizing, True, None, ()).chunk("n", "f", 0, rows)
    assert max(map(len, cut.texts["text"].to_pylist())) == 64
    aside = Preparation(tokenizing, False, None, ()).chunk("n", "f", 0, rows)
    assert aside.kept[TEXT].to_pylist() == [0, 0]
    assert aside.rejected["reason"].to_pylist() == ["too_long", "too_long"]
    assert aside.rejected["detail"][0].as_py() == "202 tokens"


def test_ids_and_copied_columns_keep_their_types_and_a_row_without_id_is_set_aside(tmp_path: Path) -> None:
    rows = rows_from_parquet(tmp_path, ["a", "b", "c"], key=[7, None, 9], price=[0.5, 1.5, None])
    chunk = Preparation(None, True, "key", ("price",)).chunk("n", "f", 0, rows)
    assert chunk.kept.drop_columns([TEXT]).to_pylist() == [{"key": 7, "price": 0.5}, {"key": 9, "price": None}]
    assert chunk.kept.schema.field("key").type == pa.int64()
    assert chunk.rejected["reason"].to_pylist() == ["no_id"]


# vectors


@pytest.mark.parametrize("model", ["student", "plain"])
@pytest.mark.parametrize("budget", [1, 300, 100_000])
def test_any_budget_gives_what_sentence_transformers_gives(
    model: str, budget: int, student: Path, plain: Path, sentences: list[str]
) -> None:
    folder = str(student if model == "student" else plain)
    encoder = load_encoder(folder)
    texts = [*TEXTS, *sentences[:40]] if budget > 1 else TEXTS
    found = embedded(encoder, texts, encoder.dims[:1], budget)[encoder.dims[0]]
    expected = SentenceTransformer(folder).encode(texts, normalize_embeddings=True)
    assert np.abs(found - expected).max() < 2e-6


def embedded(encoder: Encoder, texts: Sequence[str], dims: Sequence[int], budget: int) -> dict[int, np.ndarray]:
    tokenizing = encoder.tokenizing()
    assert tokenizing
    ids = [np.array(row, np.int32) for row in tokenizing(texts)]
    return TokenBudget(budget).encode(lambda batch: encoder.encode_tokens(batch, dims), ids)[0]


def opened(encoder: Encoder, tokens: int) -> OpenModel:
    return OpenModel(encoder, None, "float32", None, encoder.tokenizing(), TokenBudget(tokens))


def test_every_head_comes_from_one_pass(student: Path) -> None:
    encoder = load_encoder(str(student))
    found = embedded(encoder, TEXTS, (96, 32), 500)
    for dim in (96, 32):
        assert np.abs(found[dim] - encoder.encode(TEXTS, dim=dim)).max() < 2e-6


def test_in_bfloat16_vectors_stay_close(student: Path, sentences: list[str]) -> None:
    texts = [*TEXTS, *sentences[:10]]  # a CPU without the type takes a hundred times as long for each
    exact = embedded(load_encoder(str(student)), texts, (96, 32), 1000)
    lower = embedded(load_encoder(str(student), dtype="bfloat16"), texts, (96, 32), 1000)
    assert all(least_cosine(exact[dim], lower[dim]) >= 0.999 for dim in (96, 32))


def test_a_prompt_that_is_not_pooled_over_is_left_out_of_the_mean(tmp_path: Path, plain: Path) -> None:
    model = SentenceTransformer(str(plain), prompts={"q": "query: find this "})
    model[1].include_prompt = False
    model.save(str(tmp_path / "model"))
    encoder = load_encoder(str(tmp_path / "model"))
    tokenizing = encoder.tokenizing("q")
    assert tokenizing
    ids = [np.array(row, np.int32) for row in tokenizing(TEXTS)]
    found = encoder.encode_tokens(ids, encoder.dims, "q")[encoder.dims[0]]
    assert np.abs(found - model.encode(TEXTS, prompt_name="q", normalize_embeddings=True)).max() < 2e-6


def test_the_names_of_sentence_transformers_that_its_manual_lacks_are_there(plain: Path) -> None:
    model = SentenceTransformer(str(plain))
    first = model[0]
    assert (first.transformer_task, first.processing_kwargs, first.can_flatten_inputs) == (
        "feature-extraction",
        {},
        False,
    )
    assert first.modality_config["text"]["method"] == "forward"
    assert first.processor is model.tokenizer
    assert model.preprocess(["text"], prompt="query: find this ")["prompt_length"] == 5


def test_readers_do_without_torch() -> None:
    code = "import sys, jasper_ray.embedding.chunks, jasper_ray.models.tokens; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_tokens_are_filled_up_on_the_side_that_the_tokenizer_says(student: Path) -> None:
    tokenizing = load_encoder(str(student)).tokenizing()
    assert tokenizing
    ids = tokenizing(TEXTS)
    for side in ("right", "left"):
        tokenizing.tokenizer.padding_side = side
        wanted = tokenizing.tokenizer.pad({"input_ids": ids}, return_tensors="np")
        ids_BT, mask_BT = tokenizing.padded([np.array(row) for row in ids])
        assert (ids_BT == wanted["input_ids"]).all()
        assert (mask_BT == wanted["attention_mask"]).all()


def test_the_same_numbers_as_sentence_transformers_own_quantisation(student: Path, sentences: list[str]) -> None:
    x_ND = load_encoder(str(student)).encode(sentences)
    ranges_RD = int8_ranges(x_ND[:100])  # the others are outside of the ranges
    assert (quantise_int8(x_ND, ranges_RD) == quantize_embeddings(x_ND, "int8", ranges=ranges_RD)).all()
    assert (quantise_binary(x_ND) == quantize_embeddings(x_ND, "binary")).all()
    assert (ranges_RD[1] > ranges_RD[0]).all()


def lengths(*rows: int) -> list[np.ndarray]:
    return [np.full(length, length, np.int32) for length in rows]


def of_lengths(ids: Ids) -> dict[int, np.ndarray]:
    """Replace a model: each row's vector is its length."""
    return {1: np.array([[len(row)] for row in ids], np.float32)}


def test_a_budget_bounds_tokens_with_padding_and_keeps_the_order() -> None:
    seen: list[int] = []

    def encode(ids: Ids) -> dict[int, np.ndarray]:
        seen.append(len(ids) * max(map(len, ids)))
        return of_lengths(ids)

    found, computed = TokenBudget(20).encode(encode, lengths(3, 9, 1, 9, 30, 2, 2))
    assert found[1][:, 0].tolist() == [3, 9, 1, 9, 30, 2, 2]
    assert [tokens for tokens in seen if tokens > 20] == [30]
    assert computed == sum(seen)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_batch_that_does_not_fit_is_halved_and_the_budget_remembers(error: RuntimeError) -> None:
    tried: list[int] = []

    def encode(ids: Ids) -> dict[int, np.ndarray]:
        tried.append(len(ids) * max(map(len, ids)))
        if tried[-1] > 24:
            raise error
        return of_lengths(ids)

    budget = TokenBudget(100)
    found, _ = budget.encode(encode, lengths(*[5] * 30, *[4] * 3))
    assert found[1][:, 0].tolist() == [5] * 30 + [4] * 3
    assert tried[:4] == [100, 50, 25, 10]
    assert max(tried[4:]) <= 12
    assert budget.tokens == 12


def test_one_text_that_does_not_fit_alone_is_an_error_that_says_what_to_do() -> None:
    def encode(ids: Ids) -> dict[int, np.ndarray]:
        raise torch.OutOfMemoryError("no")

    with pytest.raises(ConfigError, match=r"512 tokens does not fit.*fewer copies"):
        TokenBudget(4096).encode(encode, lengths(512, 512))


def test_other_errors_are_not_taken_for_want_of_memory() -> None:
    def encode(ids: Ids) -> dict[int, np.ndarray]:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="multiplied"):
        TokenBudget(4096).encode(encode, lengths(2))


# files


def test_a_file_of_vectors_is_plain_parquet_and_tells_its_own_record(tmp_path: Path, student: Path) -> None:
    encoder = load_encoder(str(student))
    columns = [vector_column(word) for word in ("96", "32:float16", "32:int8", "96:binary")]
    rows = rows_from_parquet(tmp_path, [*TEXTS, None, TEXTS[0]])
    chunk = Preparation(encoder.tokenizing(), True, None, ()).chunk("a-000000.parquet", "f", 0, rows)
    ranges = {32: int8_ranges(encoder.encode(TEXTS, dim=32))}
    store = open_store(str(tmp_path / "out"))
    done = ChunkWriter(opened(encoder, 300), columns, ranges, store).embed(chunk, "me")
    table = pq.read_table(tmp_path / "out" / "vectors" / chunk.name)
    assert [str(table.schema.field(column.name).type) for column in columns] == [
        "fixed_size_list<element: float>[96]",
        "fixed_size_list<element: halffloat>[32]",
        "fixed_size_list<element: int8>[32]",
        "fixed_size_list<element: int8>[12]",
    ]
    x_ND = encoder.encode([*TEXTS, TEXTS[0]], dim=32)
    assert np.abs(np.stack(table["vector_32_float16"].to_numpy()) - x_ND).max() < 1e-3
    assert np.array(table["vector_32_int8"].to_pylist()).shape == (8, 32)
    assert record_in(pa.py_buffer((tmp_path / "out" / "vectors" / chunk.name).read_bytes())) == done.record
    assert (done.record.rows, done.record.embedded, done.record.texts) == (9, 8, 7)
    assert done.record.rejected == {"null": 1}
    assert not any(name.startswith(b"ray") for name in table.schema.metadata)
    check_elsewhere(tmp_path / "out" / "vectors", x_ND.shape[0])


ELSEWHERE = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "jasper_ray"):
            raise ImportError(name)
sys.meta_path.insert(0, Nothing())
import duckdb, polars, pyarrow.parquet
folder = sys.argv[1]
print(pyarrow.parquet.read_table(folder)["vector_96"].type)
print(polars.read_parquet(f"{folder}/*.parquet")["vector_96"].dtype)
found = duckdb.sql(f"select count(*), min(array_inner_product(v, v)) > 0.999, typeof(any_value(v)) from"
                   f"(select vector_96::float[96] as v from '{folder}/*.parquet')").fetchall()[0]
print(*found)
"""


def check_elsewhere(folder: Path, rows: int) -> None:
    """Read the fixed-size lists with other libraries, without Ray and this package."""
    told = subprocess.run([sys.executable, "-c", ELSEWHERE, str(folder)], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines() == [
        "fixed_size_list<element: float>[96]",
        "Array(Float32, shape=(96,))",
        f"{rows} True FLOAT[96]",
    ]


def test_no_file_is_left_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path / "out"))
    store.write("vectors/a.parquet", b"old")

    def fail(self: Any, path: str, data: bytes) -> None:
        Path(path).write_bytes(data[:1])
        raise OSError("disk full")

    monkeypatch.setattr("jasper_ray.embedding.store.Store._fill", fail)
    with pytest.raises(OSError, match="disk full"):
        store.write("vectors/a.parquet", b"new")
    assert [path.name for path in (tmp_path / "out" / "vectors").iterdir()] == ["a.parquet"]
    assert (tmp_path / "out" / "vectors" / "a.parquet").read_bytes() == b"old"


def test_secrets_in_an_address_are_not_told() -> None:
    assert printable("s3://name:secret@bucket/in/*.txt?region=x&secret_key=y") == "s3://bucket/in/*.txt"
    assert printable("/plain/path?.txt") == "/plain/path?.txt"


def test_what_killed_writers_left_is_swept_away(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    store.write("vectors/a.parquet", b"whole")
    (tmp_path / "out" / "vectors" / ".b.parquet.0a1b2c3d").write_bytes(b"ha")
    assert store.names("vectors") == ["a.parquet"]
    OutputFolder(store).sweep()
    assert [path.name for path in (tmp_path / "out" / "vectors").iterdir()] == ["a.parquet"]


def test_an_output_that_cannot_be_written_is_said_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write to .*choose another --output"):
        open_store(str(tmp_path / "file" / "out"))


def job(**changes: Any) -> tuple[Provenance, EmbedSettings]:
    asked = EmbedSettings.model_validate({"model": "m", "inputs": ("x",), **changes})
    resolved = Resolved(prompt="", vectors=(VectorColumn(dim=8),), precision="float32", agreement=None, max_length=64)
    return Provenance(model="m", weights="sha256:1", asked=asked.decisive(), resolved=resolved), asked


@pytest.mark.parametrize(
    ("changes", "weights", "told"),
    [
        ({"prompt": "q"}, "sha256:1", "prompt was None and is now 'q'"),
        ({"vectors": (VectorColumn(dim=16),)}, "sha256:1", "vectors.0.dim was None and is now 16"),
        ({"block_rows": 100}, "sha256:1", "block_rows was 4096 and is now 100"),
        ({}, "sha256:2", "model's weights was 'sha256:1' and is now 'sha256:2'"),
    ],
)
def test_a_folder_refuses_another_job_and_says_what_differs(
    tmp_path: Path, changes: dict[str, Any], weights: str, told: str
) -> None:
    folder = OutputFolder(open_store(str(tmp_path / "out")))
    first, same = job()
    folder.write("job.json", first)
    assert folder.check(same.model_copy(update={"model": "moved", "batch_tokens": 7}), "sha256:1") == first
    with pytest.raises(ConfigError) as error:
        folder.check(job(**changes)[1], weights)
    assert told in str(error.value)


def test_a_changed_input_file_is_refused_once_its_rows_are_embedded(tmp_path: Path) -> None:
    write_lines(tmp_path, "txt", 3)
    [file] = list_inputs(settings(tmp_path / "a.txt"))
    folder = OutputFolder(open_store(str(tmp_path / "out")))
    folder.keep_known([ScannedFile(file=file.known, scan=Scan(rows=3, offsets=(0,)))])
    (tmp_path / "a.txt").write_text("other")
    [changed] = list_inputs(settings(tmp_path / "a.txt"))
    folder.check_unchanged([changed], folder.known(), begun=set())
    with pytest.raises(ConfigError, match=r"a\.txt has changed since"):
        folder.check_unchanged([changed], folder.known(), begun={file.known.key})


def test_a_file_of_vectors_that_is_damaged_is_made_anew(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    name = chunk_name("a-0123456789abcdef", 0)
    store.write(f"vectors/{name}", b"")
    store.write("vectors/_SUCCESS", b"")
    assert OutputFolder(store).records() == {}
    assert store.names("vectors") == ["_SUCCESS"]


NEEDED = ["--model", "m", "--input", "x", "--output", "out"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--dim", "big"], "--dim big is not a size"),
        (["--dim", "8:int4"], "--dim 8:int4 is not a size"),
        (["--dim", "12:binary"], "12:binary does not fill whole bytes"),
        (["--dim", "8", "--dim", "8"], "vector_8 would be written twice"),
        (["--carry", "id"], "id would be written twice"),
        (["--actors", "many"], "--actors many is not a number"),
        (["--actors", "3:2"], "min_size 3 is above max_size 2"),
        (["--max-rejected", "2"], "max_rejected"),
    ],
)
def test_wrong_options_are_told_in_a_sentence(options: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings_of(command_line().parse_args([*NEEDED, "--readers", "2", *options]))
    assert told in str(error.value)


def test_what_is_not_said_of_the_pool_is_left_to_the_cluster() -> None:
    def pool(*words: str) -> dict[str, Any] | None:
        found = settings_of(command_line().parse_args([*NEEDED, *words])).pool
        return found.model_dump(exclude_unset=True) if found else None

    assert pool() is None
    assert pool("--threads", "4") == {"threads": 4}
    assert pool("--actors", "2:8", "--gpus", "0.5") == {"min_size": 2, "max_size": 8, "gpus": 0.5}


def test_an_encoder_that_takes_texts_alone_is_given_texts(tmp_path: Path, sentences: list[str]) -> None:
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    words = Tokenizer.from_file(str(Path(locate(BASE)) / "tokenizer.json"))
    torch.manual_seed(1)
    model = SentenceTransformer(modules=[StaticEmbedding(words, embedding_dim=24)])
    model.save(str(tmp_path / "static"))
    encoder = load_encoder(str(tmp_path / "static"))
    assert encoder.tokenizing() is None
    rows = rows_from_parquet(tmp_path, sentences)
    chunk = Preparation(None, True, None, ()).chunk("n", "f", 0, rows)
    found = encode_chunk(chunk, opened(encoder, 100), [24])
    assert (found.texts, found.tokens, found.computed) == (len(set(sentences)), 0, 0)
    expected = model.encode(sentences, normalize_embeddings=True)
    assert np.abs(found.heads[24][chunk.kept[TEXT].to_numpy()] - expected).max() < 1e-6


def test_vectors_neither_compress_nor_repeat_so_they_are_kept_plain() -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(64, np.float32)), 8)
    data = parquet(pa.table({"id": [str(row) for row in range(8)], "vector_8": column}))
    group = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0)
    assert [group.column(place).compression for place in range(2)] == ["ZSTD", "UNCOMPRESSED"]


def test_a_span_stops_at_its_last_block(tmp_path: Path) -> None:
    texts = write_lines(tmp_path, "txt", 40)
    [file] = list_inputs(settings(tmp_path))
    offsets = scan(file, Columns("text", ()), 4).offsets
    span = Span(file, (2, 3), 8, offsets[2])
    found = [table[TEXT].to_pylist() for _, table in read_span(span, Columns("text", ()), 4)]
    assert found == [texts[8:12], texts[12:16]]


# the command


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model", "nowhere/at-all"], "'nowhere/at-all' is neither a local folder nor reachable|the hub is offline"),
        (["--input", "none.jsonl"], "found no file named as parquet, jsonl, csv or txt at none.jsonl"),
        (["--dim", "32:int4"], "--dim 32:int4 is not a size"),
        (["--output", "a.txt/out"], "cannot write to a.txt/out"),
        (["--verify"], "out is not finished"),
    ],
)
def test_what_is_wrong_is_one_line_before_ray_starts(
    options: list[str],
    told: str,
    student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a.txt").write_text("a text\n")
    usual = {"--model": str(student), "--input": "a.txt", "--output": "out"}
    given = {**usual, **dict(zip(options[::2], [*options[1::2], ""], strict=False))}
    words = [word for pair in given.items() for word in pair if word]
    said = Commands(tmp_path, monkeypatch, capsys).run("embed.py", *words)
    assert (said.code, said.out) == (2, "")
    assert re.search(told, said.err), said.err
    assert said.err.count("\n") == 1


def test_help_comes_at_once(tmp_path: Path) -> None:
    command = [sys.executable, str(JOBS / "embed.py"), "--help"]
    answer = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=True, timeout=60)
    assert "--dim N[:DTYPE]" in answer.stdout
