"""The relative-similarity loss, forward and backward: the package's against the published full-matrix form.

Both get the same random unit vectors, since the cost does not depend on their values. Times are medians of turns. Peak
memory is the growth of a fresh process over one call, so that earlier calls cannot hide it.
"""

# Shape legend: B rows (texts), D dimensions of a student's row, E of a teacher's, P = B(B-1)/2 unordered pairs of rows.

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import psutil
import torch
from torch import Tensor

from benchmarks.harness import (
    Benchmark,
    Option,
    Record,
    Records,
    in_fresh_process,
    peak_mib,
    reset_peak_memory,
    resident_mib,
)
from jasper_ray.losses import count_comparisons, relative_similarity_loss
from jasper_ray.losses.distillation import check_rows, pair_cosines

COMPARED = (32, 64, 128)
"""Batch sizes that both forms compute."""
LONE = (256, 512, 1024, 2048)
"""Batch sizes that do not fit into memory as matrices."""
DIM = 384
REPEATS = 5


def matrix_relative_similarity(
    student_BD: Tensor, teacher_BE: Tensor, margin: float = 0.015, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Compute `relative_similarity_loss` in its published form, with all P x P comparisons in one matrix.

    It takes O(P^2) = O(B^4) time and memory: each float32 matrix takes 264 MB for 128 texts and 1.1 TB for 1,024.
    Source: arXiv 2412.19048, equation 3.

    Args:
        dtype: of the P x P arithmetic on the float32 cosines. float32 is the published one; float64 takes twice the
            memory and agrees with the fast form in every single comparison.
    """
    check_rows(student_BD, teacher_BE, at_least=3)
    return matrix_hinge_ranking(pair_cosines(student_BD).to(dtype), pair_cosines(teacher_BE.detach()), margin).float()


def matrix_hinge_ranking(student_P: Tensor, teacher_P: Tensor, margin: float) -> Tensor:
    """Compute `hinge_ranking_loss` as a matrix [p, q] of the hinges where the teacher ranks p above q."""
    hinge_PP = torch.relu((student_P + margin)[None, :] - student_P[:, None])
    ordered_PP = teacher_P[:, None] > teacher_P[None, :]
    return (hinge_PP * ordered_PP).sum() / (len(student_P) * (len(student_P) - 1) // 2)


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ours": relative_similarity_loss,
    "matrix": matrix_relative_similarity,
}


def benchmark_losses(threads: int, device: str) -> Records:
    """Measure each batch size: seconds and MiB of each form, their ratio, the largest relative difference."""
    torch.set_num_threads(threads)
    sizes = COMPARED + LONE + ((4096,) if device == "cuda" else ())
    return [measure(size, ("ours", "matrix") if size in COMPARED else ("ours",), threads, device) for size in sizes]


def measure(size: int, forms: tuple[str, ...], threads: int, device: str) -> Record:
    """Measure one batch size."""
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    results: dict[str, tuple[Tensor, Tensor]] = {}
    for _ in range(REPEATS):
        for form in forms:
            batch = vectors(size, device)
            began = time.perf_counter()
            results[form] = value_and_gradient(form, *batch)
            seconds[form].append(time.perf_counter() - began)
    record: Record = {"batch": size, "comparisons": count_comparisons(vectors(size, device)[1])}
    for form in forms:
        record[f"{form}_s"] = statistics.median(seconds[form])
        record[f"{form}_mib"] = peak_memory(form, size, threads, device)
    if "matrix" in forms:
        record["times_faster"] = record["matrix_s"] / record["ours_s"]
        record["relative_error"] = largest_difference(*results["ours"], *results["matrix"])
    return record


def vectors(size: int, device: str) -> tuple[Tensor, Tensor]:
    """Make the student's and the teacher's vectors of a batch, the same for every form."""
    generator = torch.Generator().manual_seed(size)
    student_BD, teacher_BD = (torch.randn(size, DIM, generator=generator).to(device) for _ in range(2))
    if student_BD.is_cuda:
        torch.cuda.synchronize()
    return student_BD, teacher_BD


def value_and_gradient(form: str, student_BD: Tensor, teacher_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Run one forward and backward pass and wait for the device."""
    student_BD.requires_grad_(True)
    loss = FORMS[form](student_BD, teacher_BD)
    loss.backward()
    if student_BD.is_cuda:
        torch.cuda.synchronize()
    assert student_BD.grad is not None
    return loss.detach(), student_BD.grad


def largest_difference(value: Tensor, gradient: Tensor, other_value: Tensor, other_gradient: Tensor) -> float:
    """Return the larger of the relative differences of value and gradient."""
    of_gradient = (gradient - other_gradient).norm() / other_gradient.norm()
    return float(torch.maximum(((value - other_value) / other_value).abs(), of_gradient))


def peak_memory(form: str, size: int, threads: int, device: str) -> float:
    """Return the MiB that one call adds at its peak; on a CPU it runs in a fresh process."""
    if device == "cpu":
        return float(in_fresh_process(growth, form, size, threads))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    value_and_gradient(form, *vectors(size, device))
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def growth(form: str, size: int, threads: int) -> float:
    """Return the MiB by which one call raises this process's peak, after a small call has loaded the libraries."""
    torch.set_num_threads(threads)
    value_and_gradient(form, *vectors(16, "cpu"))
    reset_peak_memory()
    before = resident_mib(psutil.Process())
    value_and_gradient(form, *vectors(size, "cpu"))
    return peak_mib() - before


BENCHMARK = Benchmark(
    "losses",
    "the relative-similarity loss against its matrix form",
    (
        Option("--threads", 1, "torch's threads"),
        Option("--device", "cpu", "device that computes", choices=("cpu", "cuda")),
    ),
    benchmark_losses,
    "batch comparisons ours_s matrix_s times_faster ours_mib matrix_mib relative_error",
)
