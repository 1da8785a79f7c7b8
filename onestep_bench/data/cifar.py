"""CIFAR-10 as its author packs it (Krizhevsky 2009): five training batches, pickles of Python 2 or plain bytes."""

import tarfile
import tempfile
import zlib
from pathlib import Path

import numpy as np

from onestep_bench.data import pickles
from onestep_bench.errors import OnestepError
from onestep_bench.store.files import replacing

# Folder in the archive -> its five batches. The order of the images is the same in both.
LAYOUTS = {
    "cifar-10-batches-py": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "cifar-10-batches-bin": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
}
_RECORD = 1 + 3 * 32 * 32  # a label and the three planes of an image
_LARGEST_BATCH = 1 << 26

Arrays = tuple[np.ndarray, np.ndarray]


def read_folder(folder: Path) -> Arrays:
    """Training images (50000, 3, 32, 32) uint8 and labels (50000,) of an unpacked folder, named as in `LAYOUTS`."""
    read = _read_pickle if folder.name == "cifar-10-batches-py" else _read_binary
    images, labels = zip(*(read(folder / name) for name in LAYOUTS[folder.name]), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def folder_in(root: Path) -> Path | None:
    """The folder of `LAYOUTS` that lies in `root` with all its batches, or None."""
    whole = (root / name for name, batches in LAYOUTS.items() if all((root / name / b).exists() for b in batches))
    return next(whole, None)


def unpack(archive: Path, root: Path) -> Path:
    """Unpack the batches of an archive (gzipped tar), and nothing else, into their folder in `root`.

    Raises OnestepError for an archive that is damaged or holds neither layout whole.
    """
    try:
        with tarfile.open(archive, "r:*") as tar:
            names = {member.name: member for member in tar}
            folder = next((folder for folder in LAYOUTS if any(name.startswith(f"{folder}/") for name in names)), None)
            if folder is None:
                raise KeyError("no batches of CIFAR-10")
            for name in LAYOUTS[folder]:
                content = tar.extractfile(names[f"{folder}/{name}"]).read(_LARGEST_BATCH)
                with replacing(root / folder / name) as temporary:
                    temporary.write_bytes(content)
    except (tarfile.TarError, KeyError, AttributeError, EOFError, zlib.error) as error:
        raise OnestepError(f"{archive} is damaged ({error}); delete it and load again") from error
    return root / folder


def is_archive(path: Path) -> bool:
    """Whether a file is a tar whose first entry is of CIFAR-10."""
    try:
        with tarfile.open(path, "r:*") as tar:
            first = tar.next()
            return first is not None and first.name.split("/")[0] in LAYOUTS
    except (OSError, EOFError, tarfile.TarError, zlib.error):
        return False


def read_archive(archive: Path) -> Arrays:
    """As `read_folder`, of an archive, leaving nothing behind."""
    with tempfile.TemporaryDirectory() as root:
        return read_folder(unpack(archive, Path(root)))


def _read_pickle(path: Path) -> Arrays:
    batch = pickles.read(path)
    try:
        images, labels = np.asarray(batch["data"]).reshape(-1, 3, 32, 32), np.asarray(batch["labels"])
        if images.dtype != np.uint8 or labels.shape != images.shape[:1] or labels.dtype.kind != "i":
            raise ValueError("not a CIFAR-10 batch")
    except (KeyError, TypeError, ValueError) as error:
        raise OnestepError(f"{path} is damaged ({error}); delete it and load again to fetch a good copy") from error
    return images, labels


def _read_binary(path: Path) -> Arrays:
    content = np.fromfile(path, np.uint8)
    if not len(content) or len(content) % _RECORD:
        raise OnestepError(f"{path} is damaged ({len(content)} bytes are no whole images); fetch it again")
    records = content.reshape(-1, _RECORD)
    if records[:, 0].max() > 9:
        raise OnestepError(f"{path} is damaged (a label is {records[:, 0].max()}); fetch it again")
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)
