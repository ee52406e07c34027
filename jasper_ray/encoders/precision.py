"""Which precision a model computes in where nobody says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from jasper_ray.config import ConfigError
from jasper_ray.vectors import Dtype, least_cosine

TOLERANCE = 0.999
"""Least cosine with float32 that a lower precision must reach on every text of a sample."""


def native_precision(on_gpu: bool) -> Dtype:
    """bfloat16 if the device computes in it and does not merely emulate it."""
    if on_gpu:
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


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


def cpu_flags() -> set[str]:
    """What Linux says the processor can do; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return {flag for line in lines[:64] if line.startswith(("flags", "Features")) for flag in line.split()}
