"""Embedding on Ray: every row is accounted for, with any contents of the files and any process killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.data import DataContext
from sentence_transformers.util import quantize_embeddings
from small_run import title
from small_student import BASE, small_student

from jasper_ray.assets import locate
from jasper_ray.config import ConfigError
from jasper_ray.embedding import EmbedSettings
from jasper_ray.embedding.job import embed_corpus
from jasper_ray.embedding.output import Done
from jasper_ray.embedding.preflight import default_pool, default_readers
from jasper_ray.embedding.stream import VectorCache
from jasper_ray.embedding.verify import verify_corpus
from jasper_ray.encoders import load_encoder
from jasper_ray.models.body import BodySettings
from jasper_ray.models.folder import StudentCard, save_student
from jasper_ray.models.loading import load_tokenizer
from jasper_ray.models.student import STELLA_PROMPTS, StudentSettings, build_student
from jasper_ray.vectors import least_cosine

pytestmark = pytest.mark.slow

POOL = {"min_size": 1, "max_size": 1, "cpus": 0.5, "threads": 1}
TWO = {**POOL, "min_size": 2, "max_size": 2}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_student(tmp_path_factory.mktemp("model") / "student")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a student so small that bfloat16 is fast even on a CPU without it."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    body = BodySettings(base=BASE, random_weights=True, architecture={"model_type": "bert", **sizes})
    student = build_student(StudentSettings(body=body, heads=(96, 32), default_head=32, max_length=64), seed=1)
    card = StudentCard(max_length=64, prompts=STELLA_PROMPTS, default_head=32)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_student(student, load_tokenizer(locate(BASE)), card, folder)
    return folder


def sentences(rows: int) -> list[str]:
    lines = Path(locate("pypi:vader-sentences")).read_text(encoding="utf-8").splitlines()
    return [lines[row % len(lines)] for row in range(rows)]


def settings(student: Path, *inputs: Path, **changes: Any) -> EmbedSettings:
    usual = {"precision": "float32", "block_rows": 50, "pool": POOL, "batch_tokens": 500}
    return EmbedSettings.model_validate({"model": str(student), "inputs": [str(i) for i in inputs], **usual, **changes})


def vectors(output: Path) -> pa.Table:
    return pq.read_table(output / "vectors")


def bytes_of(output: Path) -> dict[str, tuple[bytes, int]]:
    """Read the contents and modification times of the finished files."""
    files = (output / "vectors").glob("*.parquet")
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.usefixtures("shared_ray")
def test_several_columns_from_one_pass_with_what_was_asked_for(tiny: Path, tmp_path: Path) -> None:
    texts = sentences(230)
    (tmp_path / "in").mkdir()
    pq.write_table(
        pa.table({"key": range(230), "body": texts, "kind": ["a", "b"] * 115}), tmp_path / "in" / "a.parquet"
    )
    columns = [
        {"dim": 96},
        {"dim": 32, "dtype": "int8"},
        {"dim": 32, "dtype": "binary"},
        {"dim": 32, "dtype": "float16"},
    ]
    asked = settings(
        tiny,
        tmp_path / "in",
        text_column="body",
        id_column="key",
        carry=["kind"],
        vectors=columns,
        precision="bfloat16",
        prompt="s2p_query",
    )
    manifest = embed_corpus(asked, str(tmp_path / "out"))
    table = vectors(tmp_path / "out").sort_by("key")
    assert table.column_names == ["key", "kind", "vector_96", "vector_32_int8", "vector_32_binary", "vector_32_float16"]
    assert table["key"].to_pylist() == list(range(230))
    assert table["kind"].to_pylist() == ["a", "b"] * 115
    exact = load_encoder(str(tiny)).encode_heads(texts, "s2p_query")
    assert least_cosine(np.stack(table["vector_96"].to_numpy()), exact[96]) >= 0.999
    assert least_cosine(np.stack(table["vector_32_float16"].to_numpy()), exact[32]) >= 0.999
    signs = np.unpackbits((np.array(table["vector_32_binary"].to_pylist()) + 128).astype(np.uint8), axis=1)
    assert (signs == (exact[32] > 0)).mean() > 0.99
    assert (manifest.rows, manifest.embedded, manifest.rejected) == (230, 230, {})
    assert manifest.texts == len(set(texts))
    assert manifest.agreement is not None
    assert manifest.agreement >= 0.999
    assert 0 <= manifest.padding_share < 0.2
    ranges = json.loads((tmp_path / "out" / "ranges-32.json").read_text())
    x_ND = load_encoder(str(tiny), dtype="bfloat16").encode(texts, "s2p_query", dim=32)
    wanted = quantize_embeddings(x_ND, "int8", ranges=np.array([ranges["least"], ranges["largest"]]))
    steps = np.abs(np.array(table["vector_32_int8"].to_pylist()) - wanted.astype(int))
    assert np.quantile(steps, 0.99) <= 3  # batches of other shapes round otherwise in bfloat16
    assert "vectors are as the manifest says; 200 rows embedded again" in verify_corpus(asked, str(tmp_path / "out"))


@dataclass(frozen=True)
class Finished:
    """A corpus, its output folder, and the message of its embedding."""

    corpus: Path
    output: Path
    told: str = ""


GOOD = ["plain", "emoji 👩‍🚀", "nul \x00 byte", "שלום עולם", "word " * 20_000]
BAD = ['{"text": null}', '{"text": 3.5}', '{"text": "  "}', '{"text": "\\udc00"}', "not json"]


@pytest.fixture(scope="module")
def damaged(shared_ray: None, student: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Embed a file of which a third of the rows are bad, more than is allowed."""
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "in").mkdir()
    lines = [json.dumps({"text": text}) for text in GOOD]
    (folder / "in" / "a.jsonl").write_text("\n".join([*lines, *BAD, *lines]) + "\n", encoding="utf-8")
    with pytest.raises(ConfigError) as found:
        embed_corpus(settings(student, folder / "in", format="jsonl"), str(folder / "out"))
    return Finished(folder / "in", folder / "out", str(found.value))


