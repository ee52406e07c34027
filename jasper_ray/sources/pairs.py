"""Image–caption pairs from files: tables of `PAIR_SCHEMA`, one row for every pair found.

A row has either an image and a caption, or the reason to reject it. `images.decode` decides later if the bytes are an
image.

    scan_pairs: rows of a file     fill_pairs: the bytes of images that are files of their own
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from jasper_ray.config import ConfigError
from jasper_ray.images.decode import PIXEL_LIMIT, BadImage, decode, fault
from jasper_ray.sources.checks import check_column, check_text_column
from jasper_ray.sources.files import SourceFiles, find_files
from jasper_ray.sources.hashing import choice_hash, limit_bound, pair_id, text_id
from jasper_ray.sources.rows import CORPUS, Fault, batches, column_names, judge, records, strict
from jasper_ray.sources.settings import FolderPairs, PairSource, ParquetPairs, is_inside
from jasper_ray.sources.tars import BrokenArchive, read_samples

PAIR_SCHEMA = pa.schema(
    [("image", pa.binary()), ("caption", pa.string()), ("origin", pa.string()), ("reason", pa.string())]
)
"""`origin` is the file inside its source, and the row, counted from 0, the line or the member. `reason` is one of
`images.decode.REASONS`, `no_caption` (missing, blank or no text), or `broken_archive`, which counts once for all pairs
that would have followed. Image and caption are null in rows with a reason."""

SCAN_SCHEMA = pa.schema([*PAIR_SCHEMA, ("file", pa.string())])
"""Rows of `PAIR_SCHEMA`; `file` is the path of an image that is a file of its own and not yet read."""

READ_ROWS = 16
"""Pairs that are handled together; bounds a worker's memory."""

CHECKED_ROWS = 32
"""First pairs of a source, at least one of which must be usable."""

PAGE_BYTES = 1 << 20


class Pair(NamedTuple):
    """An image and its caption."""

    image: bytes
    """Bytes of the image's file."""
    caption: str
    origin: str
    """Place in the source: `PAIR_SCHEMA`."""


class Scanned(NamedTuple):
    """A row of `SCAN_SCHEMA`."""

    image: bytes | None
    caption: str | None
    origin: str
    reason: str | None
    file: str | None = None


def find_pair_files(source: PairSource) -> SourceFiles:
    """Find the files of pairs; of a folder of images the table of captions, with `content` and `size` of all files.

    Raises:
        ConfigError: there are none, or a folder has no table of captions.
    """
    files = find_files(source)
    if not isinstance(source, FolderPairs):
        return files
    captions = f"{files.root.rstrip('/')}/{source.captions}"
    if captions not in files.paths:
        raise ConfigError(
            f"source '{source.title}': found no {source.captions} in {source.path}; "
            "expected a table of captions there: write it, or change the source's captions or path"
        )
    return dataclasses.replace(files, paths=(captions,))


# Whole sources, without Ray


def read_pairs(source: PairSource, pixel_limit: int = PIXEL_LIMIT) -> Iterator[Pair]:
    """Yield every pair of a source; with a limit the same ones in every call.

    Raises:
        ConfigError: the source cannot be read, or one of its pairs, which it names, cannot be used.
    """
    files = find_pair_files(source)
    bound = None
    if source.limit:
        hashes = [choices(pairs, 0) for pairs in pairs_of(source, files)]
        bound = limit_bound(source.limit, np.unique(np.concatenate([np.empty(0, np.uint64), *hashes])))
    for pairs in pairs_of(source, files):
        kept = pairs if bound is None else pairs.filter(pa.array(choices(pairs, 0) < bound))
        for row in kept.to_pylist():
            where = f"source '{source.title}', {row['origin']}"
            if row["reason"] is not None:
                raise ConfigError(f"{where}: the pair cannot be used ({row['reason']}); fix or remove it")
            try:
                decode(row["image"], pixel_limit)
            except BadImage as error:
                raise BadImage(f"{where}: {error}", error.reason) from error
            yield Pair(row["image"], row["caption"], row["origin"])


