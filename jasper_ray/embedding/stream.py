"""The stream of chunks through Ray Data: read, embedded, written; and the job-wide memory of repeated texts.

A row of the dataset is one block of input rows. The actor that embeds a block writes its file atomically.
"""

# Shape legend: N texts asked about, K of them known, D all numbers of a text's vectors together.

from __future__ import annotations

import hashlib
import logging
import pickle
import uuid
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset, ExecutionResources

from jasper_ray.embedding.chunks import Span, unpack
from jasper_ray.embedding.folder import OutputFolder, Resolved
from jasper_ray.embedding.model import budget_of, open_encoder
from jasper_ray.embedding.output import VECTORS, BlockWriter, Done, record_in
from jasper_ray.embedding.preflight import Examined
from jasper_ray.embedding.reading import READ_AT, ReadBlocks, dataset_of
from jasper_ray.embedding.settings import EmbedSettings
from jasper_ray.embedding.store import Store
from jasper_ray.encoders.token_budget import Encode
from jasper_ray.labelling.labeller import pool_strategy
from jasper_ray.models.tokenizing import Ids
from jasper_ray.ray_runtime import plain_errors

logger = logging.getLogger(__name__)


class Memory:
    """Vectors by the tokens of their text, up to a number of bytes; then what is new is not kept."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit = limit_bytes
        self.used = 0
        self.vectors: dict[bytes, np.ndarray] = {}

    def lookup(self, keys: Sequence[bytes]) -> tuple[list[int], np.ndarray]:
        """Places of the keys that are known, and their vectors `[K, D]`."""
        known = [place for place, key in enumerate(keys) if key in self.vectors]
        found = [self.vectors[keys[place]] for place in known]
        return known, np.stack(found) if found else np.empty((0, 0), np.float32)

    def add(self, keys: Sequence[bytes], vectors_ND: np.ndarray) -> None:
        """Keep these."""
        for key, vector_D in zip(keys, vectors_ND, strict=True):
            if key not in self.vectors and self.used + vector_D.nbytes <= self.limit:
                self.vectors[key] = vector_D.copy()
                self.used += vector_D.nbytes


class Remembering:
    """An actor's side of a `Memory`: embeds what is not known yet."""

    def __init__(self, memory: ray.actor.ActorHandle) -> None:
        self.memory = memory

    def encode(self, encode: Encode, ids: Ids, dims: Sequence[int]) -> dict[int, np.ndarray]:
        """The vectors of each head for all rows of `ids`; `encode` is given those that are not known."""
        keys = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in ids]
        known, found_KD = ray.get(self.memory.lookup.remote(keys))
        fresh = sorted(set(range(len(ids))) - set(known))
        all_ND = np.empty((len(ids), sum(dims)), np.float32)
        if known:
            all_ND[known] = found_KD
        if fresh:
            heads = encode([ids[place] for place in fresh])
            all_ND[fresh] = np.concatenate([heads[dim] for dim in dims], axis=1)
            self.memory.add.remote([keys[place] for place in fresh], all_ND[fresh])
        ends = np.cumsum(dims)
        return {dim: all_ND[:, end - dim : end] for dim, end in zip(dims, ends, strict=True)}


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