@pytest.fixture(scope="module")
def finished(shared_ray: None, student: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Embed a file of 120 sentences beside an empty one."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "in").mkdir()
    (folder / "in" / "a.txt").write_text("\n".join(sentences(120)))
    (folder / "in" / "b.txt").write_text("")
    embed_corpus(settings(student, folder / "in"), str(folder / "out"))
    return Finished(folder / "in", folder / "out")


@contextmanager
def to_change(finished: Finished, folder: Path) -> Iterator[Finished]:
    """Give a test its own output; the corpus, which is known by its path, is restored afterwards."""
    kept = shutil.copytree(finished.corpus, folder / "kept")
    yield replace(finished, output=shutil.copytree(finished.output, folder / "out"))
    shutil.rmtree(finished.corpus)
    shutil.copytree(kept, finished.corpus)


@pytest.fixture
def stopped(damaged: Finished, tmp_path: Path) -> Iterator[Finished]:
    with to_change(damaged, tmp_path) as mine:
        yield mine


@pytest.fixture
def embedded(finished: Finished, tmp_path: Path) -> Iterator[Finished]:
    with to_change(finished, tmp_path) as mine:
        yield mine


def test_too_many_bad_rows_stop_the_job_and_nothing_is_lost(student: Path, stopped: Finished) -> None:
    too_many = r"5 of 15 rows were rejected.*rejected has the reasons"
    assert re.search(too_many, stopped.told)
    asked = settings(student, stopped.corpus, format="jsonl")
    with pytest.raises(ConfigError, match=too_many):  # trying again does not make it right
        embed_corpus(asked, str(stopped.output))
    before = bytes_of(stopped.output)
    manifest = embed_corpus(asked.model_copy(update={"max_rejected": 1.0}), str(stopped.output))
    assert (manifest.rows, manifest.embedded, manifest.work) == (15, 10, None)
    assert bytes_of(stopped.output) == before


def test_every_bad_row_is_accounted_for_and_the_good_ones_are_embedded(student: Path, stopped: Finished) -> None:
    corpus, output = stopped.corpus, stopped.output
    (corpus / "b.jsonl").write_text('{"body": "no such key"}\n')
    (corpus / "c.jsonl.gz").write_bytes(b"\x1f\x8b cut off")
    with pytest.raises(ConfigError, match=r"2 of 3 files cannot be read, such as .*--max-rejected"):
        embed_corpus(settings(student, corpus, format="jsonl"), str(output))
    manifest = embed_corpus(settings(student, corpus, format="jsonl", max_rejected=0.7), str(output))
    assert (manifest.rows, manifest.embedded) == (15, 10)
    assert manifest.rejected == {"empty": 1, "malformed": 1, "not_text": 1, "null": 1, "undecodable": 1}
    assert [bool(file.fault) for file in manifest.files] == [False, True, True]
    rejected = pq.read_table(output / "rejected")
    assert rejected["row"].to_pylist() == [5, 6, 7, 8, 9]
    assert set(rejected["file"].to_pylist()) == {str(corpus / "a.jsonl")}
    expected = load_encoder(str(student)).encode(GOOD)
    table = vectors(output)
    assert np.abs(np.stack(table["vector_32"].to_numpy())[:5] - expected).max() < 1e-5
    assert table["id"].to_pylist()[-1] == f"{corpus / 'a.jsonl'}#14"


def test_files_that_are_added_are_all_that_is_embedded(student: Path, embedded: Finished) -> None:
    corpus, output = embedded.corpus, str(embedded.output)
    with pytest.raises(ConfigError, match="choose a folder beside it"):
        embed_corpus(settings(student, corpus), str(corpus / "out"))
    before = bytes_of(embedded.output)
    (corpus / "b.txt").write_text("\n".join(sentences(70)))
    told: list[Done] = []
    manifest = embed_corpus(settings(student, corpus), output, told.append)
    assert manifest.work
    assert (manifest.rows, manifest.work.rows) == (190, 70)
    assert sum(done.record.rows for done in told) == 70
    for done in told:
        written = (embedded.output / "vectors" / done.record.name).stat().st_mtime
        assert done.read_at
        assert done.read_at <= written
    after = bytes_of(embedded.output)
    assert {name: after[name] for name in before} == before
    (corpus / "a.txt").unlink()
    again = embed_corpus(settings(student, corpus), output)
    assert (again.rows, again.work) == (190, None)
    with pytest.raises(ConfigError, match=r"prompt was None and is now 's2s_query'"):
        embed_corpus(settings(student, corpus, prompt="s2s_query"), output)


@pytest.mark.usefixtures("shared_ray")
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"vectors": [{"dim": 64}]}, "no head of size 64; this model has 32, 96"),
        ({"prompt": "search"}, "no prompt 'search'"),
        ({"text_column": "body"}, "cannot be read.*no column 'body'"),
        ({"pool": {**POOL, "cpus": 64}}, "CPUs would be reserved at once"),
    ],
)
def test_what_the_model_or_the_texts_do_not_have_is_said(
    student: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(ConfigError, match=told):
        embed_corpus(settings(student, tmp_path / "a.jsonl", **changes), str(tmp_path / "out"))


@pytest.mark.usefixtures("shared_ray")
def test_a_text_that_comes_again_is_embedded_once_in_the_whole_job(student: Path, tmp_path: Path) -> None:
    texts = sentences(120)
    (tmp_path / "a.txt").write_text("\n".join(texts * 2))
    asked = settings(student, tmp_path / "a.txt", unique="job", vectors=[{"dim": 96}, {"dim": 32}])
    manifest = embed_corpus(asked, str(tmp_path / "out"))
    assert (manifest.embedded, manifest.texts) == (240, len(set(texts)))
    exact = load_encoder(str(student)).encode_heads(texts)
    table = vectors(tmp_path / "out")
    for dim in (96, 32):
        found_ND = np.stack(table[f"vector_{dim}"].to_numpy())
        assert np.abs(found_ND - np.concatenate([exact[dim]] * 2)).max() < 1e-5


def test_memory_is_bounded() -> None:
    memory = VectorCache(3 * 8 * 4)
    keys = [bytes([place]) for place in range(5)]
    memory.add(keys, np.arange(40, dtype=np.float32).reshape(5, 8))
    known, found_KD = memory.lookup(keys[::-1])
    assert known == [2, 3, 4]
    assert found_KD[:, 0].tolist() == [16, 8, 0]


def test_a_file_that_went_before_it_was_finished_is_missed(student: Path, embedded: Finished, tmp_path: Path) -> None:
    next((embedded.output / "vectors").glob("a-*000001.parquet")).unlink()
    (embedded.corpus / "a.txt").rename(tmp_path / "a.txt")
    (embedded.corpus / "b.txt").write_text("good")
    with pytest.raises(ConfigError, match=r"a.txt was removed before"):
        embed_corpus(settings(student, embedded.corpus), str(embedded.output))


def test_verify_finds_what_was_changed(student: Path, embedded: Finished) -> None:
    asked, output = settings(student, embedded.corpus), embedded.output
    assert "3 files with 120 vectors" in verify_corpus(asked, str(output))
    [first, second, third] = sorted((output / "vectors").glob("*.parquet"))
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(ConfigError, match=r"000000.parquet has other bytes than were written"):
        verify_corpus(asked, str(output))
    first.write_bytes(whole)
    third.unlink()
    with pytest.raises(ConfigError, match=r"000002.parquet is missing"):
        verify_corpus(asked, str(output))


@pytest.mark.usefixtures("shared_ray")
def test_an_actor_that_is_killed_is_replaced_and_nothing_is_lost(student: Path, tmp_path: Path) -> None:
    rows = 1000
    (tmp_path / "a.txt").write_text("\n".join(sentences(rows)))
    output = tmp_path / "out"
    killer = Killer(output / "vectors", after=3)
    with killer:
        manifest = embed_corpus(settings(student, tmp_path / "a.txt", pool=TWO), str(output))
    assert killer.killed
    assert (manifest.rows, manifest.embedded, len(manifest.blocks)) == (rows, rows, 20)
    ids = vectors(output)["id"].to_pylist()
    assert len(ids) == len(set(ids)) == rows


class Killer:
    """Kills one embedding actor when `after` files exist."""

    def __init__(self, folder: Path, after: int) -> None:
        self.folder = folder
        self.after = after
        self.killed = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self) -> None:
        while not self.over.wait(0.02):
            if len(list(self.folder.glob("*.parquet"))) >= self.after:
                self.killed = kill_one("EmbedChunks")
                return

    def __enter__(self) -> Killer:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def kill_one(word: str) -> int:
    """Kill a Ray worker below this process whose title has a word, and return its pid."""
    workers = [p for p in psutil.Process().children(recursive=True) if word in title(p) and "ray::" in title(p)]
    if not workers:
        return 0
    os.kill(workers[0].pid, signal.SIGKILL)
    return workers[0].pid


