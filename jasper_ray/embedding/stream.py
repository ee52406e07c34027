"""The stream of chunks through Ray Data: read, embed, write; and the job-wide cache of repeated texts.

A row of the dataset is one chunk. The actor that embeds a chunk writes its file atomically.
"""

# Shape legend: N texts looked up, K of them known, D all numbers of a text's vectors together.

from __future__ import annotations

import hashlib
import pickle
import uuid
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset, ExecutionResources

from jasper_ray.embedding.chunks import Span, unpack
from jasper_ray.embedding.folder import OutputFolder, Resolved
from jasper_ray.embedding.output import VECTORS, ChunkWriter, Done, record_in
from jasper_ray.embedding.preflight import Examined, Plan
from jasper_ray.embedding.reading import READ_AT, ReadChunks, dataset_of
from jasper_ray.embedding.store import Store
from jasper_ray.encoders.token_budget import Encode
from jasper_ray.labelling.labeller import pool_strategy
from jasper_ray.models.tokens import Ids
from jasper_ray.ray_runtime import plain_errors

WAITING_CHUNKS = 8
"""Chunks that may wait for each replica, at least; more if texts are short."""
GUESSED_TOKENS, ROW_BYTES = 128, 128
"""Size of a waiting row."""


class VectorCache:
    """Vectors by the tokens of their text, up to a number of bytes; then new ones are not kept."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit = limit_bytes
        self.used = 0
        self.vectors: dict[bytes, np.ndarray] = {}

    def lookup(self, keys: Sequence[bytes]) -> tuple[list[int], np.ndarray]:
        """Find the places of known keys, and their vectors `[K, D]`."""
        known = [place for place, key in enumerate(keys) if key in self.vectors]
        vectors = [self.vectors[keys[place]] for place in known]
        return known, np.stack(vectors) if vectors else np.empty((0, 0), np.float32)

    def add(self, keys: Sequence[bytes], vectors_ND: np.ndarray) -> None:
        """Keep new vectors while there is room."""
        for key, vector_D in zip(keys, vectors_ND, strict=True):
            if key not in self.vectors and self.used + vector_D.nbytes <= self.limit:
                self.vectors[key] = vector_D.copy()
                self.used += vector_D.nbytes


class CachedRecall:
    """An actor's access to a `VectorCache`: it embeds only unknown texts."""

    def __init__(self, cache: ray.actor.ActorHandle) -> None:
        self.cache = cache

    def encode(self, encode: Encode, ids: Ids, dims: Sequence[int]) -> dict[int, np.ndarray]:
        keys = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in ids]
        known, known_KD = ray.get(self.cache.lookup.remote(keys))
        fresh = sorted(set(range(len(ids))) - set(known))
        all_ND = np.empty((len(ids), sum(dims)), np.float32)
        if known:
            all_ND[known] = known_KD
        if fresh:
            heads = encode([ids[place] for place in fresh])
            all_ND[fresh] = np.concatenate([heads[dim] for dim in dims], axis=1)
            self.cache.add.remote([keys[place] for place in fresh], all_ND[fresh])
        ends = np.cumsum(dims)
        return {dim: all_ND[:, end - dim : end] for dim, end in zip(dims, ends, strict=True)}


def stream(spans: Sequence[Span], plan: Plan, examined: Examined, folder: OutputFolder) -> Iterator[Done]:
    """Embed the spans, and yield each chunk's record as soon as its file is written."""
    settings, resolved = plan.settings, examined.resolved
    ranges = folder.ranges({column.dim for column in resolved.vectors if column.dtype == "int8"})
    dataset = dataset_of([{"span": pickle.dumps(span)} for span in spans])
    dataset.context.target_max_block_size = 1  # every row, which is a chunk, becomes one of Ray Data's blocks
    limits = ExecutionResources.for_limits(object_store_memory=waiting_bytes(plan, resolved.max_length))
    dataset.context.execution_options.resource_limits = limits
    cache = None
    if settings.unique == "job":
        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(VectorCache)
        cache = actor.remote(int(settings.unique_gib * 2**30))
    tokenizing = ray.put(examined.tokenizing)  # held here as long as the pool lives: a lost reader needs it again
    chunks: Dataset = dataset.map_batches(
        ReadChunks,
        fn_constructor_args=(settings, tokenizing),
        batch_size=1,
        compute=pool_strategy(plan.readers),
        num_cpus=plan.readers.cpus,
    )
    done = chunks.map_batches(
        EmbedChunks,
        fn_constructor_args=(plan, resolved, ranges, folder.store, cache),
        batch_size=1,
        batch_format="pyarrow",
        compute=pool_strategy(plan.pool),
        num_cpus=plan.pool.cpus,
        num_gpus=plan.pool.gpus or None,
    )
    with plain_errors():
        for batch in done.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from (Done.model_validate_json(text) for text in batch["done"].to_pylist())


def waiting_bytes(plan: Plan, max_length: int) -> int:
    """Bound the memory of chunks that wait for actors.

    Readers are faster. Unbounded they would read the whole corpus ahead, and on CPUs slow the actors down.
    """
    tokens = min(max_length or GUESSED_TOKENS, GUESSED_TOKENS)
    return WAITING_CHUNKS * plan.pool.max_size * plan.settings.block_rows * (ROW_BYTES + 4 * tokens)


class EmbedChunks:
    """Actor that embeds chunks and writes their files."""

    def __init__(
        self,
        plan: Plan,
        resolved: Resolved,
        ranges: Mapping[int, np.ndarray],
        store: Store,
        cache: ray.actor.ActorHandle | None,
    ) -> None:
        opened = plan.open(resolved.precision)
        recall = CachedRecall(cache) if cache else None
        self.writer = ChunkWriter(opened, resolved.vectors, ranges, store, recall)
        self.actor = uuid.uuid4().hex[:8]

    def __call__(self, batch: pa.Table) -> pa.Table:
        chunk = unpack(batch)
        done = self.done_before(chunk.name) or self.writer.embed(chunk, self.actor)
        done = done.model_copy(update={READ_AT: batch[READ_AT][0].as_py()})
        return pa.table({"done": [done.model_dump_json()]})

    def done_before(self, name: str) -> Done | None:
        """Find a chunk that was written by an actor which died before it could report it."""
        data = self.writer.store.read(f"{VECTORS}/{name}")
        if data is None:
            return None
        tokens = self.writer.opened.budget.tokens
        return Done(record=record_in(data), actor=self.actor, seconds=0.0, batch_tokens=tokens)
