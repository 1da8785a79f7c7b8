"""Which images are to train on and which to test with, where a data set does not say so itself."""

import hashlib
from collections.abc import Iterable

import numpy as np

from onestep_bench.errors import OnestepError, near_miss

SPLITS = ("train", "test")
WHOLE = "all"
SHARE = 10  # one image in so many is to test with


def check_split(split: str) -> None:
    """Raises OnestepError for what is no split."""
    if split not in (*SPLITS, WHOLE):
        raise OnestepError(f"unknown split {split!r}{near_miss(split, (*SPLITS, WHOLE))}")


def fingerprint(image: np.ndarray) -> bytes:
    """16 bytes of the pixels (c, h, w): equal for equal images, and the same for ever."""
    pixels = np.ascontiguousarray(image)
    return hashlib.blake2b(pixels.data, digest_size=16, key=repr(pixels.shape).encode()).digest()


def is_test(image: np.ndarray) -> bool:
    """Whether an image (c, h, w) is to test with: one in ten, by its pixels alone, so that its copies go with it."""
    return int.from_bytes(fingerprint(image)[:8], "big") % SHARE == 0


def rows_of(tests: Iterable[bool], split: str) -> np.ndarray:
    """Rows (n,) int64 of the images of a split, in their order; tests: `is_test` of every image."""
    sides = np.fromiter(tests, bool)
    return np.flatnonzero(sides == (split == "test")) if split in SPLITS else np.arange(len(sides))