JOB = """
import sys
from jasper_ray import cli
from jasper_ray.embedding import EmbedSettings
from jasper_ray.embedding.output import Done
from jasper_ray.embedding.job import embed_corpus
cli.run(lambda: embed_corpus(EmbedSettings.model_validate_json(sys.argv[1]), sys.argv[2]))
"""


@pytest.mark.usefixtures("shared_ray")
def test_a_job_that_is_killed_anywhere_continues_with_each_id_exactly_once(student: Path, tmp_path: Path) -> None:
    rows, blocks = 1500, 30
    (tmp_path / "a.txt").write_text("\n".join(sentences(rows)))
    asked = settings(student, tmp_path / "a.txt", pool=TWO)
    output = tmp_path / "out"
    kill_at(asked, output, blocks // 2)
    kept = bytes_of(output)
    assert blocks // 2 <= len(kept) < blocks
    manifest = embed_corpus(asked, str(output))
    now = bytes_of(output)
    assert {name: now[name] for name in kept} == kept
    assert manifest.work
    assert manifest.work.rows == rows - 50 * len(kept)
    ids = vectors(output)["id"].to_pylist()
    assert len(ids) == len(set(ids)) == rows


def kill_at(asked: EmbedSettings, output: Path, files: int) -> None:
    """Run the job in a process of its own, and kill all of it when `files` files exist."""
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", JOB, asked.model_dump_json(), str(output)]
    job = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    folder = output / "vectors"
    while job.poll() is None and len(list(folder.glob("*.parquet"))) < files:
        threading.Event().wait(0.02)
    assert job.poll() is None, "it ended before it could be killed"
    family = [*psutil.Process(job.pid).children(recursive=True), psutil.Process(job.pid)]
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=30)
    job.wait()


