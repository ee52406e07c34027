"""Hashes in place of state: a text's id, and one number per id, seed and purpose.

Every random-looking decision about a text (held out? chosen? cut? its place?) is a function of these, so that it does
not depend on the number of workers, the order of files or the run. Python's own `hash` changes from process to process.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np

HASH_END = 1 << 64
"""One more than the largest hash."""


def text_id(text: str) -> str:
    """Return the id of a text: 16 hex digits of BLAKE2b over its UTF-8 bytes. Equal texts have equal ids."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def image_id(image: bytes) -> str:
    """Return the id of an image: 16 hex digits of BLAKE2b over the bytes of its file."""
    return hashlib.blake2b(image, digest_size=8).hexdigest()


def pair_id(image: bytes, caption: str) -> str:
    """Return the id of an image and its caption. Equal pairs have equal ids."""
    digest = hashlib.blake2b(b"%d:" % len(image), digest_size=8)
    digest.update(image)
    digest.update(caption.encode())
    return digest.hexdigest()


def keyed_hash(row_id: str, seed: int, purpose: str) -> int:
    """Return a number in [0, 2**64), evenly spread over ids; independent for each seed and purpose."""
    key = f"{purpose}:{seed}".encode()
    return int.from_bytes(hashlib.blake2b(row_id.encode(), digest_size=8, key=key).digest(), "big")


def falls_in_share(row_id: str, share: float, seed: int, purpose: str) -> bool:
    """Say if this id is in the `share` of all ids picked for `purpose`."""
    return share > 0 and keyed_hash(row_id, seed, purpose) < share * HASH_END


def is_held_out(row_id: str, holdout: float) -> bool:
    """Say if a text or image is held out: its id as a number falls into the share. No seed changes that."""
    return int(row_id, 16) < holdout * HASH_END


def choice_hash(row_id: str, seed: int) -> int:
    """Return the number that limits and weights choose by: a source keeps the rows with the smallest ones."""
    return keyed_hash(row_id, seed, "choose")


def sort_key(row_id: str, seed: int) -> int:
    """Return the number that rows are sorted by, in place of shuffling; its 63 bits fit a signed Arrow column."""
    return keyed_hash(row_id, seed, "sort") >> 1


def generator(row_id: str, seed: int, purpose: str) -> random.Random:
    """Return a random generator for this id."""
    return random.Random(keyed_hash(row_id, seed, purpose))


def limit_bound(limit: int | None, smallest: np.ndarray) -> int:
    """Return the bound that at most `limit` different choice hashes are below, from the smallest ones, sorted."""
    if limit is None or len(smallest) < limit:
        return HASH_END
    return int(smallest[limit - 1]) + 1
