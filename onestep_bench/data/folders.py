"""Folders, zips and tars of images as arrays, with the labels of their dataset.json or of their sub-folders."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

import numpy as np

from onestep_bench.data.archives import Archive, decode, describe, image_names, opened
from onestep_bench.data.registry import Arrays
from onestep_bench.data.splits import SPLITS, is_test, rows_of
from onestep_bench.errors import OnestepError
from onestep_bench.store.files import replacing

_CLASSES = 10**6
# Folders of a thousand files each, as NVlabs/edm (00012/img00012345.png) and others (12000/12345.png) write them.
_NUMBERED = re.compile(r"(\d{5,})/(?:img)?(\d{5,})\.\w+")
_MAPPED = 1 << 26  # bytes from which on decoded images are mapped from a file


def read_source(source: Path, split: str) -> Arrays:
    """The images of a split of a folder, zip or tar, and their labels; there may be none.

    Raises OnestepError for what is damaged or unlike.
    """
    with opened(source) as archive:
        files = image_names(source, archive.files)
        images, rows = _read_images(archive, files, split)
        labels = read_labels(archive, files)
        return images, None if labels is None else labels[rows]


def read_labels(archive: Archive, images: list[str]) -> np.ndarray | None:
    """Labels (n,) int64 of the named images, by the archive's dataset.json, else by `classes_of`; None without either.

    Raises OnestepError for a dataset.json that is damaged, or does not give every image one whole number.
    """
    if "dataset.json" not in archive.files:
        numbers = {name: label for label, name in enumerate(classes_of(images))}
        return np.array([numbers[PurePosixPath(file).parts[0]] for file in images], np.int64) if numbers else None
    source = archive.path
    try:
        pairs = json.loads(archive.read("dataset.json"))["labels"]
        if pairs is None:
            return None
        labels = {file: label for file, label in pairs}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise OnestepError(f'{source}: dataset.json is not {{"labels": [[file, int], ...]}}; write it so') from error
    if not all(isinstance(file, str) for file in labels):
        raise OnestepError(f'{source}: dataset.json is not {{"labels": [[file, int], ...]}}; write it so')
    odd = next((file for file, label in labels.items() if type(label) is not int or not 0 <= label < _CLASSES), None)
    if odd is not None:
        told = repr(labels[odd])[:40]
        raise OnestepError(f"{source}: the label of {odd} is {told}; labels are integers from 0, below a million")
    unmatched = sorted(set(images) ^ labels.keys())
    if unmatched or len(pairs) != len(images):
        example = f" ({unmatched[0]} has no partner)" if unmatched else ""
        raise OnestepError(f"{source} has {len(images)} images but {len(pairs)} labels{example}; mend dataset.json")
    return np.array([labels[file] for file in images], np.int64)


def classes_of(images: Iterable[str]) -> list[str]:
    """The sub-folders that are classes, sorted by name, of images named by their paths; empty where there are none.

    They are if every image lies in a sub-folder, and none deeper. A single one is only a wrapping, and folders that are
    numbered by the files in them are no classes either.
    """
    paths = [PurePosixPath(file) for file in images]  # which begins no path with ./, as tars do
    found = sorted({path.parts[0] for path in paths})
    if len(found) < 2 or any(len(path.parts) != 2 for path in paths) or all(map(_is_numbered, paths)):
        return []
    return found


def _is_numbered(path: PurePosixPath) -> bool:
    """Whether the folder of a file tells only its number, in thousands."""
    found = _NUMBERED.fullmatch(str(path))
    if found is None:
        return False
    folder, number = map(int, found.groups())
    return folder in (number // 1000, number - number % 1000)


def _read_images(archive: Archive, files: list[str], split: str) -> tuple[np.ndarray, np.ndarray]:
    """The images of a split in one array (n, c, h, w), in memory if the set is small; and their rows in `files`."""
    first = decode(archive.path, files[0], archive.read)
    height, width = first.shape[1:]
    if height != width:
        raise OnestepError(f"{archive.path}: {files[0]} is {width}x{height}; images must be square, so crop them first")
    if first.size * len(files) >= _MAPPED:
        return _mapped(archive, files, first, split)
    images = np.empty((len(files), *first.shape), np.uint8)
    for index, image in enumerate(_alike(archive, files, first)):
        images[index] = image
    rows = rows_of(map(is_test, images), split)
    return (images if len(rows) == len(images) else images[rows]), rows


def _mapped(archive: Archive, files: list[str], first: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray]:
    """As `_read_images`: decoded once into files, and mapped from there.

    So it needs no memory of its own, starts at once the second time, and is shared by all processes of a machine. Each
    split has its file, named by the content of the archive; a small one beside them says which image is in which.
    """
    folder = Path(os.environ.get("ONESTEP_CACHE") or "~/.cache/onestep_bench/decoded").expanduser()
    file, sides = folder / f"{archive.key}.{split}", folder / f"{archive.key}.sides"
    if not (_has(sides, len(files)) and _has(file, len(_rows_in(sides, split)) * first.size)):
        parts = SPLITS if split in SPLITS else (split,)  # who asks for one side will ask for the other
        with ExitStack() as stack:
            # Written and not mapped: a full disk is then an error and not a crash.
            tests, *outs = (
                stack.enter_context(open(stack.enter_context(replacing(folder / f"{archive.key}.{part}")), "wb"))
                for part in ("sides", *parts)
            )
            for image in _alike(archive, files, first):
                test = is_test(image)
                tests.write(bytes([test]))
                outs[test and len(outs) > 1].write(image.tobytes())
    rows = _rows_in(sides, split)
    if not len(rows):
        return np.empty((0, *first.shape), np.uint8), rows
    # c: nobody writes to it, but torch wants to be able to
    return np.memmap(file, np.uint8, "c", shape=(len(rows), *first.shape)), rows


def _rows_in(sides: Path, split: str) -> np.ndarray:
    return rows_of(np.fromfile(sides, bool), split)


def _has(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def _alike(archive: Archive, files: list[str], first: np.ndarray) -> Iterator[np.ndarray]:
    """All images in turn, each of the shape of the first."""
    for file in files:
        image = decode(archive.path, file, archive.read)
        if image.shape != first.shape:
            raise OnestepError(
                f"{archive.path}: {file} is {describe(image)} but {files[0]} is {describe(first)}; make them all alike"
            )
        yield image
