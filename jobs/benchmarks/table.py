"""Records as a table that people can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(records: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """One line a record, columns aligned; a dash where a record has no such figure."""
    rows = [list(columns), *([cell(record.get(column)) for column in columns] for record in records)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows)


def cell(value: str | float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
