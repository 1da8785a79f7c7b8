"""The digits of scikit-learn: embedded, no download."""

from pathlib import Path

import numpy as np

from onestep_bench.data.registry import Arrays, dataset
from onestep_bench.data.splits import SPLITS, fingerprint


@dataset("digits")
def _digits(root: Path, split: str) -> Arrays:
    """899 grey 8x8 handwritten digits, and 898 to test with: those inside scikit-learn, 0..16 made 0..255."""
    from sklearn.datasets import load_digits  # here, because scikit-learn takes a second to import

    bunch = load_digits()
    images = np.rint(bunch.images[:, None] * (255 / 16)).astype(np.uint8)
    # Every second one of each class, in the order of the hashes of their pixels: halves that are the same for ever.
    order = sorted(range(len(images)), key=lambda row: (bunch.target[row], fingerprint(images[row])))
    rows = sorted(order[SPLITS.index(split) :: 2])
    return images[rows], bunch.target[rows]
