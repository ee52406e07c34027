"""Heads in closed form: a ridge regression from the frozen body's pooled state to the target.

Training only the full head on a frozen body converges to this linear fit, up to the losses' shape.
"""

# Shape legend: N rows, H pooled size, A = H + 1 (the state and a constant 1), E target size, D a head's size.

from __future__ import annotations

import torch
from torch import Tensor, nn

from jasper_ray.models.student import Student


class RidgeFit:
    """Sums that a ridge regression needs, over rows that come in batches and are not kept.

    Memory is O(A·(A + E)) in float64 for any number of rows.
    """

    def __init__(self, pooled_size: int, target_size: int) -> None:
        self.rows = 0
        self.states_AA = torch.zeros(pooled_size + 1, pooled_size + 1, dtype=torch.float64)
        self.products_AE = torch.zeros(pooled_size + 1, target_size, dtype=torch.float64)

    def add(self, pooled_NH: Tensor, target_NE: Tensor) -> None:
        states_NA = with_constant(pooled_NH.double().cpu())
        self.rows += len(states_NA)
        self.states_AA += states_NA.T @ states_NA
        self.products_AE += states_NA.T @ target_NE.double().cpu()

    def solve(self, regularisation: float) -> Tensor:
        """Solve for weights and bias together, `[E, A]`; `regularisation` is a share of the state's mean variance."""
        mean_A = self.states_AA[-1] / self.rows
        variance = (self.states_AA.diagonal()[:-1] / self.rows - mean_A[:-1] ** 2).mean()
        penalty_A = torch.full_like(mean_A, float(regularisation * variance * self.rows))
        penalty_A[-1] = 0.0  # the constant is free
        return torch.linalg.solve(self.states_AA + penalty_A.diag(), self.products_AE).T


def with_constant(states_NH: Tensor) -> Tensor:
    """Append a column of ones, which carries the bias."""
    return torch.cat([states_NH, states_NH.new_ones(len(states_NH), 1)], dim=1)


def set_heads(student: Student, fit: RidgeFit, regularisation: float) -> None:
    """Set the full head to the fit, and every other head to the leading principal directions of its predictions.

    No projection of that size keeps more of the predictions' Gram matrix.
    """
    full_EA = fit.solve(regularisation)
    directions_EA = principal_directions(full_EA, fit)
    for dim in student.dims:
        map_DA = full_EA if dim == student.dims[0] else project(full_EA, directions_EA, dim)
        head = student.heads[str(dim)]
        assert isinstance(head, nn.Linear)
        with torch.no_grad():
            head.weight.copy_(map_DA[:, :-1])
            head.bias.copy_(map_DA[:, -1])


def principal_directions(full_EA: Tensor, fit: RidgeFit) -> Tensor:
    """Compute orthonormal columns `[E, ≤A]`, largest share of the predictions' second moment first."""
    values_A, vectors_AA = torch.linalg.eigh(fit.states_AA / fit.rows)
    root_AA = vectors_AA * values_A.clamp(min=0).sqrt()
    directions_EA, _, _ = torch.linalg.svd(full_EA @ root_AA, full_matrices=False)
    return directions_EA


def project(full_EA: Tensor, directions_EA: Tensor, dim: int) -> Tensor:
    """Project the fit to `dim` directions; rows beyond the number of directions are zero."""
    kept_DA = directions_EA[:, :dim].T @ full_EA
    return torch.cat([kept_DA, kept_DA.new_zeros(dim - len(kept_DA), kept_DA.shape[1])])
