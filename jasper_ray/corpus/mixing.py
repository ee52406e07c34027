"""How much of each source is kept: mixing is subsampling, a source keeps the texts with the smallest choice hashes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jasper_ray.sources.hashing import limit_bound
from jasper_ray.sources.settings import Source


def kept_shares(sources: Sequence[Source], sizes: Sequence[int]) -> list[float]:
    """The share of each source's texts that makes the mixture follow the weights: (w/n) / max(w/n).

    `sizes` are the texts each source offers. The source that is scarcest for its weight is used whole and decides how
    large the mixture is; nothing is repeated. Without weights every share is 1.
    """
    demands = [
        source.weight / size if source.weight and size else 0.0 for source, size in zip(sources, sizes, strict=True)
    ]
    if not any(demands):
        return [1.0] * len(sources)
    return [demand / max(demands) for demand in demands]


def choice_bounds(sources: Sequence[Source], found: Sequence[int], smallest: Sequence[np.ndarray]) -> list[int]:
    """For each source the bound its texts' choice hashes must stay below: first the limit, then the weight.

    found: texts each source has. smallest: for each source with a limit, its `limit` smallest choice hashes, sorted.
    """
    limits = [limit_bound(source.limit, hashes) for source, hashes in zip(sources, smallest, strict=True)]
    sizes = [min(count, source.limit or count) for source, count in zip(sources, found, strict=True)]
    shares = kept_shares(sources, sizes)
    return [bound if share == 1.0 else int(bound * share) for bound, share in zip(limits, shares, strict=True)]