def test_a_node_that_is_lost_costs_nothing_but_time(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 3000
    monkeypatch.setattr(DataContext.get_current(), "wait_for_min_actors_s", 300)  # wait for both actors
    (tmp_path / "a.txt").write_text("\n".join(sentences(rows)))
    output = tmp_path / "out"
    asked = settings(student, tmp_path / "a.txt", pool={**TWO, "cpus": 0.7})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 150 << 20})
    try:
        ray.init(cluster.address, log_to_driver=False)  # first, so that this process is not on the node that is lost
        second = cluster.add_node(num_cpus=1, object_store_memory=150 << 20)  # so that each holds one actor
        over = threading.Event()

        def lose() -> None:
            while not over.wait(0.02):
                titles = [title(process) for process in psutil.Process().children(recursive=True)]
                ready = [name for name in titles if "EmbedChunks" in name and "__init__" not in name]
                begun = len(list((output / "vectors").glob("*.parquet"))) > 3
                if len(ready) == 2 and begun:  # one on each node
                    cluster.remove_node(second, allow_graceful=False)
                    return

        loser = threading.Thread(target=lose, daemon=True)
        loser.start()
        try:
            manifest = embed_corpus(asked, str(output))
        finally:
            over.set()
            loser.join()
        assert len([node for node in ray.nodes() if node["Alive"]]) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert (manifest.rows, manifest.embedded) == (rows, rows)
    ids = vectors(output)["id"].to_pylist()
    assert len(ids) == len(set(ids)) == rows


def test_the_pool_is_what_the_cluster_has() -> None:
    assert default_pool([2], 0).model_dump() == {"min_size": 2, "max_size": 2, "cpus": 0.8, "gpus": 0.0, "threads": 1}
    assert default_pool([64], 0).max_size == 16
    assert default_pool([2] * 8, 0).threads == 1  # no replica needs more than a node has
    assert default_readers(64).max_size == 16
    assert default_pool([32], 4).model_dump() == {
        "min_size": 1,
        "max_size": 4,
        "cpus": 1.0,
        "gpus": 1.0,
        "threads": None,
    }
