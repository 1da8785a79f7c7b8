"""Images in folders, zips and tars, as bytes and as pixels, however they came about."""

import gzip
import hashlib
import io
import lzma
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from onestep_bench.errors import OnestepError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
# Larger than any picture or list of labels of a real data set: what is larger is there to fill the memory.
_LARGEST_FILE, _LARGEST_LABELS = 1 << 26, 1 << 28
_LARGEST_IMAGE = 1 << 26  # pixels
_LARGEST_GAIN = 20  # a tar of pictures hardly shrinks when it is compressed
_TARS = (".tar", ".tar.gz", ".tgz")
# What a damaged zip raises: RuntimeError for encrypted entries, NotImplementedError (one of those) for unknown
# compression, ValueError for names that are no text, struct.error for records that end early.
DAMAGE = (OSError, RuntimeError, ValueError, EOFError, struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Archive:
    """An open folder, zip or tar. files: names in it. read: the bytes of one. key: changes when the content does."""

    path: Path
    files: list[str]
    read: Callable[[str], bytes]
    key: str


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Open a folder, a zip, or a tar (also gzipped). Raises OnestepError, also inside the block, for what is damaged.

    Names that point outside are refused, and so are files that unpack to more than a picture can be.
    """
    if path.is_dir():
        yield _folder(path)
        return
    opener, kind = (_tar, "tar") if path.name.lower().endswith(_TARS) else (_zip, "zip")
    try:
        with opener(path) as archive:
            yield archive
    except (*DAMAGE, tarfile.TarError) as error:
        raise OnestepError(f"cannot read {path} as a {kind} ({error}); fetch it again, or give a folder") from error


def _folder(folder: Path) -> Archive:
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    files = [file.relative_to(folder).as_posix() for file in found]
    stats = [file.stat() for file in found]
    identity = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in zip(files, stats, strict=True)]
    return Archive(folder, files, lambda name: (folder / name).read_bytes(), _key(folder.resolve(), identity))


@contextmanager
def _zip(path: Path) -> Iterator[Archive]:
    with zipfile.ZipFile(path) as archive:
        # Not is_dir(), which fails on a name of nothing.
        entries = [info for info in archive.infolist() if not info.filename.endswith("/")]
        names = [info.filename for info in entries]
        _check_names(path, names)

        def read(name: str) -> bytes:
            with archive.open(name) as file:
                return _limited(path, name, file)

        yield Archive(path, names, read, _key("zip", [(info.filename, info.CRC, info.file_size) for info in entries]))


@contextmanager
def tar_at(path: Path) -> Iterator[tarfile.TarFile]:
    """An open tar, also gzipped; then it was read to its end, where its check sum stands."""
    with open(path, "rb") as raw, tempfile.TemporaryFile() as plain:
        packed = raw.read(2) == b"\x1f\x8b"
        if packed:  # unpacked once, since a gzipped tar can only be read from front to back
            _gunzip(path, plain)
        stream = plain if packed else raw
        stream.seek(0)
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            yield archive


@contextmanager
def _tar(path: Path) -> Iterator[Archive]:
    with tar_at(path) as archive:
        entries = {info.name: info for info in archive if info.isreg()}
        _check_names(path, entries)

        def read(name: str) -> bytes:
            return _limited(path, name, archive.extractfile(entries[name]))

        stat = path.stat()
        yield Archive(path, list(entries), read, _key(path.resolve(), [stat.st_size, stat.st_mtime_ns]))


def _gunzip(path: Path, plain) -> None:
    limit = _LARGEST_GAIN * path.stat().st_size + _LARGEST_FILE
    with gzip.open(path) as packed:
        shutil.copyfileobj(_Limited(packed, limit, path), plain, 1 << 20)


@dataclass
class _Limited:
    """A stream that refuses to give more than `left` bytes."""

    stream: io.BufferedIOBase
    left: int
    path: Path

    def read(self, size: int) -> bytes:
        content = self.stream.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise OnestepError(f"{self.path} unpacks to more than {_LARGEST_GAIN} times its size; do not use this file")
        return content


def _limited(path: Path, name: str, file) -> bytes:
    limit = _LARGEST_LABELS if name.endswith("dataset.json") else _LARGEST_FILE
    content = file.read(limit + 1)
    if len(content) > limit:
        raise OnestepError(f"{path}: {name} unpacks to more than {limit >> 20} MiB; do not use this file")
    return content


def _check_names(path: Path, names: Iterable[str]) -> None:
    for name in names:
        if not name or name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
            kind = "tar" if path.name.lower().endswith(_TARS) else "zip"
            raise OnestepError(f"{path}: entry {name!r} points outside the {kind}; do not use this file")


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def image_names(source: Path, files: Iterable[str]) -> list[str]:
    """Those of a source's files that are images by their name, sorted. Raises OnestepError if there are none."""
    # Names that begin with a dot are what file managers and archivers leave behind (._image.png).
    visible = sorted(f for f in files if not any(part.startswith(".") for part in PurePosixPath(f).parts))
    images = [f for f in visible if f.lower().endswith(_SUFFIXES)]
    if not images:
        raise OnestepError(f"{source} holds no images ({', '.join(_SUFFIXES)}); choose another folder or zip")
    return images


def describe(image: np.ndarray) -> str:
    """Size and kind of an image (c, h, w), in words."""
    channels, height, width = image.shape
    return f"{width}x{height} {'grey' if channels == 1 else 'colour'}"


def decode(source: Path, file: str, read: Callable[[str], bytes]) -> np.ndarray:
    """uint8 (c, h, w) of one image file. Raises OnestepError for a damaged one and for modes but grey and RGB."""
    image = picture(source, file, read)
    if image.mode not in ("L", "RGB"):
        raise OnestepError(f"{source}: {file} has mode {image.mode}; convert it to grey (L) or RGB")
    pixels = np.asarray(image)
    return pixels[None] if image.mode == "L" else pixels.transpose(2, 0, 1)


def picture(source: Path, file: str, read: Callable[[str], bytes]) -> Image.Image:
    """One image file, decoded, in whatever mode it has. Raises OnestepError for one that is damaged or enormous."""
    try:
        with Image.open(io.BytesIO(read(file)), formats=_FORMATS) as image:
            if image.width * image.height > _LARGEST_IMAGE:
                raise OnestepError(f"{source}: {file} is {image.width}x{image.height}, too large to be a picture")
            image.load()
            return image
    # Pillow reports damage in all these ways.
    except (*DAMAGE, SyntaxError, TypeError, LookupError, OverflowError, Image.DecompressionBombError) as error:
        reason = "not in a known format" if isinstance(error, UnidentifiedImageError) else error
        raise OnestepError(f"{source}: cannot read image {file} ({reason}); replace or remove it") from error
