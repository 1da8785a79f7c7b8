"""CIFAR-10 as its author packs it (Krizhevsky 2009): five training batches and one to test with.

They are pickles of Python 2 or plain bytes.
"""

import lzma
import tarfile
import tempfile
import zlib
from pathlib import Path

import numpy as np

from onestep_bench.data import pickles
from onestep_bench.errors import OnestepError
from onestep_bench.store.files import replacing

# Folder in the archive -> the batches of each split. The order of the images is the same in both.
LAYOUTS = {
    f"cifar-10-batches-{kind}": {
        "train": tuple(f"data_batch_{i}{ending}" for i in range(1, 6)),
        "test": (f"test_batch{ending}",),
    }
    for kind, ending in (("py", ""), ("bin", ".bin"))
}
_RECORD = 1 + 3 * 32 * 32  # a label and the three planes of an image
_LARGEST_BATCH = 1 << 26

_DAMAGE = (OSError, EOFError, ValueError, OverflowError, tarfile.TarError, zlib.error, lzma.LZMAError)

Arrays = tuple[np.ndarray, np.ndarray]


def read_folder(folder: Path, split: str = "train") -> Arrays:
    """Images (n, 3, 32, 32) uint8 and labels (n,) of an unpacked folder named as in `LAYOUTS`.

    split: 'train', of 50,000 images, or 'test', of 10,000.
    """
    read = _read_pickle if folder.name == "cifar-10-batches-py" else _read_binary
    images, labels = zip(*(read(folder / name) for name in LAYOUTS[folder.name][split]), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def folder_in(root: Path, split: str = "train") -> Path | None:
    """The folder of `LAYOUTS` that lies in `root` with all batches of a split, or None."""
    folders = (root / name for name in LAYOUTS)
    return next((it for it in folders if all((it / batch).exists() for batch in LAYOUTS[it.name][split])), None)


def unpack(archive: Path, root: Path, split: str = "train") -> Path:
    """Unpack the batches of a split from an archive (gzipped tar), and nothing else, into their folder in `root`.

    Raises OnestepError for an archive that is damaged or holds neither layout whole.
    """
    try:
        with tarfile.open(archive, "r:*") as tar:
            names = {member.name: member for member in tar}
            folder = next((folder for folder in LAYOUTS if any(name.startswith(f"{folder}/") for name in names)), None)
            if folder is None:
                raise KeyError("no batches of CIFAR-10")
            for name in LAYOUTS[folder][split]:
                member = names[f"{folder}/{name}"]
                if not member.isreg():  # a link may lead round in a circle
                    raise KeyError(f"{name} is no file")
                content = tar.extractfile(member).read(_LARGEST_BATCH)
                with replacing(root / folder / name) as temporary:
                    temporary.write_bytes(content)
    except (*_DAMAGE, KeyError) as error:
        raise OnestepError(f"{archive} is damaged ({error}); delete it and load again") from error
    return root / folder


def is_archive(path: Path) -> bool:
    """Whether a file is a tar whose first entry is of CIFAR-10."""
    try:
        with tarfile.open(path, "r:*") as tar:
            first = tar.next()
            return first is not None and first.name.split("/")[0] in LAYOUTS
    except _DAMAGE:
        return False


def read_archive(archive: Path) -> Arrays:
    """As `read_folder`, the training images of an archive, leaving nothing behind."""
    with tempfile.TemporaryDirectory() as root:
        return read_folder(unpack(archive, Path(root)))


def _read_pickle(path: Path) -> Arrays:
    batch = pickles.read(path)
    try:
        images, labels = np.asarray(batch["data"]).reshape(-1, 3, 32, 32), np.asarray(batch["labels"])
        if images.dtype != np.uint8 or labels.shape != images.shape[:1] or labels.dtype.kind != "i":
            raise ValueError("not a CIFAR-10 batch")
        if labels.size and not 0 <= labels.min() <= labels.max() <= 9:
            raise ValueError("a label is none of ten")
    except (LookupError, TypeError, ValueError) as error:
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
