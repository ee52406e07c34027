"""One device: its peak in matrix products, the peak of its memory, and a recipe's student at true size on it."""

from __future__ import annotations

import time

import torch

from benchmarks.harness import peak_mib, reset_peak_memory
from jasper_ray.config import ConfigError
from jasper_ray.models.student import Student, StudentSettings

MATRIX = {"cuda": 8192, "cpu": 2048}
"""Rows and columns of the matrices whose product shows the peak of a device."""
PRODUCTS = 20


def check_device(device: str) -> None:
    """Check that the device exists.

    Raises:
        ConfigError: there is no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch sees no GPU here; take a machine that has one, or write --device cpu")


def check_tokens(student: Student, tokens: int) -> None:
    """Check that the body has positions for texts of this length.

    Raises:
        ConfigError: it has fewer.
    """
    most = getattr(student.body.config, "max_position_embeddings", tokens)
    if not 0 < tokens <= most:
        raise ConfigError(f"--tokens is {tokens}, but the body takes 1 to {most}; change it")


def without_download(settings: StudentSettings) -> StudentSettings:
    """Replace weights of body and tower by random ones where the recipe declares their architecture."""
    body, vision = settings.body, settings.vision
    changed = {"body": body.model_copy(update={"random_weights": body.architecture is not None})}
    if vision and vision.architecture and vision.preprocessing:
        return settings.model_copy(update={**changed, "vision": vision.model_copy(update={"base": None})})
    return settings.model_copy(update=changed)


def reset_peak(device: torch.device) -> None:
    """Restart `peak_gib`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak_memory()


def peak_gib(device: torch.device) -> float:
    """Return the peak of the memory of the GPU, or of this process."""
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else peak_mib() / 1024


def product_tflops(device: torch.device, precision: str) -> float:
    """Measure 10^12 operations/s of a product of two square matrices."""
    size = MATRIX[device.type]
    one = torch.ones(size, size, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    best = 0.0
    for _ in range(PRODUCTS):
        began = time.perf_counter()
        product = one @ one
        product[0, 0].item()  # waits for the device
        best = max(best, 2 * size**3 / (time.perf_counter() - began) / 1e12)
    return best
