"""MNIST and the sets in its layout: idx files, gzipped or not."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onestep_bench.data.registry import Arrays, dataset
from onestep_bench.errors import OnestepError
from onestep_bench.store.downloads import fetch

# What the files of a split begin with.
_STEMS = {"train": "train", "test": "t10k"}
_LARGEST = 1 << 28  # bytes: five times the largest of them


@dataset("mnist")
def _mnist(root: Path, split: str) -> Arrays:
    """60,000 grey 28x28 digits (LeCun et al.), and 10,000 to test with."""
    mirrors = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
    md5s = {
        "train": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432"),
        "test": ("9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c"),
    }
    return _idx_set([root / "MNIST" / "raw", root / "mnist", root], mirrors, md5s[split], _STEMS[split])


@dataset("fashion-mnist")
def _fashion_mnist(root: Path, split: str) -> Arrays:
    """60,000 grey 28x28 pictures of clothes (Xiao et al.), and 10,000 to test with."""
    # Its files bear MNIST's names, so unlike MNIST they count only inside a folder of their own.
    mirrors = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
    md5s = {
        "train": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe"),
        "test": ("bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310"),
    }
    folders = [root / "FashionMNIST" / "raw", root / "fashion-mnist"]
    return _idx_set(folders, mirrors, md5s[split], _STEMS[split])


def _idx_set(folders: Sequence[Path], mirrors: Sequence[str], md5s: Sequence[str], stem: str) -> Arrays:
    """Images and labels from the first folder that has both files; downloaded into folders[0] if none has."""
    stems = (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte")
    for folder in folders:
        files = [next((f for f in (folder / stem, folder / f"{stem}.gz") if f.exists()), None) for stem in stems]
        if all(files):
            break
    else:
        files = [folders[0] / f"{stem}.gz" for stem in stems]
        for file, md5 in zip(files, md5s, strict=True):
            fetch(file, [mirror + file.name for mirror in mirrors], md5)
    images, labels = _read_idx(files[0], 3), _read_idx(files[1], 1)
    return images[:, None], labels


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """A uint8 array of `ndim` axes: two zero bytes, type 8, ndim, big-endian int32 lengths, data."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = file.read(_LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise OnestepError(f"cannot read {path}: {error}; delete it and load again to fetch a good copy") from error
    if content[:4] != bytes((0, 0, 8, ndim)) or len(content) < 4 + 4 * ndim:
        raise OnestepError(f"{path} is not an idx file of {ndim}-dimensional bytes (wrong magic number); delete it")
    if len(content) > _LARGEST:
        raise OnestepError(f"{path} unpacks to more than {_LARGEST >> 20} MiB; delete it to fetch a good copy")
    shape = np.frombuffer(content, ">i4", ndim, offset=4).tolist()
    expected = 4 + 4 * ndim + int(np.prod(shape, dtype=object))
    if len(content) != expected or min(shape) < 0:
        raise OnestepError(f"{path} has {len(content)} bytes instead of {expected}; delete it to fetch a good copy")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy()
