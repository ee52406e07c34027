"""The files of a corpus and what each holds: which are done, and whether they can be one corpus."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Container, Iterable

from jasper_ray.config import ConfigError, Settings
from jasper_ray.embedding.chunks import block_name
from jasper_ray.embedding.inputs import KnownFile
from jasper_ray.embedding.scan import Scan
from jasper_ray.embedding.settings import EmbedSettings

logger = logging.getLogger(__name__)


class ScannedFile(Settings):
    """An input file and what it holds."""

    file: KnownFile
    scan: Scan


def is_finished(scanned: ScannedFile, block_rows: int, finished: Container[str]) -> bool:
    """Whether all blocks of a file are; one that could not be read may have been mended."""
    blocks = range(math.ceil(scanned.scan.rows / block_rows))
    return not scanned.scan.fault and all(block_name(scanned.file.key, block) in finished for block in blocks)


def check_files(
    scans: Iterable[ScannedFile], now: Container[str], settings: EmbedSettings, finished: Container[str]
) -> None:
    """Refuse files of which too many cannot be read, that do not fit together, or that went before they were finished.

    `now` are the names of the files that are there.
    """
    scans = list(scans)
    check_readable(scans, settings.max_rejected)
    check_types([each for each in scans if not each.scan.fault])
    gone = [each for each in scans if each.file.name not in now]
    left = [each.file.name for each in gone if not is_finished(each, settings.block_rows, finished)]
    if left:
        raise ConfigError(
            f"{left[0]} is not there any more, and not all of its rows are embedded; put it back, "
            "or choose another --output"
        )
    if gone:
        first = gone[0].file.name
        logger.info("%d input files of before are not there now, such as %s; their vectors stay", len(gone), first)


def check_readable(scans: Collection[ScannedFile], max_rejected: float) -> None:
    bad = [each for each in scans if each.scan.fault]
    if len(bad) > max_rejected * len(scans):
        raise ConfigError(
            f"{len(bad)} of {len(scans)} files cannot be read, such as {bad[0].file.name}: {bad[0].scan.fault}; "
            "mend or leave out these files, or raise --max-rejected"
        )


def check_types(scans: list[ScannedFile]) -> None:
    for each in scans:
        if each.scan.types != scans[0].scan.types:
            raise ConfigError(
                f"the copied columns of {each.file.name} are {each.scan.types}, and those of {scans[0].file.name} "
                f"are {scans[0].scan.types}; give them one type, or leave them out of --carry and --id-column"
            )
