"""Benchmarks measure what they say; never how fast."""

from __future__ import annotations

import pytest

from jasper_ray.benchmarks.distill import Side, ratios
from jasper_ray.benchmarks.losses import growth, measure, render
from jasper_ray.benchmarks.table import table
from jasper_ray.benchmarks.work import comparable, sizes
from jasper_ray.config import ConfigError
from jasper_ray.recipe import load_recipe


def test_both_forms_of_the_loss_agree_where_they_are_compared() -> None:
    record = measure(24, ("ours", "matrix"), threads=1, device="cpu")
    assert record["comparisons"] == 276 * 275 // 2
    assert record["relative_error"] < 1e-5
    assert {"ours_s", "matrix_s", "times_faster", "ours_mib", "matrix_mib"} <= record.keys()
    assert render([record]).splitlines()[1].split()[0] == "24"


def test_the_matrix_form_grows_with_the_fourth_power_of_the_batch() -> None:
    assert growth("matrix", 96, threads=1) > 4 * 4560**2 / 2**20


def test_a_side_is_its_start_up_and_then_its_speed() -> None:
    side = Side("ours", lambda work, rows, passes: {}, (100, 1), (300, 1), {(100, 1): [7.0], (300, 1): [11.0]})
    assert side.record() == {"what": "ours", "texts_per_s": 50.0, "start_up_s": 5.0, "end_to_end_per_s": 300 / 11}


def test_ratios_set_ours_over_theirs() -> None:
    fast, slow = ({"texts_per_s": speed, "end_to_end_per_s": speed} for speed in (30.0, 20.0))
    of_parts, of_usual, of_cached = ratios(slow, fast, slow, slow, fast)
    assert of_parts["texts_per_s"] == of_usual["end_to_end_per_s"] == 1.5
    assert of_cached["texts_per_s"] == pytest.approx(2 / 3)
    assert table([of_parts], ["what", "texts_per_s", "start_up_s"]).split()[-2:] == ["1.5", "-"]


@pytest.mark.parametrize("rows", [6144, 1000, 256])
def test_both_lengths_are_whole_shards_and_whole_batches(rows: int) -> None:
    short, long, shard_rows = sizes(rows, shard_rows=256, batch_size=128)
    assert 0 < short < long
    assert short % shard_rows == long % shard_rows == shard_rows % 128 == 0
    assert abs(long - rows) <= 128


def test_too_few_texts_for_two_lengths_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 256"):
        sizes(128, shard_rows=256, batch_size=128)


def test_both_ways_get_one_head_and_cosine_alone() -> None:
    recipe = load_recipe("quickstart")
    cut = comparable(recipe, 256)
    assert cut.student.heads == (1152,)
    assert len(cut.stages) == 1
    assert cut.teachers == recipe.teachers
    losses = cut.stages[0].losses[1152]
    assert losses.cosine
    assert not losses.similarity
    assert not losses.relative_similarity
    assert cut.stages[0].train == ("*",)
    assert cut.corpus.holdout == 0
