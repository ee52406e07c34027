"""Embedding a corpus, ours and the usual ways in turn on the same texts, cores and weights; loading models is left out.

The usual ways are `SentenceTransformer.encode` at its best batch size, and ONNX Runtime on texts sorted by length.
Ours is measured from the first block's beginning to the last one's end, on Ray, with reading and writing of files.
"""

# Shape legend: B rows, T tokens, D size of a vector.

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.process import in_fresh_process
from benchmarks.table import table
from jasper_ray.assets import locate
from jasper_ray.config import ConfigError
from jasper_ray.embedding import EmbedSettings
from jasper_ray.embedding.job import embed_corpus
from jasper_ray.embedding.progress import last_line
from jasper_ray.encoders import load_encoder, load_sentence_transformer
from jasper_ray.encoders.precision import precise
from jasper_ray.models.tokenizing import Tokenizing
from jasper_ray.vectors import Dtype, Precision

SOURCES = ("pypi:vader-sentences", "debian:wordnet-sentences", "debian:docs")
"""Tweets, reviews, editorials; definitions and examples; manuals: five to two hundred tokens."""
BATCHES = (16, 32, 64, 128)
TRIAL_ROWS = 1024
SHORT, ALONE = 120, 200
"""Characters of a short text, and how many are embedded by themselves."""
COLUMNS = ("way", "rows", "seconds", "rows_per_s", "tokens_per_s", "padding", "busy", "one_ms", "times")


def benchmark_embed(
    model: str, rows: int, rounds: int, threads: int, precisions: Sequence[Dtype]
) -> list[dict[str, Any]]:
    """A record for each way, the best of its rounds; `times` is its speed in units of the first one's."""
    ways: dict[str, Callable[[list[str]], dict[str, float] | None]] = {}
    for precision in precisions:
        ways[f"sentence-transformers {precision}"] = partial(usual, model, threads, precision)
        ways[f"ours {precision}"] = partial(ours, model, threads, {"precision": precision})
    ways["ONNX Runtime float32"] = partial(onnx, model, threads)
    lines = mixed_lines(rows)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, measure in ways.items():
            record = measure(lines)
            if record:
                found[way].append({"way": way, "rows": rows, **record, "rows_per_s": rows / record["seconds"]})
                print(found[way][-1], flush=True)  # each takes minutes
    records = [min(each, key=lambda record: record["seconds"]) for each in found.values() if each]
    return [{**record, "times": records[0]["seconds"] / record["seconds"]} for record in records]


def mixed_lines(rows: int, seed: int = 3) -> list[str]:
    """Distinct lines of all sources, in an order that the seed decides; raises `ConfigError` where they are too few."""
    lines = {line for name in SOURCES for line in Path(locate(name)).read_text(encoding="utf-8").splitlines() if line}
    if len(lines) < rows:
        raise ConfigError(f"there are {len(lines)} lines, and --rows {rows} was asked for")
    return random.Random(seed).sample(sorted(lines), rows)


def ours(model: str, threads: int, changes: dict[str, Any], lines: Sequence[str]) -> dict[str, float]:
    """Ours with one actor a thread."""
    pool = {"min_size": threads, "max_size": threads, "cpus": 0.8, "threads": 1}
    record = in_fresh_process(run_ours, {"model": model, "pool": pool, **changes}, list(lines))
    return {**record, **in_fresh_process(run_one, model, threads, changes.get("precision", "auto"), list(lines))}


def run_one(model: str, threads: int, precision: Precision, lines: list[str]) -> dict[str, float]:
    """Our encoder as the server calls it, a text at a time."""
    torch.set_num_threads(threads)
    encoder = load_encoder(model, "cpu", precise(precision, "cpu"))
    tokenizing = encoder.tokenizing()
    assert tokenizing

    def embed(line: str) -> object:
        ids = [np.array(row, np.int32) for row in tokenizing([line])]
        return encoder.encode_tokens(ids, encoder.dims[:1])

    return {"one_ms": one_ms(embed, lines)}


