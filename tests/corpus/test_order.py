"""The order of training: every text once a pass, batch after batch, and the same whether a stage was interrupted."""

from __future__ import annotations

import itertools

import pytest

from jasper_ray.config import ConfigError
from jasper_ray.corpus.order import Visit, batches_in_pass, left_over, plan_visits, row_order
from jasper_ray.corpus.shards import Shard

SHARDS = [Shard(file=f"train/{n}.parquet", rows=rows, sha256=f"{n:064x}") for n, rows in enumerate((7, 7, 7, 7, 3))]
BATCH = 4
PER_PASS = 7  # 31 rows, of which 28 fill batches

Row = tuple[str, int]


def visits(first_step: int, last_step: int, seed: int = 5) -> list[Visit]:
    return list(plan_visits(SHARDS, seed=seed, batch_size=BATCH, first_step=first_step, last_step=last_step))


def rows(first_step: int, last_step: int, seed: int = 5) -> list[Row]:
    """The texts that these steps see, in order: shard and row."""
    return [(visit.file, int(row)) for visit in visits(first_step, last_step, seed) for row in row_order(visit)]


def test_a_pass_gives_a_row_at_most_once_and_drops_what_fills_no_batch() -> None:
    assert batches_in_pass(SHARDS, BATCH) == PER_PASS
    for number in range(3):
        seen = rows(number * PER_PASS, (number + 1) * PER_PASS)
        assert len(seen) == len(set(seen)) == PER_PASS * BATCH
        assert all(row < next(s.rows for s in SHARDS if s.file == file) for file, row in seen)


def test_what_a_pass_drops_differs_from_pass_to_pass() -> None:
    everything = {(shard.file, row) for shard in SHARDS for row in range(shard.rows)}
    dropped = [everything - set(rows(n * PER_PASS, (n + 1) * PER_PASS)) for n in range(8)]
    assert all(len(each) == left_over(SHARDS, BATCH) == 3 for each in dropped)
    assert len(set().union(*dropped)) > 10


@pytest.mark.parametrize("last_step", [1, 5, PER_PASS, 2 * PER_PASS + 3])
def test_continuing_gives_exactly_the_tail(last_step: int) -> None:
    whole = rows(0, last_step)
    assert len(whole) == last_step * BATCH
    for step in range(last_step + 1):
        assert rows(step, last_step) == whole[step * BATCH :]


def test_a_longer_stage_begins_like_a_shorter_one() -> None:
    assert rows(0, 20)[: 11 * BATCH] == rows(0, 11)


@pytest.mark.parametrize("first_step", [0, 3, PER_PASS, PER_PASS + 1])
def test_positions_follow_each_other_from_the_first_row_of_the_step(first_step: int) -> None:
    planned = visits(first_step, 3 * PER_PASS - 2)
    position = first_step * BATCH
    for visit in planned:
        assert visit.position == position
        assert visit.take > 0
        position += visit.take
    assert position == (3 * PER_PASS - 2) * BATCH


def test_passes_and_seeds_shuffle_shards_and_rows() -> None:
    orders = [rows(0, PER_PASS), rows(PER_PASS, 2 * PER_PASS), rows(0, PER_PASS, seed=6)]
    for one, other in itertools.combinations(orders, 2):
        assert [file for file, _ in one] != [file for file, _ in other]
        shard = SHARDS[0].file
        assert [row for file, row in one if file == shard] != [row for file, row in other if file == shard]


def test_the_order_of_rows_is_not_that_of_the_file() -> None:
    assert any(row_order(visit).tolist() != sorted(row_order(visit)) for visit in visits(0, PER_PASS))


def test_the_order_is_the_same_on_every_machine() -> None:
    first = [(file.removeprefix("train/").removesuffix(".parquet"), row) for file, row in rows(0, 2)]
    assert first == [("3", 0), ("3", 2), ("3", 6), ("3", 3), ("3", 1), ("3", 5), ("3", 4), ("1", 0)]


def test_no_steps_need_no_visits() -> None:
    assert visits(4, 4) == []


def test_fewer_texts_than_a_batch_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="there are 31 texts to train on, fewer than one batch of 32; lower batch_size"
    ):
        batches_in_pass(SHARDS, 32)
    with pytest.raises(ConfigError, match="there are 0 texts to train on"):
        list(plan_visits([], seed=0, batch_size=1, first_step=0, last_step=1))
