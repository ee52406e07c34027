"""Blocks on their way through Ray Data: read, embedded, written.

A row of the dataset is a block of ours. The actor that embeds it writes its file, whole.
"""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset, ExecutionResources

from jasper_ray.embedding.block import unpack
from jasper_ray.embedding.folder import OutputFolder, Resolved
from jasper_ray.embedding.model import budget_of, open_encoder
from jasper_ray.embedding.output import VECTORS, BlockWriter, Done, record_in
from jasper_ray.embedding.plan import Span
from jasper_ray.embedding.settings import EmbedSettings
from jasper_ray.embedding.store import Store
from jasper_ray.pipelines.examine import Examined
from jasper_ray.pipelines.label import pool_strategy
from jasper_ray.pipelines.memory import Memory, Remembering
from jasper_ray.pipelines.reading_blocks import READ_AT, ReadBlocks, dataset_of
from jasper_ray.pipelines.session import plain_errors

WAITING_BLOCKS = 8
"""Blocks that wait for each actor, at least; more where texts are short."""
GUESSED_TOKENS, ROW_BYTES = 128, 128
"""Of a row that waits."""


def stream(
    spans: Sequence[Span], settings: EmbedSettings, revision: str | None, examined: Examined, folder: OutputFolder
) -> Iterator[Done]:
    """Embed the spans; each block's record as soon as its file is written."""
    assert settings.pool
    assert settings.readers
    resolved = examined.resolved
    ranges = folder.ranges({column.dim for column in resolved.vectors if column.dtype == "int8"})
    dataset = dataset_of([{"span": pickle.dumps(span)} for span in spans])
    dataset.context.target_max_block_size = 1  # so that every row, which is a block of ours, is one of Ray's
    limits = ExecutionResources.for_limits(object_store_memory=waiting_bytes(settings, resolved.max_length))
    dataset.context.execution_options.resource_limits = limits
    memory = None
    if settings.unique == "job":
        memory = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Memory).remote(
            int(settings.unique_gib * 2**30)
        )
    tokenizing = ray.put(examined.tokenizing)  # held here as long as the pool lives: a lost reader needs it again
    blocks: Dataset = dataset.map_batches(
        ReadBlocks,
        fn_constructor_args=(settings, tokenizing),
        batch_size=1,
        compute=pool_strategy(settings.readers),
        num_cpus=settings.readers.cpus,
    )
    done = blocks.map_batches(
        EmbedBlocks,
        fn_constructor_args=(settings, revision, examined.prompt_name, resolved, ranges, folder.store, memory),
        batch_size=1,
        batch_format="pyarrow",
        compute=pool_strategy(settings.pool),
        num_cpus=settings.pool.cpus,
        num_gpus=settings.pool.gpus or None,
    )
    with plain_errors():
        for batch in done.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from (Done.model_validate_json(text) for text in batch["done"].to_pylist())


def waiting_bytes(settings: EmbedSettings, max_length: int) -> int:
    """Room for the blocks that wait for actors. Readers are faster: without a bound they would read all of a corpus
    ahead, and on processors take from the actors what these need."""
    assert settings.pool
    tokens = min(max_length or GUESSED_TOKENS, GUESSED_TOKENS)
    return WAITING_BLOCKS * settings.pool.max_size * settings.block_rows * (ROW_BYTES + 4 * tokens)


class EmbedBlocks:
    """Blocks become files."""

    def __init__(
        self,
        settings: EmbedSettings,
        revision: str | None,
        prompt_name: str | None,
        resolved: Resolved,
        ranges: Mapping[int, np.ndarray],
        store: Store,
        memory: ray.actor.ActorHandle | None,
    ) -> None:
        encoder = open_encoder(settings, revision, resolved.precision)
        recall = Remembering(memory) if memory else None
        self.writer = BlockWriter(encoder, prompt_name, resolved.vectors, ranges, budget_of(settings), store, recall)
        self.actor = uuid.uuid4().hex[:8]

    def __call__(self, batch: pa.Table) -> pa.Table:
        block = unpack(batch)
        done = self.done_before(block.name) or self.writer.embed(block, self.actor)
        done = done.model_copy(update={READ_AT: batch[READ_AT][0].as_py()})
        return pa.table({"done": [done.model_dump_json()]})

    def done_before(self, name: str) -> Done | None:
        """What an actor wrote that died before it could say so."""
        data = self.writer.store.read(f"{VECTORS}/{name}")
        if data is None:
            return None
        tokens = self.writer.budget.tokens
        return Done(record=record_in(data), actor=self.actor, seconds=0.0, batch_tokens=tokens)