def run_ours(values: dict[str, Any], lines: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "lines.txt"
        corpus.write_text("\n".join(lines), encoding="utf-8")
        settings = EmbedSettings.model_validate({**values, "inputs": [str(corpus)]})
        manifest = embed_corpus(settings, f"{folder}/out")
        steady = steady_speed(Path(folder) / "out" / "vectors", settings.block_rows)
    assert manifest.work, last_line(manifest)
    return {
        "steady_rows_per_s": steady,
        "seconds": manifest.work.seconds,
        "tokens_per_s": manifest.work.tokens_per_s,
        "padding": manifest.padding_share,
        "busy": manifest.work.busy_share,
    }


def steady_speed(folder: Path, block_rows: int) -> float:
    """Rows/s while the middle half of the files was written: every actor has started, and none has run out of work."""
    written = sorted(path.stat().st_mtime_ns for path in folder.glob("*.parquet"))
    first, last = len(written) // 4, len(written) - 1 - len(written) // 4
    return (last - first) * block_rows / (written[last] - written[first]) * 1e9 if last > first else 0.0


def usual(model: str, threads: int, dtype: Dtype, lines: Sequence[str]) -> dict[str, float]:
    """sentence-transformers, in a process of its own."""
    return in_fresh_process(run_usual, model, list(lines), threads, dtype)


def run_usual(model: str, lines: list[str], threads: int, dtype: Dtype) -> dict[str, float]:
    torch.set_num_threads(threads)
    encoder = load_sentence_transformer(model, dtype=dtype)

    def seconds(texts: list[str], batch: int) -> float:
        began = time.perf_counter()
        encoder.model.encode(texts, batch_size=batch, normalize_embeddings=True)
        return time.perf_counter() - began

    seconds(lines[:TRIAL_ROWS], BATCHES[0])
    best = min(BATCHES, key=lambda batch: seconds(lines[:TRIAL_ROWS], batch))
    return {"seconds": seconds(lines, best), "batch": best, "one_ms": one_ms(lambda line: seconds([line], 1), lines)}


def one_ms(embed: Callable[[str], object], lines: Sequence[str]) -> float:
    """Milliseconds of a short text by itself, half of the time less: what a lone caller of a server waits for."""
    took = []
    for line in [line for line in lines if len(line) <= SHORT][:ALONE]:
        began = time.perf_counter()
        embed(line)
        took.append(1000 * (time.perf_counter() - began))
    return statistics.median(took)


def onnx(model: str, threads: int, lines: Sequence[str]) -> dict[str, float] | None:
    """ONNX Runtime, in a process of its own; None where it is not installed."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        return None
    return in_fresh_process(run_onnx, model, list(lines), threads)


def run_onnx(model: str, lines: list[str], threads: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        tokenizing = export(model, path)
        session = open_session(path, threads)
        encode_onnx(session, tokenizing, lines[:TRIAL_ROWS], BATCHES[0])
        took = {}
        for batch in BATCHES:
            began = time.perf_counter()
            encode_onnx(session, tokenizing, lines[:TRIAL_ROWS], batch)
            took[batch] = time.perf_counter() - began
        best = min(took, key=took.__getitem__)
        began = time.perf_counter()
        encode_onnx(session, tokenizing, lines, best)
        seconds = time.perf_counter() - began
        alone = one_ms(lambda line: encode_onnx(session, tokenizing, [line], 1), lines)
        return {"seconds": seconds, "batch": best, "one_ms": alone}


class Pooled(nn.Module):
    """A sentence-transformers model that takes tokens and gives a vector a row."""

    def __init__(self, modules: nn.Module) -> None:
        super().__init__()
        self.inner = modules

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        features = {"input_ids": ids_BT, "attention_mask": mask_BT, "modality": "text"}
        vectors_BD: Tensor = self.inner(features)["sentence_embedding"]
        return vectors_BD


def export(model: str, path: str) -> Tokenizing:
    """Write the model as ONNX, and say how its texts become tokens."""
    encoder = load_sentence_transformer(model)
    tokenizing = encoder.tokenizing()
    assert tokenizing
    example = torch.ones((2, 7), dtype=torch.int64)
    axes = {"ids": {0: "B", 1: "T"}, "mask": {0: "B", 1: "T"}, "vectors": {0: "B"}}
    torch.onnx.export(
        Pooled(encoder.model),
        (example, example),
        path,
        opset_version=17,
        dynamo=False,
        input_names=["ids", "mask"],
        output_names=["vectors"],
        dynamic_axes=axes,
    )
    return tokenizing


def open_session(path: str, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def encode_onnx(session: Any, tokenizing: Tokenizing, lines: Sequence[str], batch: int) -> None:
    """All lines, longest first, so many at once."""
    ids = sorted((np.array(row) for row in tokenizing(lines)), key=len, reverse=True)
    for start in range(0, len(ids), batch):
        ids_BT, mask_BT = tokenizing.padded(ids[start : start + batch])
        session.run(None, {"ids": ids_BT, "mask": mask_BT})


def benchmark_columns(model: str, rows: int, rounds: int, threads: int) -> list[dict[str, Any]]:
    """One column of vectors against two sizes in three dtypes; `times` is their speed in units of the one's."""
    large, small = sizes(model)
    six = [{"dim": dim, "dtype": dtype} for dim in (large, small) for dtype in ("float32", "int8", "binary")]
    ways = {"1 column": [{"dim": large}], "2 sizes x 3 dtypes": six}
    lines = mixed_lines(rows)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, columns in ways.items():
            found[way].append({"way": way, "rows": rows, **ours(model, threads, {"vectors": columns}, lines)})
    records = [min(each, key=lambda record: record["seconds"]) for each in found.values()]
    return [{**record, "times": records[0]["seconds"] / record["seconds"]} for record in records]


def sizes(model: str) -> tuple[int, int]:
    """Two sizes of vectors that the model has."""
    dims = load_encoder(model).dims
    return (max(dims), min(dims)) if len(dims) > 1 else (dims[0], dims[0] // 2)


def render(records: list[dict[str, Any]]) -> str:
    """The records as a table."""
    return table(records, COLUMNS)
