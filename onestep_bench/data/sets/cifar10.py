"""CIFAR-10 in either of its author's archives."""

from pathlib import Path

from onestep_bench.data import cifar
from onestep_bench.data.registry import Arrays, dataset
from onestep_bench.store.downloads import fetch


@dataset("cifar10")
def _cifar10(root: Path, split: str) -> Arrays:
    """50,000 colour 32x32 pictures in ten classes (Krizhevsky), and 10,000 to test with."""
    folder = cifar.folder_in(root, split)
    if folder is None:
        binary, archive = (root / f"cifar-10-{kind}.tar.gz" for kind in ("binary", "python"))
        if binary.exists() and not archive.exists():
            archive, md5 = binary, "c32a1d4ab5d03f1284b67883e8d87530"
        else:
            md5 = "c58f30108f718f92721af3b95e74349a"
        fetch(archive, [f"https://www.cs.toronto.edu/~kriz/{archive.name}"], md5)
        folder = cifar.unpack(archive, root, split)
    return cifar.read_folder(folder, split)
