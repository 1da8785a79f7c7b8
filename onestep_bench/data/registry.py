"""What a data set is, and the register of those known by name."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from onestep_bench.data.splits import SPLITS, WHOLE, check_split, is_test, rows_of
from onestep_bench.errors import OnestepError

Arrays = tuple[np.ndarray, np.ndarray | None]
Loader = Callable[[Path], Arrays] | Callable[[Path, str], Arrays]
LOADERS: dict[str, Loader] = {}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images of one split in memory, with their labels and a hash of both.

    images: uint8 (n, c, h, w) with h = w. labels: int64 (n,), or None where the set has none.
    digest: 16 hexadecimal digits that change with any pixel or label. split: 'train', 'test', or 'all' of the source.
    other: loads a split of the same source; None of images made by hand, which have one only.
    """

    name: str
    images: torch.Tensor = field(repr=False)
    labels: torch.Tensor | None = field(repr=False)
    digest: str
    split: str = "train"
    other: Callable[[str], "Dataset"] | None = field(default=None, repr=False)

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

    @property
    def splits(self) -> tuple[str, ...]:
        """('train', 'test'); empty for images made by hand, which nobody split."""
        return SPLITS if self.other else ()

    def on(self, split: str) -> "Dataset":
        """The same source's images of a split, 'train', 'test' or 'all'; itself for its own.

        Raises OnestepError for another name, for images made by hand, and as `data.load` does.
        """
        check_split(split)
        if split == self.split:
            return self
        if self.other is None:
            raise OnestepError(f"{self.name} has no {split} images: it was made by hand; data.load gives both splits")
        return self.other(split)


def dataset(name: str) -> Callable[[Loader], Loader]:
    """Register a function from the data folder to (images uint8 (n, c, h, w), labels (n,) or None) under `name`.

    It gives the whole set, which is then split by `splits.is_test`. One of two arguments, (folder, 'train' or 'test'),
    gives that split: of a set whose authors split it.
    """

    def register(loader: Loader) -> Loader:
        LOADERS[name] = loader
        return loader

    return register


def arrays_of(name: str, root: Path, split: str) -> Arrays:
    """Images and labels of a split of a registered data set; 'all' of one that its authors split: train, then test."""
    loader = LOADERS[name]
    if len(inspect.signature(loader).parameters) > 1:
        parts = [loader(root, part) for part in (SPLITS if split == WHOLE else [split])]
        images, labels = zip(*parts, strict=True)
        return np.concatenate(images), None if labels[0] is None else np.concatenate(labels)
    images, labels = loader(root)
    if split == WHOLE:
        return images, labels
    rows = rows_of(map(is_test, images), split)
    return images[rows], None if labels is None else np.asarray(labels)[rows]
