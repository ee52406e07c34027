"""The precision that a model computes in where nobody names one.

A device is measured, for what it says of itself does not tell: processors without bfloat16 compute in it all the same,
many times slower, and which flag tells them apart differs between systems.
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
"""Times as fast as float32 that bfloat16 must be: below that, its rounding buys nothing."""
ROUNDS = 5
"""Times that the layer is measured; the fastest counts, since other programs only ever slow it down."""
SIZES = {"cpu": (64, 384), "cuda": (4096, 2048)}
"""Rows and width of the measured layer: milliseconds of work, and enough of it to fill the device."""
OVERRIDE = "JASPER_RAY_PRECISION"
"""Environment variable that decides in place of a measurement."""


def precise(precision: Precision, device: str | None, learning: bool = False) -> Dtype:
    """The precision to compute in: the given one, or what `device` is fast in for `auto`."""
    return fast_precision(device, learning) if precision == "auto" else precision


def fast_precision(device: str | None, learning: bool = False) -> Dtype:
    """bfloat16 where a processor or CUDA computes clearly faster in it, else float32; JASPER_RAY_PRECISION overrides.

    Raises:
        ConfigError: the variable names neither.
    """
    kind = device_type(device)
    overridden = overridden_precision()
    return overridden or worth_precision(bfloat16_speed(kind, learning) if kind in SIZES else 1.0)


def overridden_precision() -> Dtype | None:
    """Read JASPER_RAY_PRECISION, which decides in place of a measurement; None where it is unset.

    Raises:
        ConfigError: the variable names no precision that `auto` may take.
    """
    decided = os.environ.get(OVERRIDE)
    if not decided:
        return None
    if decided not in ("float32", "bfloat16"):
        raise ConfigError(f"{OVERRIDE} is {decided!r}; expected float32 or bfloat16, or leave it unset")
    return decided  # type: ignore[return-value]


def worth_precision(speed: float) -> Dtype:
    """bfloat16 where it is so many times as fast as float32 that its rounding is worth it."""
    return "bfloat16" if speed >= WORTH else "float32"


@cache
def bfloat16_speed(device: str, learning: bool = False) -> float:
    """How many times as fast as in float32 a `cpu` or `cuda` computes a linear layer in bfloat16; below 1 it is slower.

    `learning` adds the layer's gradients, whose products take other paths: a processor with AVX2 alone was 5 times
    slower forward, and 10 times with gradients. Measured once a process, in half a second where bfloat16 is slow.
    """
    clock = time.perf_counter if device == "cuda" else time.thread_time  # a busy machine takes processors away
    layers = [linear_layer(device, dtype, learning) for dtype in (torch.float32, torch.bfloat16)]
    with one_thread():
        for layer in layers:  # the first call sets libraries up
            layer()
        rounds = [[timed(layer, clock) for layer in layers] for _ in range(ROUNDS)]
    exact, lower = (min(seconds) for seconds in zip(*rounds, strict=True))
    return exact / lower


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes in this thread alone, whose time on a processor is then all of its work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def linear_layer(device: str, dtype: torch.dtype, learning: bool) -> Callable[[], None]:
    """The work that is measured: `[B, D]` times `[D, D]` on `device`, finished when the call returns."""
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
    """Seconds that a call takes by a clock."""
    began = clock()
    work()
    return clock() - began


def device_type(device: str | None) -> str:
    """`cpu` for `cpu:0`; without a name what models are put on: a GPU where there is one."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type


def agreement(
    exact: Mapping[int, np.ndarray], lower: Mapping[int, np.ndarray], dtype: Dtype, asked: bool
) -> float | None:
    """The least cosine of vectors in `dtype` with those in float32, of every size; None where that is too little and
    nobody asked for `dtype`.

    Raises:
        ConfigError: it is too little, and `dtype` was asked for.
    """
    found = min(least_cosine(exact[dim], lower[dim]) for dim in exact)
    if found >= TOLERANCE:
        return found
    if not asked:
        return None
    raise ConfigError(
        f"in {dtype} a text of the sample has a cosine of {found:.5f} with float32, and {TOLERANCE} is asked for; "
        "choose --precision float32"
    )
