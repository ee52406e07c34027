"""The columns that a pipeline adds to rows: what it writes and the trainer reads."""

from __future__ import annotations

PIXELS = "pixels"
"""The column of images' pixels, uint8 `[N, 3, S, S]`."""
DECODING = "decoding"
"""Who made the pixels, for `seconds_column`."""


def vector_column(teacher: str) -> str:
    """The column of a teacher's vectors."""
    return f"vector:{teacher}"


def seconds_column(worker: str) -> str:
    """The column of the seconds a row took a teacher, or the decoding."""
    return f"seconds:{worker}"
