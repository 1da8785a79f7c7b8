"""Data sets in the layout of NVlabs/edm: a zip of PNG images in numbered folders, and their labels in dataset.json."""

import io
import itertools
import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from onestep_bench.data import cifar
from onestep_bench.data.archives import decode, image_names, opened, picture
from onestep_bench.data.folders import classes_of, read_labels
from onestep_bench.data.loading import digest_of, find, load
from onestep_bench.data.loading import names as registered
from onestep_bench.data.splits import fingerprint, is_test
from onestep_bench.errors import OnestepError
from onestep_bench.store.files import file_digest, replacing

_EIGHT_BITS = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # zips know no earlier time


# --- transforms: a picture and the side wanted -> a square picture of that side


def _centre_crop(image: Image.Image, side: int) -> Image.Image:
    """The largest central square, scaled by Lanczos ('center-crop' in NVlabs/edm)."""
    width, height = image.size
    length = min(width, height)
    left, top = (width - length) // 2, (height - length) // 2
    return image.crop((left, top, left + length, top + length)).resize((side, side), Image.Resampling.LANCZOS)


def _centre_crop_dhariwal(image: Image.Image, side: int) -> Image.Image:
    """Halved by boxes while twice too large, scaled bicubically, then cropped: ADM's ImageNet (arXiv 2105.05233)."""
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _stretch(image: Image.Image, side: int) -> Image.Image:
    """The whole picture, scaled by Lanczos; one that is not square is distorted."""
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.LANCZOS)


TRANSFORMS = {
    "center-crop": _centre_crop,
    "center-crop-dhariwal": _centre_crop_dhariwal,
    "stretch": _stretch,
}


# --- writing


@dataclass(frozen=True)
class _Source:
    """Pictures in order, each with its name, and their labels."""

    pictures: Iterator[tuple[str, Image.Image]]
    labels: np.ndarray | None


@contextmanager
def _open(path: Path) -> Iterator[_Source]:
    if not os.path.exists(path):
        raise OnestepError(f"no file or folder {path}; correct the path")
    if path.is_file() and cifar.is_archive(path):
        images, labels = cifar.read_archive(path)
        pictures = ((f"image {i}", Image.fromarray(image.transpose(1, 2, 0))) for i, image in enumerate(images))
        yield _Source(pictures, labels)
        return
    with opened(path) as archive:
        names = image_names(path, archive.files)
        yield _Source(((name, picture(path, name, archive.read)) for name in names), read_labels(archive, names))


def build(source: Path, out: Path, *, side: int | None = None, transform: str | None = None) -> tuple[int, str]:
    """Write the images of a folder, zip or tar, or of an archive of CIFAR-10, as a data set; (images, file's SHA-256).

    side: of the square images written, by default that of the first, which must then be square, as must all others be.
    transform: a key of `TRANSFORMS`, for which side is needed. Colour and grey follow the first image. Labels are
    those of the source, as `data.load` finds them. The same images give the same bytes. Raises OnestepError for a
    source that is damaged or whose images cannot be made alike.
    """
    if out.suffix != ".zip":
        raise OnestepError(f"{out}: a data set is a .zip")
    if transform and not side:
        raise OnestepError(f"transform {transform} needs to know the size; pass --resolution, as in 64x64")
    names: list[str] = []
    shape: tuple | None = None
    with _open(source) as found, replacing(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for index, (name, image) in enumerate(found.pictures):
            image = _squared(f"{source}: {name}", image, side, transform)
            shape = shape or (image.size, "L" if image.mode in ("1", "L", "LA") else "RGB")
            if image.size != shape[0]:
                sizes = " and ".join("{}x{}".format(*size) for size in (image.size, shape[0]))
                raise OnestepError(f"{source}: {name} and the first image differ, {sizes}; pass --resolution")
            names.append(f"{index // 1000:05d}/img{index:08d}.png")
            _add(archive, names[-1], _png(image.convert(shape[1])))
        labels = None
        if found.labels is not None:
            labels = [[name, int(label)] for name, label in zip(names, found.labels, strict=True)]
        _add(archive, "dataset.json", json.dumps({"labels": labels}).encode())
    return len(names), file_digest(out)


def _squared(name: str, image: Image.Image, side: int | None, transform: str | None) -> Image.Image:
    if image.mode not in _EIGHT_BITS:
        raise OnestepError(f"{name} has mode {image.mode}, more than 8 bits a channel; convert it first")
    if transform:
        if image.mode not in ("L", "RGB"):
            image = image.convert("RGB")  # palettes and bits cannot be scaled
        return TRANSFORMS[transform](image, side)
    if image.width != image.height or side not in (None, image.width):
        size = f"{image.width}x{image.height}"
        raise OnestepError(f"{name} is {size}; pass --transform ({', '.join(TRANSFORMS)}) and --resolution")
    return image


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=0, optimize=False)  # as NVlabs/edm: quick to read
    return file.getvalue()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system, info.external_attr = 3, 0o644 << 16  # whatever the system that writes
    archive.writestr(info, content)


