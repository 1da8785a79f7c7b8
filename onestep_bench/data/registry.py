"""What a data set is, and the register of those known by name."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

Arrays = tuple[np.ndarray, np.ndarray | None]
LOADERS: dict[str, Callable[[Path], Arrays]] = {}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images in memory, with their labels and a hash of both.

    images: uint8 (n, c, h, w) with h = w. labels: int64 (n,), or None where the set has none.
    digest: 16 hexadecimal digits that change with any pixel or label.
    """

    name: str
    images: torch.Tensor = field(repr=False)
    labels: torch.Tensor | None = field(repr=False)
    digest: str

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one image."""
        return tuple(self.images.shape[1:])

    @property
    def resolution(self) -> int:
        """Height, and width, in pixels."""
        return self.images.shape[-1]

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return self.images.shape[1]

    @property
    def num_classes(self) -> int:
        """Largest label plus one; 0 when there are no labels."""
        return len(self.class_counts)

    @property
    def class_counts(self) -> list[int]:
        """Images of each class; empty when there are no labels."""
        return [] if self.labels is None else torch.bincount(self.labels).tolist()


def dataset(name: str) -> Callable[[Callable[[Path], Arrays]], Callable[[Path], Arrays]]:
    """Register a function from the data folder to (images uint8 (n, c, h, w), labels (n,) or None) under `name`."""

    def register(loader: Callable[[Path], Arrays]) -> Callable[[Path], Arrays]:
        LOADERS[name] = loader
        return loader

    return register
