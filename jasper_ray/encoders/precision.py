"""The default compute precision of a device, and the check of a precision against float32.

The device is measured, since its flags are unreliable: CPUs without bfloat16 still compute in it, many times
slower, and the flag that tells them apart differs between systems.
"""

# Shape legend: B rows, D width of a layer.

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch

from jasper_ray.config import ConfigError
from jasper_ray.vectors import Dtype, Precision, least_cosine

TOLERANCE = 0.999
"""Least cosine with float32 that a lower precision must reach on every text of a sample."""
WORTH = 1.25
"""Least speed of bfloat16 over float32 that is worth its rounding."""
ROUNDS = 5
"""Measurements of the layer; the fastest counts, since other programs only slow it down."""
SIZES = {"cpu": (64, 384), "cuda": (4096, 2048)}
"""Rows and width of the measured layer: milliseconds of work, enough to fill the device."""
OVERRIDE = "JASPER_RAY_PRECISION"
"""Environment variable that replaces the measurement."""


def precise(precision: Precision, device: str | None, learning: bool = False) -> Dtype:
    """Resolve `auto` to the precision that `device` is fast in; any other is returned as it is."""
    return fast_precision(device, learning) if precision == "auto" else precision


def fast_precision(device: str | None, learning: bool = False) -> Dtype:
    """Choose bfloat16 if the device is clearly faster in it, else float32; JASPER_RAY_PRECISION overrides."""
    kind = device_type(device)
    overridden = overridden_precision()
    return overridden or worth_precision(bfloat16_speed(kind, learning) if kind in SIZES else 1.0)


def overridden_precision() -> Dtype | None:
    """Read JASPER_RAY_PRECISION, which replaces the measurement; None if unset.

    Raises:
        ConfigError: the variable names neither float32 nor bfloat16.
    """
    decided = os.environ.get(OVERRIDE)
    if not decided:
        return None
    if decided not in ("float32", "bfloat16"):
        raise ConfigError(f"{OVERRIDE} is {decided!r}; expected float32 or bfloat16, or leave it unset")
    return decided  # type: ignore[return-value]


def worth_precision(speed: float) -> Dtype:
    return "bfloat16" if speed >= WORTH else "float32"


@cache
def bfloat16_speed(device: str, learning: bool = False) -> float:
    """Measure the speed of a linear layer in bfloat16 over float32 on `cpu` or `cuda`; below 1 it is slower.

    `learning` adds the layer's gradients, whose products take other paths: a CPU with AVX2 alone was 5 times
    slower forward, and 10 times with gradients. Measured once per process, in half a second if bfloat16 is slow.
    """
    clock = time.perf_counter if device == "cuda" else time.thread_time  # a busy machine takes CPUs away
    layers = [linear_layer(device, dtype, learning) for dtype in (torch.float32, torch.bfloat16)]
    with one_thread():
        for layer in layers:  # the first call sets libraries up
            layer()
        rounds = [[timed(layer, clock) for layer in layers] for _ in range(ROUNDS)]
    exact, lower = (min(seconds) for seconds in zip(*rounds, strict=True))
    return exact / lower


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in this thread alone, so that the thread's time is all of the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def linear_layer(device: str, dtype: torch.dtype, learning: bool) -> Callable[[], None]:
    """Make the measured work: `[B, D]` times `[D, D]` on `device`, finished when the call returns."""
    rows, width = SIZES[device]
    x_BD = torch.ones(rows, width, device=device, dtype=dtype, requires_grad=learning)
    weight_DD = torch.ones(width, width, device=device, dtype=dtype, requires_grad=learning)

    def work() -> None:
        y_BD = torch.nn.functional.linear(x_BD, weight_DD)
        if learning:
            torch.autograd.grad(y_BD, (x_BD, weight_DD), torch.ones_like(y_BD))
        if device == "cuda":
            torch.cuda.synchronize()

    return work


def timed(work: Callable[[], None], clock: Callable[[], float]) -> float:
    began = clock()
    work()
    return clock() - began


def device_type(device: str | None) -> str:
    """Return `cpu` for `cpu:0`; by default the type that models load on: a GPU if there is one."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type


def check_precision(
    exact: Mapping[int, np.ndarray], lower: Mapping[int, np.ndarray], dtype: Dtype, required: bool
) -> float | None:
    """Compare vectors in `dtype` with those in float32 and return the least cosine of all sizes; None if it is too low.

    Raises:
        ConfigError: it is too low, and `dtype` is `required`.
    """
    cosine = min(least_cosine(exact[dim], lower[dim]) for dim in exact)
    if cosine >= TOLERANCE:
        return cosine
    if not required:
        return None
    raise ConfigError(
        f"in {dtype} a text of the sample has a cosine of {cosine:.5f} with float32, and at least {TOLERANCE} is "
        "required; choose precision float32"
    )
