"""The digits of scikit-learn: embedded, no download."""

from pathlib import Path

import numpy as np

from onestep_bench.data.registry import Arrays, dataset


@dataset("digits")
def _digits(root: Path) -> Arrays:
    """The 1797 handwritten digits, 8x8, that ship inside scikit-learn; 0..16 becomes 0..255."""
    from sklearn.datasets import load_digits  # here, because scikit-learn takes a second to import

    bunch = load_digits()
    return np.rint(bunch.images[:, None] * (255 / 16)).astype(np.uint8), bunch.target
