"""Distil large embedding models into small students, embed corpora with them and serve them, on Ray.

`import jasper_ray` is fast: `load_student` imports torch and transformers when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jasper_ray.encoders import load_student

__version__ = "0.1.0"

__all__ = ["__version__", "load_student"]


def __getattr__(name: str) -> Any:
    if name == "load_student":
        from jasper_ray.encoders import load_student

        return load_student
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
