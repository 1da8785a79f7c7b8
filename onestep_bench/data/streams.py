"""Images from anywhere, as a stream: a folder, a zip, a tar, an npz. They are decoded as they are asked for."""

import os
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from onestep_bench.data.archives import decode, describe, image_names, opened
from onestep_bench.data.arrays import read_npz
from onestep_bench.errors import OnestepError

_BATCH = 64


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
    """The images of a folder (at any depth), of a zip or tar, or of an npz (`arr_0` or `images`, uint8 (n, h, w[, c])).

    Raises OnestepError where there are none, for a damaged file, and, when it is their turn, for images of mixed sizes.
    """
    path = Path(path).expanduser()
    if path.suffix == ".npz" and os.path.isfile(path):
        return _from_npz(path)
    if not os.path.exists(path):
        raise OnestepError(f"no file or folder {path}; give a checkpoint, or a folder, zip, tar or npz of images")
    with opened(path) as archive:
        names = image_names(path, archive.files)
        first = decode(path, names[0], archive.read)

    def batches() -> Iterator[torch.Tensor]:
        with opened(path) as archive, ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(names), _BATCH):
                # Read one after another, since an archive is one stream; decoded side by side.
                chunk = names[start : start + _BATCH]
                contents = {name: archive.read(name) for name in chunk}
                images = list(pool.map(partial(decode, path, read=contents.__getitem__), chunk))
                for name, image in zip(chunk, images, strict=True):
                    if image.shape != first.shape:
                        raise OnestepError(
                            f"{path}: {name} is {describe(image)} but {names[0]} is {describe(first)}; make them alike"
                        )
                yield torch.from_numpy(np.stack(images))

    return Images(path.resolve().name, len(names), first.shape, lambda: ahead(batches()))


def ahead(items: Generator) -> Iterator:
    """The same items, each made in a thread while the one before it is in use.

    What making one raises is raised here, in its turn. The generator is closed, and its thread ended, with this one.
    """
    with closing(items), ThreadPoolExecutor(1) as thread:
        end = object()
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item


def _from_npz(path: Path) -> Images:
    arrays = read_npz(path)
    key = next((key for key in ("arr_0", "images") if key in arrays), None)
    if key is None:
        raise OnestepError(f"{path} has no array arr_0 or images, only {', '.join(arrays)}; name it so")
    array = arrays[key]
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
