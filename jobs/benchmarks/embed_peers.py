"""The usual ways to embed texts on a CPU: sentence-transformers, and ONNX Runtime on texts sorted by length.

Each is measured at its best batch size, without loading the model; `one_ms` is the median time of one short text.
"""

# Shape legend: B rows, T tokens, D size of a vector.

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import Record
from jasper_ray.encoders import load_sentence_transformer
from jasper_ray.encoders.token_budget import is_out_of_memory
from jasper_ray.models.tokens import Tokenizing
from jasper_ray.vectors import Dtype

BATCHES = (16, 32, 64, 128)
TRIAL_ROWS = 1024
SHORT, SINGLE = 120, 200
"""Characters of a short text, and the number of them that are embedded one at a time."""


def run_sentence_transformers(model: str, lines: list[str], threads: int, dtype: Dtype) -> Record:
    """Measure sentence-transformers."""
    torch.set_num_threads(threads)
    encoder = load_sentence_transformer(model, dtype=dtype)
    return measured(
        lambda texts, batch: encoder.model.encode(texts, batch_size=batch, normalize_embeddings=True), lines
    )


def run_onnx(model: str, lines: list[str], threads: int) -> Record:
    """Export the model to ONNX and measure ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizing = export(model, f"{folder}/model.onnx")
        session = open_session(f"{folder}/model.onnx", threads)
        return measured(lambda texts, batch: encode_onnx(session, tokenizing, texts, batch), lines)


def measured(embed: Callable[[list[str], int], object], lines: list[str]) -> Record:
    """Time all lines at the best batch size, and single short ones."""

    def seconds(texts: list[str], batch: int) -> float:
        began = time.perf_counter()
        embed(texts, batch)
        return time.perf_counter() - began

    best = best_batch(seconds, lines[:TRIAL_ROWS], BATCHES)
    one = single_text_ms(lambda line: embed([line], 1), lines)
    return {"seconds": seconds(lines, best), "batch": best, "one_ms": one}


def best_batch(seconds: Callable[[list[str], int], float], texts: list[str], batches: Sequence[int]) -> int:
    """Find the fastest batch size after a warm-up; sizes that do not fit into memory are skipped.

    Raises:
        RuntimeError: the smallest does not fit.
    """
    seconds(texts, batches[0])
    took = dict.fromkeys(batches, math.inf)
    for batch in batches:
        try:
            took[batch] = seconds(texts, batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
    return min(took, key=took.__getitem__)


def single_text_ms(embed: Callable[[str], object], lines: Sequence[str]) -> float:
    """Return the median milliseconds of one short text: the wait of a server's only client."""
    took = []
    for line in [line for line in lines if len(line) <= SHORT][:SINGLE]:
        began = time.perf_counter()
        embed(line)
        took.append(1000 * (time.perf_counter() - began))
    return statistics.median(took)


class Pooled(nn.Module):
    """A sentence-transformers model as a function of ids and mask."""

    def __init__(self, modules: nn.Module) -> None:
        super().__init__()
        self.inner = modules

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Return a vector a row."""
        features = {"input_ids": ids_BT, "attention_mask": mask_BT, "modality": "text"}
        vectors_BD: Tensor = self.inner(features)["sentence_embedding"]
        return vectors_BD


def export(model: str, path: str) -> Tokenizing:
    """Write the model as ONNX, and return its tokenizing."""
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
    """Open the model in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def encode_onnx(session: Any, tokenizing: Tokenizing, lines: Sequence[str], batch: int) -> None:
    """Embed all lines, longest first."""
    ids = sorted((np.array(row) for row in tokenizing(lines)), key=len, reverse=True)
    for start in range(0, len(ids), batch):
        ids_BT, mask_BT = tokenizing.padded(ids[start : start + batch])
        session.run(None, {"ids": ids_BT, "mask": mask_BT})
