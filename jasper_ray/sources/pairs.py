"""From files to image–caption pairs: tables of `PAIR_SCHEMA`, one row for every pair found.

A row has either an image and a caption, or the reason why it is set aside. Whether the bytes are an image is not looked
at here, but by `images.decode`.

    scan_pairs: what a file says of its pairs     fill_pairs: the images of those that are files of their own
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from jasper_ray.config import ConfigError
from jasper_ray.images.decode import PIXEL_LIMIT, REASONS, BadImage, decode
from jasper_ray.sources.checks import check_column, check_text_column
from jasper_ray.sources.files import SourceFiles, find_files
from jasper_ray.sources.hashing import choice_hash, limit_bound, pair_id, text_id
from jasper_ray.sources.pair_settings import FolderPairs, PairSource, ParquetPairs, is_inside
from jasper_ray.sources.rows import CORPUS, Fault, judge, records, strict
from jasper_ray.sources.tars import BrokenArchive, read_samples

PAIR_REASONS = (*REASONS, "no_caption", "broken_archive")
"""Why a pair is set aside: its image, a caption that is missing, blank or no text, or an archive that ends early, which
counts once for all the pairs that would have followed."""

PAIR_SCHEMA = pa.schema(
    [("image", pa.binary()), ("caption", pa.string()), ("origin", pa.string()), ("reason", pa.string())]
)
"""`origin`: the file inside its source and the row, counted from 0, the line or the member. Image and caption are null
in rows with a reason."""

SCAN_SCHEMA = pa.schema([*PAIR_SCHEMA, ("file", pa.string())])
"""Rows of `PAIR_SCHEMA` before their images are read where these are files of their own: then `file` is its path."""

READ_ROWS = 16
"""Pairs that are handled together; bounds a worker's memory."""

_PAGE_BYTES = 1 << 20


class Pair(NamedTuple):
    """An image and what it shows."""

    image: bytes
    """The image's file, as found."""
    caption: str
    origin: str
    """Where it was found: `PAIR_SCHEMA`."""


class Scanned(NamedTuple):
    """A row of `SCAN_SCHEMA`."""

    image: bytes | None
    caption: str | None
    origin: str
    reason: str | None
    file: str | None = None


def read_pairs(source: PairSource, pixel_limit: int = PIXEL_LIMIT) -> Iterator[Pair]:
    """Every pair of a source, without Ray; with a limit the same ones in every call.

    Raises:
        ConfigError: the source cannot be read, or one of its pairs cannot be used, and which.
    """
    files = find_pair_files(source)
    bound = limit_bound(source.limit, _choices(source, files)) if source.limit else None
    for pairs in _pairs_of(source, files):
        kept = pairs if bound is None else pairs.filter(pa.array(choices(pairs, 0) < bound))
        for row in kept.to_pylist():
            yield _usable(source, row, pixel_limit)


def _pairs_of(source: PairSource, files: SourceFiles) -> Iterator[pa.Table]:
    for path in files.paths:
        for table in scan_pairs(source, files, path):
            yield fill_pairs(table, files)


def _choices(source: PairSource, files: SourceFiles) -> np.ndarray:
    return np.unique(np.concatenate([np.empty(0, np.uint64), *(choices(t, 0) for t in _pairs_of(source, files))]))


def _usable(source: PairSource, row: dict[str, Any], pixel_limit: int) -> Pair:
    where = f"source '{source.title}', {row['origin']}"
    if row["reason"] is not None:
        raise ConfigError(f"{where}: the pair cannot be used ({row['reason']}); mend it or leave it out")
    pair = Pair(row["image"], row["caption"], row["origin"])
    try:
        decode(pair.image, pixel_limit)
    except BadImage as error:
        raise BadImage(f"{where}: {error}", error.reason) from error
    return pair


def choices(pairs: pa.Table, seed: int) -> np.ndarray:
    """For each pair the number that a limit chooses by, uint64; a pair that is set aside has that of its origin."""
    numbers = [choice_hash(_content_id(row), seed) for row in pairs.to_pylist()]
    return np.array(numbers, dtype=np.uint64)


def _content_id(row: dict[str, Any]) -> str:
    return text_id(row["origin"]) if row["reason"] else pair_id(row["image"], row["caption"])


def find_pair_files(source: PairSource) -> SourceFiles:
    """`find_files`; of a folder of images the table of captions, while `content` and `size` speak of all its files."""
    files = find_files(source)
    if not isinstance(source, FolderPairs):
        return files
    captions = _join(files.root, source.captions)
    if captions not in files.paths:
        raise ConfigError(
            f"source '{source.title}': found no {source.captions} in {source.path}; "
            "expected a table of captions there: write it, or change the source's captions or path"
        )
    return dataclasses.replace(files, paths=(captions,))


def scan_pairs(source: PairSource, files: SourceFiles, path: str) -> Iterator[pa.Table]:
    """Tables of `SCAN_SCHEMA` from one of the source's files, at most `READ_ROWS` rows each.

    Raises `ConfigError` if a table of pairs or captions cannot be read or lacks a column, or names a file outside of
    its folder. An archive that ends early gives a row that says so.
    """
    if isinstance(source, ParquetPairs):
        rows = _scan_parquet(source, files, path)
    elif isinstance(source, FolderPairs):
        rows = _scan_folder(source, files, path)
    else:
        rows = _scan_tar(files, path, source.image, source.caption)
    return _tables(rows)


def _tables(rows: Iterable[Scanned]) -> Iterator[pa.Table]:
    pending: list[Scanned] = []
    for row in rows:
        pending.append(row)
        if len(pending) == READ_ROWS:
            yield _table(pending)
            pending = []
    if pending:
        yield _table(pending)


