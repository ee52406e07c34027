"""Vectors in the size and the type that a client requests."""

# Shape legend: N rows, D dimensions, W = D, or D/8 for bits.

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from jasper_ray.serving.errors import bad_request
from jasper_ray.vectors import normalise, quantise_binary, quantise_int8

VectorType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]


def head_for(dims: Sequence[int], dim: int | None, param: str = "dimensions") -> tuple[int, int]:
    """Choose the head for a size, which is of that size or the next larger one; return head and size.

    Raises:
        Refusal: no head is that large, or the size is not positive.
    """
    if dim is None:
        return dims[0], dims[0]
    larger = [head for head in dims if head >= dim]
    if dim < 1 or not larger:
        sizes = ", ".join(map(str, sorted(dims)))
        raise bad_request(f"{dim} is no size of this model; expected {sizes}, or one below the largest", param)
    return min(larger), dim


def truncate_dims(x_ND: np.ndarray, dim: int) -> np.ndarray:
    """Take the first `dim` dimensions, as unit vectors."""
    return x_ND if dim == x_ND.shape[1] else normalise(x_ND[:, :dim])


def typed(x_ND: np.ndarray, kind: VectorType, ranges: Mapping[int, np.ndarray]) -> np.ndarray | list[str]:
    """Convert to `kind`: an array `[N, W]`, or base64 of little-endian float32 for each row.

    int8 and binary have the numbers of an embedded corpus; uint8 and ubinary are those plus 128.

    Raises:
        Refusal: see `check_type`.
    """
    dim = x_ND.shape[1]
    check_type(dim, kind, ranges)
    if kind == "float":
        return x_ND
    if kind == "base64":
        return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in x_ND]
    if kind in ("binary", "ubinary"):
        return unsigned(quantise_binary(x_ND), kind)
    return unsigned(quantise_int8(x_ND, ranges[dim]), kind)


def check_type(dim: int, kind: VectorType, ranges: Mapping[int, np.ndarray]) -> None:
    """Refuse bits of a size that is no multiple of 8, and int8 without ranges for the size."""
    if kind in ("binary", "ubinary") and dim % 8:
        raise bad_request(f"{dim} bits do not fill whole bytes; request a multiple of 8", "embedding_types")
    if kind in ("int8", "uint8") and dim not in ranges:
        raise bad_request(
            f"{kind} needs the ranges of an index, and the server has none for {dim} dimensions; "
            "start it with the ranges of an output folder that has such a column",
            "embedding_types",
        )


def unsigned(x_NW: np.ndarray, kind: VectorType) -> np.ndarray:
    """Add 128 to int8 for the unsigned kinds."""
    return x_NW if kind in ("int8", "binary") else (x_NW.astype(np.int16) + 128).astype(np.uint8)
