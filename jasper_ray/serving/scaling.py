"""How many replicas the load asks for: by the seconds of work that wait, and how busy the models are."""

from __future__ import annotations

import math
from typing import Any

from ray.serve.config import AutoscalingContext

QUEUED, BUSY = "queued_s", "busy"
"""What replicas tell: seconds of work that wait, and the share of the time in which the model worked."""
FULL = 0.8
"""Share of the time in which a model may work before a second one is worth its cost."""


class QueuedWork:
    """Replicas by queued tokens, told as the seconds in which they drain: a long request counts for what it costs."""

    def __init__(self, target_s: float) -> None:
        self.target_s = target_s

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """How many there should be; Serve keeps it within its bounds, and waits before it believes it."""
        queued = told(context, QUEUED)
        busy = told(context, BUSY)
        return max(1, wanted(queued, busy, self.target_s)), {}


def wanted(queued_s: list[float], busy: list[float], target_s: float) -> int:
    """Replicas that would have `target_s` of queued work each, and be busy a share of `FULL` at most."""
    return math.ceil(max(sum(queued_s) / target_s, sum(busy) / FULL) - 1e-6)


def told(context: AutoscalingContext, name: str) -> list[float]:
    """What each replica says of `name`."""
    return [float(value) for value in (context.aggregated_metrics or {}).get(name, {}).values()]
