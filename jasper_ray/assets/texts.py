"""From source archives to training texts: a UTF-8 file with one text a line, no text twice."""

from __future__ import annotations

import html
import io
import logging
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from jasper_ray.assets.unpack import read_member
from jasper_ray.config import ConfigError

logger = logging.getLogger(__name__)

TEXT = "texts.txt"

VADER_TEXTS = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
VADER_FILES = ("tweets", "movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets")


def write_vader(archives: Sequence[Path], target: Path) -> None:
    """Write the human-rated texts of Hutto & Gilbert (2014) from the source archive of vaderSentiment.

    Of its 23,703 texts 23,342 are kept: fewer than three words ("wow", "!") and repetitions are left out.
    """
    (archive,) = archives
    try:
        write_texts((text for text in _vader_texts(archive) if len(text.split()) >= 3), target / TEXT)
    except (tarfile.TarError, EOFError) as error:
        raise ConfigError(f"{archive} is no whole archive ({error}): delete this file and run again") from error


def _vader_texts(archive: Path) -> Iterator[str]:
    """The third column of the four files. Members are read in memory, so none can land elsewhere."""
    with tarfile.open(archive) as outer, tarfile.open(fileobj=io.BytesIO(read_member(outer, VADER_TEXTS))) as inner:
        for name in VADER_FILES:
            rows = read_member(inner, f"hutto_ICWSM_2014/{name}_GroundTruth.txt").decode().splitlines()
            for row in rows:
                # Some texts were escaped twice, and some begin with the quotation mark of a list they stood in.
                yield html.unescape(html.unescape(row.split("\t")[2])).removeprefix('" ')


def write_texts(texts: Iterable[str], path: Path) -> None:
    """Write each different text once, its white space collapsed, in order of first appearance."""
    lines = dict.fromkeys(" ".join(text.split()) for text in texts)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    logger.info("%d texts in %s", len(lines), path.name)
