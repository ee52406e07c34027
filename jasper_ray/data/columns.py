"""The columns that a teacher adds to labelled rows: what the pipeline writes and the trainer reads."""

from __future__ import annotations


def vector_column(teacher: str) -> str:
    """The column of a teacher's vectors."""
    return f"vector:{teacher}"


def seconds_column(teacher: str) -> str:
    """The column of the seconds a row took a teacher."""
    return f"seconds:{teacher}"
