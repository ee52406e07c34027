"""The choice of a precision: measured, overridden, or given."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from jasper_ray.config import ConfigError
from jasper_ray.encoders import precision
from jasper_ray.encoders.precision import bfloat16_speed, fast_precision, precise


@pytest.fixture(autouse=True)
def nothing_decided(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(precision.OVERRIDE, raising=False)
    bfloat16_speed.cache_clear()
    yield
    bfloat16_speed.cache_clear()


@pytest.mark.parametrize("learning", [False, True])
def test_what_is_measured_is_what_a_layer_does(learning: bool) -> None:
    layer = precision.linear_layer("cpu", torch.float32, learning)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], with_flops=True) as seen:
        layer()
    rows, width = precision.SIZES["cpu"]
    assert sum(event.flops or 0 for event in seen.key_averages()) == 2 * rows * width**2 * (3 if learning else 1)


def test_a_measurement_leaves_torchs_threads_as_they_were() -> None:
    threads = torch.get_num_threads()
    assert 0 < bfloat16_speed("cpu") < 1000
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("speed", "fast"), [(0.01, "float32"), (1.0, "float32"), (1.3, "bfloat16"), (15, "bfloat16")])
def test_bfloat16_is_taken_where_it_is_clearly_faster(speed: float, fast: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bfloat16_speed", lambda device, learning: speed)
    assert fast_precision("cpu") == fast
    assert precise("auto", "cpu") == fast


def test_a_device_that_nobody_knows_how_to_measure_computes_in_float32() -> None:
    assert fast_precision("meta") == "float32"


@pytest.mark.parametrize("asked", ["float32", "bfloat16", "float16"])
def test_who_asks_for_a_precision_gets_it_unmeasured(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bfloat16_speed", None)
    assert precise(asked, "cpu") == asked  # type: ignore[arg-type]


def test_the_environment_decides_what_auto_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bfloat16_speed", None)
    for decided in ("bfloat16", "float32"):
        monkeypatch.setenv(precision.OVERRIDE, decided)
        assert precise("auto", "cpu") == decided
    monkeypatch.setenv(precision.OVERRIDE, "bf16")
    with pytest.raises(ConfigError, match="JASPER_RAY_PRECISION is 'bf16'; expected float32 or bfloat16"):
        fast_precision("cpu")
