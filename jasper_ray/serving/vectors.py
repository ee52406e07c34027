"""Vectors as they are asked for: any size, and the types that clients know."""

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
    """The head that answers for a size, and the size: the head of that size, or the next larger one.

    Raises:
        Refusal: no head is that large, or the size is none.
    """
    if dim is None:
        return dims[0], dims[0]
    larger = [head for head in dims if head >= dim]
    if dim < 1 or not larger:
        sizes = ", ".join(map(str, sorted(dims)))
        raise bad_request(f"{dim} is no size of this model; expected {sizes}, or one below the largest", param)
    return min(larger), dim


def cut(x_ND: np.ndarray, dim: int) -> np.ndarray:
    """The first `dim` dimensions, as unit vectors."""
    return x_ND if dim == x_ND.shape[1] else normalise(x_ND[:, :dim])


def typed(x_ND: np.ndarray, kind: VectorType, ranges: Mapping[int, np.ndarray]) -> np.ndarray | list[str]:
    """`x_ND` as `kind`: an array `[N, W]`, or base64 of little-endian float32 for each row.

    int8 and binary hold the numbers that embedding a corpus writes; uint8 and ubinary are the same plus 128.

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
    """Refuse bits of a size that is no multiple of 8, and int8 without ranges for this size."""
    if kind in ("binary", "ubinary") and dim % 8:
        raise bad_request(f"{dim} dimensions do not fill bytes with bits; ask for a multiple of 8", "embedding_types")
    if kind in ("int8", "uint8") and dim not in ranges:
        raise bad_request(
            f"{kind} needs the ranges that an index was made with, and the server has none for {dim} dimensions; "
            "start it with the ranges of an output folder that has such a column",
            "embedding_types",
        )


def unsigned(x_NW: np.ndarray, kind: VectorType) -> np.ndarray:
    """int8 as it is, or plus 128 for the unsigned kinds."""
    return x_NW if kind in ("int8", "binary") else (x_NW.astype(np.int16) + 128).astype(np.uint8)
