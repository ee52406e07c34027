"""What Ray costs an embedding, and what a second actor brings: one and two actors of one thread each, and the same
blocks embedded and written in a plain loop in one process, in turn."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.embed import mixed_lines, ours, steady_speed
from benchmarks.process import in_fresh_process
from benchmarks.table import table
from jasper_ray.embedding import EmbedSettings
from jasper_ray.embedding.chunks import Preparation, block_name, plan_spans, read_span
from jasper_ray.embedding.inputs import list_inputs
from jasper_ray.embedding.model import budget_of, open_encoder
from jasper_ray.embedding.output import BlockWriter
from jasper_ray.embedding.rows import Columns
from jasper_ray.embedding.scan import scan
from jasper_ray.embedding.settings import VectorColumn
from jasper_ray.embedding.store import open_store

COLUMNS = ("way", "rows", "seconds", "steady_rows_per_s", "busy", "times")


def benchmark_scale(model: str, rows: int, rounds: int, precision: str) -> list[dict[str, Any]]:
    """The median of each way's rounds; `times` is its steady speed in units of the plain loop's."""
    values = {"model": model, "precision": precision, "block_rows": max(1, math.ceil(rows / 64))}
    lines = mixed_lines(rows)
    ways = {
        "plain loop": lambda: in_fresh_process(run_plain, values, lines),
        "1 actor": lambda: ours(model, 1, values, lines),
        "2 actors": lambda: ours(model, 2, values, lines),
    }
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, measure in ways.items():
            found[way].append(measure())
    records = []
    for way, each in found.items():
        medians = {name: statistics.median(record[name] for record in each) for name in each[0]}
        records.append({"way": way, "rows": rows, **medians})
    return [{**record, "times": record["steady_rows_per_s"] / records[0]["steady_rows_per_s"]} for record in records]


def run_plain(values: dict[str, Any], lines: list[str]) -> dict[str, float]:
    """The same blocks, read and tokenised before, embedded and written one after the other, with one thread."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "lines.txt"
        corpus.write_text("\n".join(lines), encoding="utf-8")
        settings = EmbedSettings.model_validate({**values, "inputs": [str(corpus)], "pool": {"threads": 1}})
        encoder = open_encoder(settings, None, settings.precision)  # type: ignore[arg-type]
        preparation = Preparation(encoder.tokenizing(), True, None, ())
        columns = (VectorColumn(dim=encoder.dims[0]),)
        writer = BlockWriter(encoder, None, columns, {}, budget_of(settings), open_store(f"{folder}/out"))
        encoder.encode_tokens([np.ones(8, np.int32)], encoder.dims[:1])
        [file] = list_inputs(settings)
        wanted = Columns("text", ())
        blocks = [
            preparation.block(block_name(file.known.key, number), "lines", 0, rows)
            for span in plan_spans(file, scan(file, wanted, settings.block_rows), settings.block_rows, ())
            for number, rows in read_span(span, wanted, settings.block_rows)
        ]
        began = time.perf_counter()
        for block in blocks:
            writer.embed(block, "plain")
        seconds = time.perf_counter() - began
        return {
            "seconds": seconds,
            "steady_rows_per_s": steady_speed(Path(folder) / "out/vectors", settings.block_rows),
        }


def render(records: list[dict[str, Any]]) -> str:
    """The records as a table."""
    return table(records, COLUMNS)
