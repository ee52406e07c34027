"""Benchmarks measure what they say; never how fast."""

from __future__ import annotations

from jasper_ray.benchmarks.losses import growth, measure, render


def test_both_forms_of_the_loss_agree_where_they_are_compared() -> None:
    record = measure(24, ("ours", "matrix"), threads=1, device="cpu")
    assert record["comparisons"] == 276 * 275 // 2
    assert record["relative_error"] < 1e-5
    assert {"ours_s", "matrix_s", "times_faster", "ours_mib", "matrix_mib"} <= record.keys()
    assert render([record]).splitlines()[1].split()[0] == "24"


def test_the_matrix_form_grows_with_the_fourth_power_of_the_batch() -> None:
    assert growth("matrix", 96, threads=1) > 4 * 4560**2 / 2**20
