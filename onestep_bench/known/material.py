"""A data set that a parameter names: where it is, and what it cannot give, as far as can be told without decoding."""

import os
from functools import cache
from pathlib import Path

from onestep_bench.errors import OnestepError
from onestep_bench.known.catalogue import known


def data_path(name: str, folder: Path) -> Path | None:
    """The file or folder of a data set that is no registered name: where `data.load` would find it."""
    root = Path(os.environ.get("ONESTEP_DATA") or "~/.cache/onestep_bench/data").expanduser()
    paths = (folder / Path(name).expanduser(), root / name)
    return next((path for path in paths if name and os.path.exists(path)), None)


def check_data(everything: dict, folder: Path, where: str) -> None:
    """Refuse what the data set cannot give, where that can be told without decoding it."""
    dataset, features = everything.get("dataset"), everything.get("features")
    if not isinstance(dataset, str):
        return
    judges = features if isinstance(features, list) else [features]
    side = known("datasets")[dataset].side if dataset in known("datasets") else None
    if "digits" in judges and side not in (None, 8):
        raise OnestepError(
            f"{where}'features' must be auto or another judge: {dataset} has {side}x{side}, and digits 8x8"
        )
    asking = ["features: classifier"] * ("classifier" in judges) + ["conditional: True"] * (
        everything.get("conditional") is True
    )
    if asking and _unlabelled(dataset, folder):
        raise OnestepError(f"{where}{asking[0]!r} needs labels, and {dataset} has none; give it a dataset.json")


def _unlabelled(dataset: str, folder: Path) -> bool:
    """Whether a data set certainly has no labels: a zip or folder of images without dataset.json and sub-folders."""
    path = None if dataset in known("datasets") else data_path(dataset, folder)
    if path is None or (path.is_file() and path.suffix != ".zip"):
        return False
    return not _labels_in(path, path.stat().st_mtime_ns)


@cache
def _labels_in(path: Path, changed: int) -> bool:
    import zipfile  # here, because few plans need it

    try:
        if path.is_dir():
            return (path / "dataset.json").exists() or any(entry.is_dir() for entry in path.iterdir())
        with zipfile.ZipFile(path) as archive:
            return any(name == "dataset.json" or "/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return True  # whoever reads it will say what is wrong with it
