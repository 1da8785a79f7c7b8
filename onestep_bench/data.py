"""Data sets by name: uint8 images (n, c, h, w) and integer labels.

To add a data set, write one function here and mark it `@dataset("name")`.
"""

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from onestep_bench import cifar
from onestep_bench.archives import Archive, decode, describe, image_names, opened
from onestep_bench.downloads import fetch
from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.files import replacing

Arrays = tuple[np.ndarray, np.ndarray | None]
_LOADERS: dict[str, Callable[[Path], Arrays]] = {}
_CLASSES = 10**6
_MAPPED = 1 << 26  # bytes from which on decoded images are mapped from a file


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
        _LOADERS[name] = loader
        return loader

    return register


def names() -> list[str]:
    """The registered data sets; `load` also takes the path of a zip or folder."""
    return sorted(_LOADERS)


def load(name: str, path: Path | str | None = None) -> Dataset:
    """The training images of a registered data set, of an EDM data set zip, or of a folder or tar of images.

    Files are looked for under `path`, else under the folder that ONESTEP_DATA names, else under
    ~/.cache/onestep_bench/data. A registered set that is not there is downloaded and its checksum verified.
    Labels of zips and folders come from their dataset.json (the layout of NVlabs/edm); without it there are none.
    Raises OnestepError for an unknown name, a missing, damaged or inconsistent file, or a failed download.
    """
    if path is not None and not Path(path).expanduser().is_dir():
        raise OnestepError(f"data folder {path} does not exist; create it or correct the path")
    root = Path(path or os.environ.get("ONESTEP_DATA") or "~/.cache/onestep_bench/data").expanduser()
    if name in _LOADERS:
        return _checked(name, *_LOADERS[name](root))
    source = _find(name, root, here=path is None)
    return _checked(source.resolve().name.removesuffix(".zip"), *_read_source(source))


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """Map uint8 images 0..255 to float32 in [-1, 1], any shape, on their device."""
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Map float images in [-1, 1] to uint8 0..255, clamped, any shape, on their device.

    The rounding is that of NVlabs/edm, and the inverse of `to_unit`.
    """
    return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def _checked(name: str, images: np.ndarray, labels: np.ndarray | None) -> Dataset:
    if labels is not None and len(labels) != len(images):
        raise OnestepError(f"{name} has {len(images)} images but {len(labels)} labels; fetch its files afresh")
    labels = None if labels is None else np.asarray(labels, np.int64)
    digest = digest_of(images.shape, [np.ascontiguousarray(images)], labels)
    return Dataset(name, torch.from_numpy(images), None if labels is None else torch.from_numpy(labels), digest)


def digest_of(shape: tuple[int, ...], pixels: Iterable[np.ndarray], labels: np.ndarray | None) -> str:
    """`Dataset.digest` of images (n, c, h, w), given as `shape` and their pixels in turn, and labels int64 (n,)."""
    digest = hashlib.sha256(repr(tuple(shape)).encode())
    for block in pixels:
        digest.update(block.data)
    if labels is not None:
        digest.update(labels.tobytes())
    return digest.hexdigest()[:16]


def _find(name: str, root: Path, *, here: bool) -> Path:
    candidates = [Path(name).expanduser()] if here else []
    for candidate in [*candidates, root / name]:
        if name and candidate.exists():
            return candidate
    if "/" in name or name.endswith(".zip"):
        raise OnestepError(f"no file or folder {name} (looked in {root} too); correct the path or set ONESTEP_DATA")
    raise OnestepError(f"unknown data set {name!r}{near_miss(name, names())} (or give the path of a zip or folder)")


# --- the registered sets


@dataset("digits")
def _digits(root: Path) -> Arrays:
    """The 1797 handwritten digits, 8x8, that ship inside scikit-learn; 0..16 becomes 0..255."""
    from sklearn.datasets import load_digits  # here, because scikit-learn takes a second to import

    bunch = load_digits()
    return np.rint(bunch.images[:, None] * (255 / 16)).astype(np.uint8), bunch.target


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


@dataset("cifar10")
def _cifar10(root: Path) -> Arrays:
    """50,000 colour 32x32 pictures in ten classes (Krizhevsky)."""
    folder = cifar.folder_in(root)
    if folder is None:
        binary, archive = (root / f"cifar-10-{kind}.tar.gz" for kind in ("binary", "python"))
        if binary.exists() and not archive.exists():
            archive, md5 = binary, "c32a1d4ab5d03f1284b67883e8d87530"
        else:
            md5 = "c58f30108f718f92721af3b95e74349a"
        fetch(archive, [f"https://www.cs.toronto.edu/~kriz/{archive.name}"], md5)
        folder = cifar.unpack(archive, root)
    return cifar.read_folder(folder)


# --- MNIST's idx files


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


# --- folders, zips and tars of images


def _read_source(source: Path) -> Arrays:
    with opened(source) as archive:
        files = image_names(source, archive.files)
        return _read_images(archive, files), read_labels(archive, files)


def read_labels(archive: Archive, images: list[str]) -> np.ndarray | None:
    """Labels (n,) int64 of the named images, by the archive's dataset.json; None where it has none.

    Raises OnestepError for a dataset.json that is damaged, or does not give every image one whole number.
    """
    if "dataset.json" not in archive.files:
        return None
    source = archive.path
    try:
        pairs = json.loads(archive.read("dataset.json"))["labels"]
        if pairs is None:
            return None
        labels = {file: label for file, label in pairs}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise OnestepError(f'{source}: dataset.json is not {{"labels": [[file, int], ...]}}; write it so') from error
    odd = next((file for file, label in labels.items() if type(label) is not int or not 0 <= label < _CLASSES), None)
    if odd is not None:
        told = repr(labels[odd])[:40]
        raise OnestepError(f"{source}: the label of {odd} is {told}; labels are integers from 0, below a million")
    unmatched = sorted(set(images) ^ labels.keys())
    if unmatched or len(pairs) != len(images):
        example = f" ({unmatched[0]} has no partner)" if unmatched else ""
        raise OnestepError(f"{source} has {len(images)} images but {len(pairs)} labels{example}; mend dataset.json")
    return np.array([labels[file] for file in images], np.int64)


def _read_images(archive: Archive, files: list[str]) -> np.ndarray:
    """All images in one array (n, c, h, w), in memory if it is small.

    A larger set is decoded once into a file and mapped from there: it needs no memory of its own, starts at once the
    second time, and is shared by all processes of a machine. The file is named by the content of the archive.
    """
    first = decode(archive.path, files[0], archive.read)
    height, width = first.shape[1:]
    if height != width:
        raise OnestepError(f"{archive.path}: {files[0]} is {width}x{height}; images must be square, so crop them first")
    shape = (len(files), *first.shape)
    if first.size * len(files) < _MAPPED:
        images = np.empty(shape, np.uint8)
        for index, image in enumerate(_alike(archive, files, first)):
            images[index] = image
        return images
    folder = Path(os.environ.get("ONESTEP_CACHE") or "~/.cache/onestep_bench/decoded").expanduser()
    file = folder / f"{archive.key}.npy"
    if not _is_array(file, shape):
        with replacing(file) as temporary, open(temporary, "wb") as out:
            # Written and not mapped: a full disk is then an error and not a crash.
            np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for image in _alike(archive, files, first):
                out.write(image.tobytes())
    return np.load(file, mmap_mode="c")  # c: nobody writes to it, but torch wants to be able to


def _alike(archive: Archive, files: list[str], first: np.ndarray) -> Iterator[np.ndarray]:
    """All images in turn, each of the shape of the first."""
    for file in files:
        image = decode(archive.path, file, archive.read)
        if image.shape != first.shape:
            raise OnestepError(
                f"{archive.path}: {file} is {describe(image)} but {files[0]} is {describe(first)}; make them all alike"
            )
        yield image


def _is_array(file: Path, shape: tuple[int, ...]) -> bool:
    try:
        found = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return found.shape == shape and found.dtype == np.uint8
