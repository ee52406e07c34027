"""Checks of a corpus' sources before anything starts: a second on a laptop instead of a failed job on a cluster."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from jasper_ray.config import ConfigError
from jasper_ray.sources.files import SourceFiles, find_files
from jasper_ray.sources.rows import column_names, read_texts
from jasper_ray.sources.settings import Source

FIRST_TABLES = 16
"""Tables of rows that a check reads: some megabytes."""


def check_sources(sources: Sequence[Source]) -> None:
    """Check that every source has files and the first of them can be read and has the column.

    Assets that are not in the cache are downloaded. Later files are not opened.

    Raises:
        ConfigError: names the source and the file.
    """
    for source in sources:
        check_source(source, find_files(source))


def check_source(source: Source, files: SourceFiles) -> None:
    """Check one source, whose files are known, as `check_sources` does."""
    path = files.paths[0]
    try:
        if source.format == "parquet":
            with files.filesystem.open_input_file(path) as file:
                schema = pq.ParquetFile(file).schema_arrow
            check_column(source.title, path, schema.names, source.column)
            check_text_column(source.title, path, schema, source.column)
            return
        if source.format != "text":
            with files.filesystem.open_input_stream(path, compression="detect") as stream:
                check_column(source.title, path, column_names(stream, source.format, path), source.column)
        with files.filesystem.open_input_stream(path, compression="detect") as stream:
            for _ in itertools.islice(read_texts(stream, path, source), FIRST_TABLES):
                pass
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(
            f"source '{source.title}': {path} cannot be read as {source.format} ({str(error).splitlines()[0]}); "
            "change path or format of the source"
        ) from error


def check_column(title: str, path: str, names: Sequence[str], column: str, setting: str = "column") -> None:
    """Refuse a file of the source `title` without the column that its `setting` names."""
    if column not in names:
        raise ConfigError(
            f"source '{title}': {path} has no column '{column}', it has {', '.join(names) or 'none'}; "
            f"change the source's {setting}"
        )


def check_text_column(title: str, path: str, schema: pa.Schema, column: str, setting: str = "column") -> None:
    """Refuse a Parquet file whose column, which its `setting` names, does not hold texts."""
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise ConfigError(
            f"source '{title}': column '{column}' of {path} holds {kind}, expected text (string); "
            f"change the source's {setting}"
        )