def pairs_of(source: PairSource, files: SourceFiles) -> Iterator[pa.Table]:
    for path in files.paths:
        for table in scan_pairs(source, files, path):
            yield fill_pairs(table, files)


def choices(pairs: pa.Table, seed: int) -> np.ndarray:
    """Return for each pair the number that a limit chooses by, uint64; a pair with a reason has that of its origin."""
    ids = [
        text_id(row["origin"]) if row["reason"] else pair_id(row["image"], row["caption"]) for row in pairs.to_pylist()
    ]
    return np.array([choice_hash(row_id, seed) for row_id in ids], dtype=np.uint64)


def check_pair_sources(sources: Sequence[PairSource], pixel_limit: int) -> None:
    """Refuse sources without files, without the named columns, or whose first pairs are all unusable.

    Needs no Ray. Assets are downloaded if they are not in the cache yet. Only the first pairs are read.

    Raises:
        ConfigError: names the source.
    """
    for source in sources:
        files = find_pair_files(source)
        if isinstance(source, FolderPairs) and source.captions.endswith(".jsonl"):
            (path,) = files.paths
            with files.filesystem.open_input_stream(path) as stream:
                keys = column_names(stream, "jsonl", path)
            for setting in ("image", "caption"):
                check_column(source.title, path, keys, getattr(source, setting), setting)
        check_first_pairs(source, files, pixel_limit)


def check_first_pairs(source: PairSource, files: SourceFiles, pixel_limit: int) -> None:
    reasons: Counter[str] = Counter()
    tables = (table for path in files.paths for table in scan_pairs(source, files, path))
    singles = (fill_pairs(table.slice(index, 1), files) for table in tables for index in range(len(table)))
    for single in itertools.islice(singles, CHECKED_ROWS):
        (row,) = single.to_pylist()
        reason = row["reason"] or fault(row["image"], pixel_limit)
        if reason is None:
            return
        reasons[reason] += 1
    if not reasons:
        raise ConfigError(
            f"source '{source.title}': found no pair in {source.path}; change path or format of the source"
        )
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    raise ConfigError(
        f"source '{source.title}': none of its first {reasons.total()} pairs can be used ({counts}); "
        "change the source's image, caption or path, or fix its files"
    )


# One file


def scan_pairs(source: PairSource, files: SourceFiles, path: str) -> Iterator[pa.Table]:
    """Yield tables of `SCAN_SCHEMA` from one of the source's files, at most `READ_ROWS` rows each.

    Raises:
        ConfigError: a table of pairs or captions cannot be read or lacks a column, or names a file outside its folder.
    """
    if isinstance(source, ParquetPairs):
        rows = scan_parquet(source, files, path)
    elif isinstance(source, FolderPairs):
        rows = scan_folder(source, files, path)
    else:
        rows = scan_tar(files, path, source.image, source.caption)
    return map(scan_table, batches(rows, READ_ROWS))


def scan_table(rows: Sequence[Scanned]) -> pa.Table:
    return pa.Table.from_pylist([row._asdict() for row in rows], schema=SCAN_SCHEMA)


def scanned(image: bytes | None, caption: object, origin: str, file: str | None = None) -> Scanned:
    """Return the row of a pair, or of the reason why it cannot be used."""
    text = judge(caption)
    if image is None and file is None:
        return Scanned(None, None, origin, "missing")
    if isinstance(text, Fault):
        return Scanned(None, None, origin, "no_caption")
    return Scanned(image, text.strip(), origin, None, file)


