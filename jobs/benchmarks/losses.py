"""The relative-similarity loss: ours against the published full-matrix form, forward and backward.

Both get the same random unit vectors; only the cost is measured, and it does not depend on what the vectors mean. Times
are medians, us and the matrix form in turn. Peak memory is a fresh process's growth over one call, so that nothing that
ran before hides it.
"""

# Shape legend: B rows, D dimensions.

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.matrix_form import matrix_relative_similarity
from benchmarks.process import forget_peak, resident
from benchmarks.table import table
from jasper_ray.losses import count_comparisons, relative_similarity_loss

FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ours": relative_similarity_loss,
    "matrix": matrix_relative_similarity,
}
JOBS = Path(__file__).parents[1]
COMPARED = (32, 64, 128)
ALONE = (256, 512, 1024, 2048)
DIM = 384
REPEATS = 5
COLUMNS = ("batch", "comparisons", "ours_s", "matrix_s", "times_faster", "ours_mib", "matrix_mib", "relative_error")


def benchmark_losses(threads: int, device: str) -> list[dict[str, Any]]:
    """One record a batch size: seconds and MiB of each form, their ratio, and the largest relative difference."""
    torch.set_num_threads(threads)
    sizes = COMPARED + ALONE + ((4096,) if device == "cuda" else ())
    return [measure(size, ("ours", "matrix") if size in COMPARED else ("ours",), threads, device) for size in sizes]


def measure(size: int, forms: tuple[str, ...], threads: int, device: str) -> dict[str, Any]:
    """Everything about one batch size."""
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    results: dict[str, tuple[Tensor, Tensor]] = {}
    for _ in range(REPEATS):
        for form in forms:
            given = vectors(size, device)
            began = time.perf_counter()
            results[form] = value_and_gradient(form, *given)
            seconds[form].append(time.perf_counter() - began)
    record: dict[str, Any] = {"batch": size, "comparisons": count_comparisons(vectors(size, device)[1])}
    for form in forms:
        record[f"{form}_s"] = statistics.median(seconds[form])
        record[f"{form}_mib"] = peak_memory(form, size, threads, device)
    if "matrix" in forms:
        record["times_faster"] = record["matrix_s"] / record["ours_s"]
        record["relative_error"] = largest_difference(*results["ours"], *results["matrix"])
    return record


def vectors(size: int, device: str) -> tuple[Tensor, Tensor]:
    """Student and teacher vectors of a batch; the same for every form."""
    generator = torch.Generator().manual_seed(size)
    student_BD, teacher_BD = (torch.randn(size, DIM, generator=generator).to(device) for _ in range(2))
    if student_BD.is_cuda:
        torch.cuda.synchronize()
    return student_BD, teacher_BD


def value_and_gradient(form: str, student_BD: Tensor, teacher_BD: Tensor) -> tuple[Tensor, Tensor]:
    """One forward and backward pass, to its end."""
    student_BD.requires_grad_(True)
    loss = FORMS[form](student_BD, teacher_BD)
    loss.backward()
    if student_BD.is_cuda:
        torch.cuda.synchronize()
    assert student_BD.grad is not None
    return loss.detach(), student_BD.grad


def largest_difference(value: Tensor, gradient: Tensor, other_value: Tensor, other_gradient: Tensor) -> float:
    """The larger of the relative differences of value and gradient."""
    of_gradient = (gradient - other_gradient).norm() / other_gradient.norm()
    return float(torch.maximum(((value - other_value) / other_value).abs(), of_gradient))


def peak_memory(form: str, size: int, threads: int, device: str) -> float:
    """MiB that one call takes at its peak beyond what was there; in a process of its own on processors."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        value_and_gradient(form, *vectors(size, device))
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    code = f"from benchmarks.losses import growth; print(growth({form!r}, {size}, {threads}))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=JOBS, capture_output=True, text=True, check=True)
    return float(answer.stdout)


def growth(form: str, size: int, threads: int) -> float:
    """MiB by which this process's peak grows in one call, after a small one has loaded what there is to load."""
    torch.set_num_threads(threads)
    value_and_gradient(form, *vectors(16, "cpu"))
    forget_peak()
    before = resident("VmRSS")
    value_and_gradient(form, *vectors(size, "cpu"))
    return (resident("VmHWM") - before) / 1024


def render(records: list[dict[str, Any]]) -> str:
    """The records as a table."""
    return table(records, COLUMNS)
