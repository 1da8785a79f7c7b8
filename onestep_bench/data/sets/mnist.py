"""MNIST and the sets in its layout: idx files, gzipped or not."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onestep_bench.data.registry import Arrays, dataset
from onestep_bench.errors import OnestepError
from onestep_bench.store.downloads import fetch


@dataset("mnist")
def _mnist(root: Path) -> Arrays:
    """60,000 grey 28x28 digits (LeCun et al.)."""
    mirrors = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
    md5s = ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432")
    return _idx_set([root / "MNIST" / "raw", root / "mnist", root], mirrors, md5s)


@dataset("fashion-mnist")
def _fashion_mnist(root: Path) -> Arrays:
    """60,000 grey 28x28 pictures of clothes (Xiao et al.)."""
    # Its files bear MNIST's names, so unlike MNIST they count only inside a folder of their own.
    mirrors = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
    md5s = ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe")
    return _idx_set([root / "FashionMNIST" / "raw", root / "fashion-mnist"], mirrors, md5s)


def _idx_set(folders: Sequence[Path], mirrors: Sequence[str], md5s: Sequence[str]) -> Arrays:
    """Training images and labels from the first folder that has both files; downloaded into folders[0] if none has."""
    stems = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
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
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise OnestepError(f"cannot read {path}: {error}; delete it and load again to fetch a good copy") from error
    if content[:4] != bytes((0, 0, 8, ndim)) or len(content) < 4 + 4 * ndim:
        raise OnestepError(f"{path} is not an idx file of {ndim}-dimensional bytes (wrong magic number); delete it")
    shape = np.frombuffer(content, ">i4", ndim, offset=4).tolist()
    expected = 4 + 4 * ndim + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise OnestepError(f"{path} has {len(content)} bytes instead of {expected}; delete it to fetch a good copy")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy()