def scan_folder(source: FolderPairs, files: SourceFiles, path: str) -> Iterator[Scanned]:
    """Yield the rows of a table of captions; a row of a CSV has the line that it would have without line feeds."""
    form = "jsonl" if source.captions.endswith(".jsonl") else "csv"
    with files.filesystem.open_input_stream(path) as stream:
        rows = strict(records(stream, form, [source.image, source.caption], CORPUS), path)
        for row, (line, (name, caption)) in enumerate(rows, start=2):
            line = line if form == "jsonl" else row
            origin = f"{files.inside(path)}:{line}"
            if not isinstance(name, str) or not name:
                yield scanned(None, caption, origin)
                continue
            if not is_inside(name):
                raise ConfigError(
                    f"{path}, line {line}, names the image {name!r}; expected a path inside the folder, without ..: "
                    "move the image into the folder and change the line"
                )
            yield scanned(None, caption, f"{origin} {name}", name)


def scan_parquet(source: ParquetPairs, files: SourceFiles, path: str) -> Iterator[Scanned]:
    """Yield the rows of a Parquet file page by page: a row group may hold gigabytes of images."""
    columns = list(dict.fromkeys([source.image, source.caption]))
    numbers = itertools.count()
    try:
        with files.filesystem.open_input_file(path) as file:
            parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=PAGE_BYTES)
            check_pair_columns(source, path, parquet.schema_arrow)
            for batch in parquet.iter_batches(READ_ROWS, columns=columns, use_threads=False):
                rows = zip(batch[source.image].to_pylist(), batch[source.caption].to_pylist(), numbers, strict=False)
                for image, caption, number in rows:
                    value = image.get("bytes") if isinstance(image, dict) else image
                    data = value if isinstance(value, bytes) else None
                    yield scanned(data, caption, f"{files.inside(path)}:{number}")
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"source '{source.title}': {path} cannot be read as parquet ({str(error).splitlines()[0]}); "
            "write the file again, or change path or format of the source"
        ) from error


def check_pair_columns(source: ParquetPairs, path: str, schema: pa.Schema) -> None:
    """Refuse a Parquet file without a column of images and one of captions."""
    check_column(source.title, path, schema.names, source.image, "image")
    check_column(source.title, path, schema.names, source.caption, "caption")
    check_text_column(source.title, path, schema, source.caption, "caption")
    found = kind = schema.field(source.image).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)):
        raise ConfigError(
            f"source '{source.title}': column '{source.image}' of {path} holds {found}, expected the bytes of images "
            "(binary, or a struct with binary bytes); change the source's image"
        )


def scan_tar(files: SourceFiles, path: str, image: str | None, caption: str) -> Iterator[Scanned]:
    """Yield the rows of a tar archive; one that ends early gives a last row with the reason `broken_archive`."""
    name = files.inside(path)
    with files.filesystem.open_input_stream(path, compression=None) as stream:  # tarfile decompresses it
        try:
            for sample in read_samples(stream, path, image, caption):
                yield scanned(sample.image, sample.caption, f"{name}:{sample.stem}")
        except BrokenArchive:
            yield Scanned(None, None, name, "broken_archive")


def fill_pairs(table: pa.Table, files: SourceFiles) -> pa.Table:
    """Return rows of `scan_pairs` as `PAIR_SCHEMA`, with the bytes of images that are files of their own.

    Raises:
        ConfigError: such a file is there and cannot be read.
    """
    if table["file"].null_count == len(table):
        return table.select(PAIR_SCHEMA.names)
    rows = [Scanned(**row) for row in table.to_pylist()]
    paths = {row.file: f"{files.root.rstrip('/')}/{row.file}" for row in rows if row.file is not None}
    infos = files.filesystem.get_file_info(list(paths.values()))
    images = {
        name: read_file(files.filesystem, path)
        for (name, path), info in zip(paths.items(), infos, strict=True)
        if info.type == fs.FileType.File
    }
    filled = [row if row.file is None else scanned(images.get(row.file), row.caption, row.origin) for row in rows]
    return scan_table(filled).select(PAIR_SCHEMA.names)


def read_file(filesystem: fs.FileSystem, path: str) -> bytes:
    try:
        with filesystem.open_input_stream(path, compression=None) as stream:
            return bytes(stream.read())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error}); change its permissions or remove its row") from error
