"""Reading a corpus for embedding, in processes of their own: rows are counted first, then read block by block.

Nothing here imports torch, so these processes start quickly.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset, TaskPoolStrategy

from jasper_ray.embedding.chunks import Preparation, Span, block_name, read_span
from jasper_ray.embedding.inputs import InputFile
from jasper_ray.embedding.scan import Scan, scan
from jasper_ray.embedding.settings import EmbedSettings
from jasper_ray.ray_runtime import configure_data
from jasper_ray.sources.tables import Columns

READ_AT = "read_at"
"""The column beside a packed block that says when it had been read."""
MOST_INPUT_BLOCKS = 1000
"""Of Ray Data; each is an object that the driver makes before anything runs."""


def dataset_of(items: Sequence[dict[str, Any]]) -> Dataset:
    """A dataset of some things to do."""
    dataset = ray.data.from_items(list(items), override_num_blocks=min(len(items), MOST_INPUT_BLOCKS))
    configure_data(dataset.context)
    return dataset


def over_all(
    items: Sequence[dict[str, Any]], work: Callable[..., dict[str, Any]], **arguments: Any
) -> Iterator[dict[str, Any]]:
    """What `work` makes of each item, in any order, on as many processors as there are."""
    if items:
        tasks = TaskPoolStrategy(min(len(items), max(1, int(ray.cluster_resources().get("CPU", 1)))))
        yield from dataset_of(items).map(work, fn_kwargs=arguments, num_cpus=0.5, compute=tasks).iter_rows()


def scan_files(files: Sequence[InputFile], columns: Columns, block_rows: int) -> list[Scan]:
    """Look at files, in their order."""
    items = [{"place": place, "file": pickle.dumps(file)} for place, file in enumerate(files)]
    rows = over_all(items, scan_row, columns=columns, block_rows=block_rows)
    found = {row["place"]: Scan.model_validate_json(row["scan"]) for row in rows}
    return [found[place] for place in range(len(files))]


def scan_row(row: dict[str, Any], columns: Columns, block_rows: int) -> dict[str, Any]:
    return {"place": row["place"], "scan": scan(pickle.loads(row["file"]), columns, block_rows).model_dump_json()}


class ReadBlocks:
    """Spans become blocks: read, checked, tokenised."""

    def __init__(self, settings: EmbedSettings, tokenizing: ray.ObjectRef[bytes]) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # more readers, not more threads
        self.settings = settings
        found = pickle.loads(ray.get(tokenizing))
        self.preparation = Preparation(found, settings.truncate, settings.id_column, settings.carry)

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[pa.Table]:
        span: Span = pickle.loads(batch["span"][0])
        rows = self.settings.block_rows
        columns = Columns(self.settings.text_column, self.settings.copied)
        for number, table in read_span(span, columns, rows):
            name = block_name(span.file.known.key, number)
            block = self.preparation.block(name, span.file.known.name, number * rows, table).packed()
            yield block.append_column(READ_AT, [[time.time()]])
