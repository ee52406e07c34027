"""Reading a corpus for embedding, in processes of their own: rows are counted first, then read block by block.

Nothing here imports torch, so these processes start quickly.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import TaskPoolStrategy

from jasper_ray.embedding.block import Preparation
from jasper_ray.embedding.inputs import InputFile
from jasper_ray.embedding.plan import Span, block_name, read_span
from jasper_ray.embedding.rows import Columns
from jasper_ray.embedding.scan import Scan, scan
from jasper_ray.embedding.settings import EmbedSettings
from jasper_ray.pipelines.session import set_up_data

MOST_INPUT_BLOCKS = 1000
"""Of Ray Data; each is an object that the driver makes before anything runs."""


def scan_files(files: Sequence[InputFile], columns: Columns, block_rows: int) -> list[Scan]:
    """Look at files, on as many processors as there are."""
    if not files:
        return []
    items = [{"place": place, "file": pickle.dumps(file)} for place, file in enumerate(files)]
    dataset = ray.data.from_items(items, override_num_blocks=min(len(items), MOST_INPUT_BLOCKS))
    set_up_data(dataset.context)
    tasks = TaskPoolStrategy(min(len(items), max(1, int(ray.cluster_resources().get("CPU", 1)))))
    work = {"columns": columns, "block_rows": block_rows}
    scanned = dataset.map(scan_row, fn_kwargs=work, num_cpus=0.5, compute=tasks)
    found = {row["place"]: Scan.model_validate_json(row["scan"]) for row in scanned.iter_rows()}
    return [found[place] for place in range(len(files))]


def scan_row(row: dict[str, Any], columns: Columns, block_rows: int) -> dict[str, Any]:
    return {"place": row["place"], "scan": scan(pickle.loads(row["file"]), columns, block_rows).model_dump_json()}


class ReadBlocks:
    """Spans become blocks: read, checked, tokenised."""

    def __init__(self, settings: EmbedSettings, tokenizing: bytes) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # more readers, not more threads
        self.settings = settings
        self.preparation = Preparation(pickle.loads(tokenizing), settings.truncate, settings.id_column, settings.carry)

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[pa.Table]:
        span: Span = pickle.loads(batch["span"][0])
        rows = self.settings.block_rows
        columns = Columns(self.settings.text_column, self.settings.copied)
        for number, table in read_span(span, columns, rows):
            name = block_name(span.file.known.key, number)
            yield self.preparation.block(name, span.file.known.name, number * rows, table).packed()
