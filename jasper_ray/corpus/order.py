"""The order of a stage's rows, texts or pairs: a pure function of the shards, the seed and the step.

One pass visits every shard once, in an order drawn for that pass, and each shard's rows in an order drawn for that
visit. Batches are cut from that sequence one after the other; rows at the end of a pass that fill no batch are skipped.
Nothing has to be remembered, so a stage that continues at step s sees exactly the rows it would have seen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jasper_ray.config import ConfigError
from jasper_ray.corpus.shards import Shard


@dataclass(frozen=True)
class Visit:
    """One shard's turn in a stage: rows `skip` to `skip + take` of its drawn order are used."""

    file: str
    """Path of the shard, relative to the folder of the prepared data."""
    sha256: str
    """Hash of the shard's contents."""
    rows: int
    """Rows in the shard."""
    order_seed: int
    """Seed of the order of the rows."""
    skip: int
    """Rows at the start of that order that earlier steps have seen."""
    take: int
    """Rows used after those."""
    position: int
    """Place of the first used row in the stage's whole sequence."""


def batches_in_pass(shards: Sequence[Shard], batch_size: int, unit: str = "texts") -> int:
    """Return the number of whole batches in one pass; `unit` names the rows in errors.

    Raises:
        ConfigError: there are fewer rows than one batch.
    """
    rows = sum(shard.rows for shard in shards)
    if rows < batch_size:
        raise ConfigError(
            f"there are {rows} {unit} to train on, fewer than one batch of {batch_size}; lower batch_size"
        )
    return rows // batch_size


def left_over(shards: Sequence[Shard], batch_size: int) -> int:
    """Return the number of rows at the end of a pass that fill no batch; each pass skips other rows."""
    return sum(shard.rows for shard in shards) - batches_in_pass(shards, batch_size) * batch_size


def plan_visits(
    shards: Sequence[Shard], *, seed: int, batch_size: int, first_step: int, last_step: int
) -> Iterator[Visit]:
    """Yield the visits of the steps from `first_step` up to but not including `last_step`, counted from 0.

    The order depends on the pass and not on the stage: a later stage begins with the rows of the one before, whose
    vectors may be in the cache.
    """
    per_pass = batches_in_pass(shards, batch_size)
    step = first_step
    while step < last_step:
        number = step // per_pass
        start = (step - number * per_pass) * batch_size
        end = min(last_step - number * per_pass, per_pass) * batch_size
        base = number * per_pass * batch_size
        yield from visits_in_pass(shuffled(shards, f"{seed}/{number}"), f"{seed}/{number}", start, end, base)
        step = (number + 1) * per_pass


def visits_in_pass(shards: Sequence[Shard], key: str, start: int, end: int, base: int) -> Iterator[Visit]:
    """Yield the visits of rows `start` to `end` of one pass, whose first row has position `base` in the stage."""
    first = 0
    for shard in shards:
        skip, stop = max(start - first, 0), min(end - first, shard.rows)
        if skip < stop:
            order_seed = random.Random(f"{key}/{shard.sha256}").getrandbits(63)
            yield Visit(shard.file, shard.sha256, shard.rows, order_seed, skip, stop - skip, base + first + skip)
        first += shard.rows


def shuffled(shards: Sequence[Shard], key: str) -> list[Shard]:
    """Return the shards in an order that only `key` decides."""
    return random.Random(key).sample(list(shards), len(shards))


def row_order(visit: Visit) -> np.ndarray:
    """Return the indices of the rows that the visit uses, in their order."""
    return np.random.default_rng(visit.order_seed).permutation(visit.rows)[visit.skip : visit.skip + visit.take]