def _table(rows: list[Scanned]) -> pa.Table:
    return pa.Table.from_pylist([row._asdict() for row in rows], schema=SCAN_SCHEMA)


def _scanned(image: bytes | None, caption: object, origin: str, file: str | None = None) -> Scanned:
    text = judge(caption)
    if image is None and file is None:
        return Scanned(None, None, origin, "missing")
    if isinstance(text, Fault):
        return Scanned(None, None, origin, "no_caption")
    return Scanned(image, text.strip(), origin, None, file)


def fill_pairs(table: pa.Table, files: SourceFiles) -> pa.Table:
    """`PAIR_SCHEMA`: the rows of `scan_pairs`, and the bytes of images that are files of their own."""
    if table["file"].null_count == len(table):
        return table.select(PAIR_SCHEMA.names)
    rows = table.to_pylist()
    images = _read_files(files, [row["file"] for row in rows if row["file"] is not None])
    filled = [
        _scanned(images.get(row["file"]), row["caption"], row["origin"]) if row["file"] is not None else Scanned(**row)
        for row in rows
    ]
    return _table(filled).select(PAIR_SCHEMA.names)


def _read_files(files: SourceFiles, names: list[str]) -> dict[str, bytes]:
    """The bytes of those of the files that are there."""
    paths = {name: _join(files.root, name) for name in names}
    infos = files.filesystem.get_file_info(list(paths.values()))
    return {
        name: _read_file(files.filesystem, path)
        for (name, path), info in zip(paths.items(), infos, strict=True)
        if info.type == fs.FileType.File
    }


def _read_file(filesystem: fs.FileSystem, path: str) -> bytes:
    try:
        with filesystem.open_input_stream(path, compression=None) as stream:
            return bytes(stream.read())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error}); change its permissions or leave it out") from error


def _join(root: str, path: str) -> str:
    return f"{root.rstrip('/')}/{path}"


# Folders


def _scan_folder(source: FolderPairs, files: SourceFiles, path: str) -> Iterator[Scanned]:
    with files.filesystem.open_input_stream(path) as stream:
        for line, name, caption in _captions(source, stream, path):
            origin = f"{files.inside(path)}:{line}"
            if not isinstance(name, str) or not name:
                yield _scanned(None, caption, origin)
                continue
            if not is_inside(name):
                raise ConfigError(
                    f"{path}, line {line}, names the image {name!r}; expected a path inside the folder, without ..: "
                    "move the image into the folder and change the line"
                )
            yield _scanned(None, caption, f"{origin} {name}", name)


def _captions(source: FolderPairs, stream: pa.NativeFile, path: str) -> Iterator[tuple[int, object, object]]:
    """Line, image and caption of each row. (Lines of a CSV are counted as if no text had a line feed.)"""
    form = "jsonl" if source.captions.endswith(".jsonl") else "csv"
    rows = strict(records(stream, form, [source.image, source.caption], CORPUS), path)
    for row, (line, (name, caption)) in enumerate(rows, start=2):
        yield line if form == "jsonl" else row, name, caption


# Parquet


def _scan_parquet(source: ParquetPairs, files: SourceFiles, path: str) -> Iterator[Scanned]:
    columns = list(dict.fromkeys([source.image, source.caption]))
    numbers = itertools.count()
    try:
        with files.filesystem.open_input_file(path) as file:
            # page by page: a row group, which would else be read whole, may hold gigabytes of images
            parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=_PAGE_BYTES)
            _check_columns(source, path, parquet.schema_arrow)
            for batch in parquet.iter_batches(READ_ROWS, columns=columns, use_threads=False):
                found = (batch[source.image].to_pylist(), batch[source.caption].to_pylist(), numbers)
                for image, caption, number in zip(*found, strict=False):
                    yield _scanned(_image_bytes(image), caption, f"{files.inside(path)}:{number}")
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"source '{source.title}': {path} cannot be read as parquet ({str(error).splitlines()[0]}); "
            "write the file anew, or change path or format of the source"
        ) from error


def _image_bytes(value: object) -> bytes | None:
    value = value.get("bytes") if isinstance(value, dict) else value
    return value if isinstance(value, bytes) else None


def _check_columns(source: ParquetPairs, path: str, schema: pa.Schema) -> None:
    check_column(source.title, path, schema.names, source.image, "image")
    check_column(source.title, path, schema.names, source.caption, "caption")
    check_text_column(source.title, path, schema, source.caption, "caption")
    found = schema.field(source.image).type
    if not _holds_bytes(found):
        raise ConfigError(
            f"source '{source.title}': column '{source.image}' of {path} holds {found}, expected the bytes of images "
            "(binary, or a struct with binary bytes); change the source's image"
        )


def _holds_bytes(found: pa.DataType) -> bool:
    if pa.types.is_struct(found) and found.get_field_index("bytes") >= 0:
        found = found.field("bytes").type
    return bool(pa.types.is_binary(found) or pa.types.is_large_binary(found) or pa.types.is_binary_view(found))


# Archives


def _scan_tar(files: SourceFiles, path: str, image: str | None, caption: str) -> Iterator[Scanned]:
    name = files.inside(path)
    with files.filesystem.open_input_stream(path, compression=None) as stream:  # tarfile sees for itself
        try:
            for sample in read_samples(stream, path, image, caption):
                yield _scanned(sample.image, sample.caption, f"{name}:{sample.stem}")
        except BrokenArchive:
            yield Scanned(None, None, name, "broken_archive")
