"""Data sets by name: uint8 images (n, c, h, w) and integer labels.

To add a data set, write one function here and mark it `@dataset("name")`.
"""

import gzip
import hashlib
import io
import json
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from onestep_bench import pickles
from onestep_bench.downloads import fetch
from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.files import replacing

Arrays = tuple[np.ndarray, np.ndarray | None]
_LOADERS: dict[str, Callable[[Path], Arrays]] = {}
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")


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
    """The training images of a registered data set, of an EDM data set zip, or of a folder of images.

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
    reader = _read_folder if source.is_dir() else _read_zip
    return _checked(source.resolve().name.removesuffix(".zip"), *reader(source))


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
    digest = hashlib.sha256(repr(images.shape).encode())
    digest.update(np.ascontiguousarray(images).data)
    if labels is not None:
        labels = np.asarray(labels, np.int64)
        digest.update(labels.tobytes())
    tensors = (torch.from_numpy(images), None if labels is None else torch.from_numpy(labels))
    return Dataset(name, *tensors, digest.hexdigest()[:16])


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
    folder = root / "cifar-10-batches-py"
    batches = [folder / f"data_batch_{i}" for i in range(1, 6)]
    if not all(batch.exists() for batch in batches):
        archive = root / "cifar-10-python.tar.gz"
        url = f"https://www.cs.toronto.edu/~kriz/{archive.name}"
        fetch(archive, [url], "c58f30108f718f92721af3b95e74349a")
        _extract(archive, folder, [batch.name for batch in batches])
    images, labels = zip(*map(_read_cifar_batch, batches), strict=True)
    return np.concatenate(images), np.concatenate(labels)


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


# --- CIFAR's pickles


def _read_cifar_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    batch = pickles.read(path)
    try:
        images, labels = np.asarray(batch["data"]).reshape(-1, 3, 32, 32), np.asarray(batch["labels"])
        if images.dtype != np.uint8 or labels.shape != images.shape[:1] or labels.dtype.kind != "i":
            raise ValueError("not a CIFAR-10 batch")
    except (KeyError, TypeError, ValueError) as error:
        raise OnestepError(f"{path} is damaged ({error}); delete it and load again to fetch a good copy") from error
    return images, labels


def _extract(archive: Path, folder: Path, members: Sequence[str]) -> None:
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for name in members:
                content = tar.extractfile(f"{folder.name}/{name}").read()
                with replacing(folder / name) as temporary:
                    temporary.write_bytes(content)
    except (tarfile.TarError, KeyError, AttributeError, EOFError, zlib.error) as error:
        raise OnestepError(f"{archive} is damaged ({error}); delete it and load again") from error


# --- zips and folders of images


def _read_folder(folder: Path) -> Arrays:
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    return _read_members(folder, files, lambda name: (folder / name).read_bytes())


def _read_zip(path: Path) -> Arrays:
    try:
        with zipfile.ZipFile(path) as archive:
            files = [info.filename for info in archive.infolist() if not info.is_dir()]
            for name in files:
                if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
                    raise OnestepError(f"{path}: entry {name!r} points outside the zip; do not use this file")
            return _read_members(path, files, archive.read)
    except (OSError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise OnestepError(f"cannot read {path} as a zip ({error}); fetch it again, or give a folder") from error


def _read_members(source: Path, files: list[str], read: Callable[[str], bytes]) -> Arrays:
    # Names that begin with a dot are what file managers and archivers leave behind (._image.png).
    visible = sorted(f for f in files if not any(part.startswith(".") for part in PurePosixPath(f).parts))
    images = [f for f in visible if f.lower().endswith(_SUFFIXES)]
    if not images:
        raise OnestepError(f"{source} holds no images ({', '.join(_SUFFIXES)}); choose another folder or zip")
    labels = _read_labels(source, images, read) if "dataset.json" in files else None
    return _read_images(source, images, read), labels


def _read_labels(source: Path, images: list[str], read: Callable[[str], bytes]) -> np.ndarray | None:
    try:
        pairs = json.loads(read("dataset.json"))["labels"]
        if pairs is None:
            return None
        labels = {file: label for file, label in pairs}
    except (ValueError, KeyError, TypeError) as error:
        raise OnestepError(f'{source}: dataset.json is not {{"labels": [[file, int], ...]}}; write it so') from error
    odd = next((file for file, label in labels.items() if type(label) is not int or label < 0), None)
    if odd is not None:
        raise OnestepError(f"{source}: the label of {odd} is {labels[odd]!r}; labels are integers from 0")
    unmatched = sorted(set(images) ^ labels.keys())
    if unmatched or len(pairs) != len(images):
        example = f" ({unmatched[0]} has no partner)" if unmatched else ""
        raise OnestepError(f"{source} has {len(images)} images but {len(pairs)} labels{example}; mend dataset.json")
    return np.array([labels[file] for file in images], np.int64)


def _read_images(source: Path, files: list[str], read: Callable[[str], bytes]) -> np.ndarray:
    """Decode into one array that is allocated once, since a set may fill half the memory."""
    first = _decode(source, files[0], read)
    height, width = first.shape[1:]
    if height != width:
        raise OnestepError(f"{source}: {files[0]} is {width}x{height}; images must be square, so crop them first")
    images = np.empty((len(files), *first.shape), np.uint8)
    for index, file in enumerate(files):
        image = _decode(source, file, read)
        if image.shape != first.shape:
            raise OnestepError(
                f"{source}: {file} is {_describe(image)} but {files[0]} is {_describe(first)}; make all images alike"
            )
        images[index] = image
    return images


def _describe(image: np.ndarray) -> str:
    channels, height, width = image.shape
    return f"{width}x{height} {'grey' if channels == 1 else 'colour'}"


def _decode(source: Path, file: str, read: Callable[[str], bytes]) -> np.ndarray:
    """uint8 (c, h, w) of one image file."""
    try:
        with Image.open(io.BytesIO(read(file)), formats=_FORMATS) as image:
            mode, pixels = image.mode, np.asarray(image)
    # Pillow reports damage in all these ways; zipfile raises RuntimeError for encrypted entries.
    except (
        OSError, SyntaxError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile,
        Image.DecompressionBombError,
    ) as error:  # fmt: skip
        reason = "not in a known format" if isinstance(error, UnidentifiedImageError) else error
        raise OnestepError(f"{source}: cannot read image {file} ({reason}); replace or remove it") from error
    if mode not in ("L", "RGB"):
        raise OnestepError(f"{source}: {file} has mode {mode}; convert it to grey (L) or RGB")
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)
