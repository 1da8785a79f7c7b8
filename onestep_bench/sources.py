"""Images from anywhere, as a stream: a folder, a zip, an npz. They are decoded as they are asked for."""

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from onestep_bench.data import decode, describe, image_names
from onestep_bench.errors import OnestepError

_BATCH = 256


@dataclass(frozen=True)
class Images:
    """A set of images. shape: (c, h, w) of each. batches: called anew, yields them all, uint8 (n, c, h, w)."""

    name: str
    count: int
    shape: tuple[int, int, int]
    batches: Callable[[], Iterator[torch.Tensor]]

    def __len__(self) -> int:
        return self.count


def images_at(path: Path | str) -> Images:
    """The images of a folder (at any depth), of a zip, or of an npz (`arr_0` or `images`, uint8 (n, h, w[, c])).

    Raises OnestepError where there are none, for a damaged file, and, when it is their turn, for images of mixed sizes.
    """
    path = Path(path).expanduser()
    if path.suffix == ".npz" and path.is_file():
        return _from_npz(path)
    if not path.exists():
        raise OnestepError(f"no file or folder {path}; give a checkpoint, or a folder, zip or npz of images")
    opener = _folder if path.is_dir() else _zip
    with opener(path) as (files, read):
        names = image_names(path, files)
        first = decode(path, names[0], read)

    def batches() -> Iterator[torch.Tensor]:
        with opener(path) as (_, read), ThreadPoolExecutor(os.cpu_count()) as pool:

            def one(name: str) -> np.ndarray:
                image = decode(path, name, read)
                if image.shape != first.shape:
                    raise OnestepError(
                        f"{path}: {name} is {describe(image)} but {names[0]} is {describe(first)}; make them alike"
                    )
                return image

            for start in range(0, len(names), _BATCH):
                yield torch.from_numpy(np.stack(list(pool.map(one, names[start : start + _BATCH]))))

    return Images(path.resolve().name, len(names), first.shape, batches)


@contextmanager
def _folder(path: Path):
    files = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    yield files, lambda name: (path / name).read_bytes()


@contextmanager
def _zip(path: Path):
    try:
        with zipfile.ZipFile(path) as archive:
            yield [info.filename for info in archive.infolist() if not info.is_dir()], archive.read
    except (OSError, zipfile.BadZipFile) as error:
        raise OnestepError(f"cannot read {path} as a zip ({error}); give a folder, zip or npz of images") from error


def _from_npz(path: Path) -> Images:
    try:
        with np.load(path, allow_pickle=False) as file:
            key = next((key for key in ("arr_0", "images") if key in file.files), None)
            if key is None:
                raise OnestepError(f"{path} has no array arr_0 or images, only {', '.join(file.files)}; name it so")
            array = file[key]
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise OnestepError(f"cannot read {path} ({error}); write it again with numpy.savez") from error
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise OnestepError(f"{path}: its images hold NaN or infinity; find out what made them")
    if array.ndim == 3:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] not in (1, 3):
        raise OnestepError(
            f"{path}: {key} is {array.dtype} {array.shape}; images are uint8 (n, height, width, 1 or 3 channels)"
        )
    if not len(array):
        raise OnestepError(f"{path} holds no images; write some into it")
    images = torch.from_numpy(array).permute(0, 3, 1, 2)
    return Images(path.stem, len(images), tuple(images.shape[1:]), lambda: iter(images.split(_BATCH)))