# --- checking


@dataclass
class Check:
    """What a data set holds. problems: why it cannot be trained on, empty if it can; digest: then that of all images.

    tests: how many images are to test with, the others to train on. sizes: number of images by (width, height,
    channels). duplicates: images whose pixels are those of an earlier one.
    """

    count: int = 0
    tests: int = 0
    sizes: Counter = field(default_factory=Counter)
    labels: str = "none"
    duplicates: int = 0
    digest: str = ""
    sha256: str = ""
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The same, to be read."""
        sizes = ", ".join(
            f"{number} of {width}x{height} {'grey' if channels == 1 else 'colour'}"
            for (width, height, channels), number in self.sizes.most_common(_SHOWN)
        )
        told = [f"images: {self.count}", f"splits: {self.count - self.tests} train, {self.tests} test"]
        told += [f"sizes: {sizes or 'none'}", f"labels: {self.labels}"]
        told.append(f"duplicates: {self.duplicates}" + (" images equal an earlier one" if self.duplicates else ""))
        told += [f"digest: {self.digest}"] if self.digest else []
        told += [f"SHA-256: {self.sha256}"] if self.sha256 else []
        return [*told, *(f"problem: {problem}" for problem in self.problems[:_SHOWN]), *self._more()]

    def _more(self) -> list[str]:
        more = len(self.problems) - _SHOWN
        return [f"and {more} more problems"] if more > 0 else []


_SHOWN = 10  # problems of a kind come by the thousand


def check_named(name: str) -> Check:
    """`check` of what `data.load` takes by this name or path; of a registered data set, of the images it loads.

    Raises OnestepError for an unknown name, and as `data.load` and `check` do.
    """
    if name not in registered():
        return check(find(name))
    data = load(name, split="all")
    channels, height, width = data.shape
    labels = None if data.labels is None else data.labels.numpy()
    sizes = Counter({(width, height, channels): len(data)})
    found = Check(count=len(data), tests=len(data) - len(load(name)), sizes=sizes, digest=data.digest)
    found.labels = _in_words(labels)
    found.duplicates = len(data) - len({fingerprint(image) for image in data.images.numpy()})
    return found


def check(source: Path) -> Check:
    """Look at every image of a folder, zip or tar, one at a time.

    Raises OnestepError only where there is nothing to look at; what else is wrong is among the problems.
    """
    if not os.path.exists(source):
        raise OnestepError(f"no file or folder {source}; correct the path")
    found, labels = Check(sha256="" if source.is_dir() else file_digest(source)), None
    with opened(source) as archive:
        names = image_names(source, archive.files)
        found.count = len(names)
        try:
            labels = read_labels(archive, names)
        except OnestepError as error:
            found.problems.append(str(error))
        found.labels = _in_words(labels) + _origin(labels, archive.files, names)
        # Hashing asks for the images one after the other; looking at each on its way is what fills `found`.
        arrays = _looked_at(source, names, archive.read, found)
        first = next(arrays, None)
        if first is not None:
            shape = (len(names), *first.shape)
            found.digest = digest_of(shape, itertools.chain([first], arrays), labels)
    if len(found.sizes) > 1:
        found.problems.append("not all images are alike; build the data set anew with --resolution and --transform")
    if any(width != height for width, height, _ in found.sizes):
        found.problems.append("images are not square; build the data set anew with --resolution and --transform")
    if found.problems:
        found.digest = ""
    return found


def _in_words(labels: np.ndarray | None) -> str:
    if labels is None:
        return "none"
    counts = np.bincount(labels)
    return f"{len(counts)} classes of {counts.min()} to {counts.max()} images"


def _origin(labels: np.ndarray | None, files: list[str], images: list[str]) -> str:
    """Where labels come from, or why images in folders have none."""
    if "dataset.json" in files:
        return " (dataset.json has none)" if labels is None else ", by dataset.json"
    if labels is not None:
        classes = classes_of(images)
        return f", by sub-folder: {', '.join(classes[:_SHOWN])}" + (", ..." if len(classes) > _SHOWN else "")
    return " (the sub-folders are no classes)" if any("/" in name for name in images) else ""


def _looked_at(source: Path, names: list[str], read, found: Check) -> Iterator[np.ndarray]:
    """Pixels (c, h, w) of each image that can be read; sizes, duplicates and problems go into `found`."""
    seen: set[bytes] = set()
    for name in names:
        try:
            pixels = np.ascontiguousarray(decode(source, name, read))
        except OnestepError as error:
            found.problems.append(str(error))
            continue
        channels, height, width = pixels.shape
        found.sizes[width, height, channels] += 1
        digest = fingerprint(pixels)
        found.duplicates += digest in seen
        found.tests += is_test(pixels)
        seen.add(digest)
        yield pixels
