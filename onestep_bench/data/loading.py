"""A data set from its name or path, checked and hashed."""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from onestep_bench.data import sets  # noqa: F401  (registers them)
from onestep_bench.data.folders import read_source
from onestep_bench.data.registry import LOADERS, Arrays, Dataset, arrays_of
from onestep_bench.data.splits import SHARE, check_split
from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.known import plugins
from onestep_bench.store.files import data_digest, data_state
from onestep_bench.store.notes import SCRATCH, note


def names() -> list[str]:
    """The registered data sets; `load` also takes the path of a zip or folder."""
    plugins.load()
    return sorted(LOADERS)


def load(name: str, path: Path | str | None = None, *, split: str = "train") -> Dataset:
    """A split of a registered data set, of an EDM data set zip, or of a folder or tar of images.

    Files are looked for under `path`, else under the folder that ONESTEP_DATA names, else under
    ~/.cache/onestep_bench/data. A registered set that is not there is downloaded and its checksum verified.
    Labels of zips and folders come from their dataset.json (the layout of NVlabs/edm); without it, sub-folders are
    classes, sorted by name, if every image lies in one (`folders.classes_of`); else there are none.

    split: 'train', 'test', or 'all', the whole source: for zips that published statistics are of. A registered set
    says itself which images are which. Of zips, folders and tars one image in ten is to test with, by the hash of its
    pixels: whatever else lies beside it, and its copies with it. A set that is large is decoded once, into a file for
    each split, and mapped from there.
    `on` of what is returned gives the other split of the same source.
    Raises OnestepError for an unknown name or split, a split without images, a missing, damaged or inconsistent file,
    or a failed download.
    """
    check_split(split)
    if path is not None and not os.path.isdir(Path(path).expanduser()):
        raise OnestepError(f"data folder {path} does not exist; create it or correct the path")
    if name in names():
        return _Splits(name, partial(arrays_of, name, _root(path).absolute()))(split)
    source = find(name, path).absolute()
    if os.environ.get(SCRATCH):  # read once more, by a grid's cell alone
        note(data=str(source), **data_state(source), sha256=data_digest(source))
    return _Splits(source.resolve().name.removesuffix(".zip"), partial(read_source, source))(split)


def find(name: str, path: Path | str | None = None) -> Path:
    """The zip, folder or tar that `load` takes by this name, which is not registered. Raises OnestepError if none."""
    root = _root(path)
    candidates = [Path(name).expanduser()] if path is None else []
    for candidate in [*candidates, root / name]:
        if name and os.path.exists(candidate):
            return candidate
    if "/" in name or name.endswith(".zip"):
        raise OnestepError(f"no file or folder {name} (looked in {root} too); correct the path or set ONESTEP_DATA")
    raise OnestepError(f"unknown data set {name!r}{near_miss(name, names())} (or give the path of a zip or folder)")


def _root(path: Path | str | None) -> Path:
    return Path(path or os.environ.get("ONESTEP_DATA") or "~/.cache/onestep_bench/data").expanduser()


@dataclass(frozen=True)
class _Splits:
    """Function from a split to the data set: each is read, and hashed, once, as every score asks for both again."""

    name: str
    read: Callable[[str], Arrays]
    found: dict[str, Dataset] = field(default_factory=dict, repr=False)

    def __call__(self, split: str) -> Dataset:
        if split not in self.found:
            self.found[split] = self._made(split)
        return self.found[split]

    def _made(self, split: str) -> Dataset:
        name, (images, labels) = self.name, self.read(split)
        if labels is not None and len(labels) != len(images):
            raise OnestepError(f"{name} has {len(images)} images but {len(labels)} labels; fetch its files afresh")
        if not len(images):
            raise OnestepError(
                f"{name} has no {split} images: about one in {SHARE} is to test with; add some, or take split 'all'"
            )
        labels = None if labels is None else np.asarray(labels, np.int64)
        digest = digest_of(images.shape, [np.ascontiguousarray(images)], labels)
        tensors = torch.from_numpy(images), None if labels is None else torch.from_numpy(labels)
        return Dataset(name, *tensors, digest, split, self)


def digest_of(shape: tuple[int, ...], pixels: Iterable[np.ndarray], labels: np.ndarray | None) -> str:
    """`Dataset.digest` of images (n, c, h, w), given as `shape` and their pixels in turn, and labels int64 (n,)."""
    digest = hashlib.sha256(repr(tuple(shape)).encode())
    for block in pixels:
        digest.update(block.data)
    if labels is not None:
        digest.update(labels.tobytes())
    return digest.hexdigest()[:16]
