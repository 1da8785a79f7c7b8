"""Files that cells want and nobody trains: data sets, released models, reference statistics, weights of judges.

Looked for where the laboratory looks for them, but without it: a plan imports no torch.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlparse

from onestep_bench.grid.cells import Cell, Grid
from onestep_bench.known.catalogue import known

# Weights of judges, under their folder; `scoring.judges` has their addresses.
JUDGES = {
    "inception": "inception-2015-12-05.pt",
    "inception-legacy": "inception-2015-12-05.pt",
    "clip": "ViT-B-32.pt",
    "dinov2": "dinov2_vitl14_pretrain.pth",
}
LPIPS = "vgg16-397923af.pth"  # torchvision's VGG-16
# Either of a set's archives, or what was unpacked from it.
_SETS = {
    "cifar10": (
        "cifar-10-batches-py",
        "cifar-10-batches-bin",
        "cifar-10-python.tar.gz",
        "cifar-10-binary.tar.gz",
    )
}
_EXTRAS = {"timm": "critics", "lpips": "lpips", "clip": "clip"}
_ENDINGS = (".zip", ".tar", ".tgz", ".tar.gz", ".npz", ".pkl", ".pth", ".pt")


@dataclass(frozen=True)
class Needed:
    """A file. places: where it is looked for, the first that is there counts. fetched: whether it is downloaded."""

    what: str
    name: str
    places: tuple[Path, ...]
    fetched: bool

    @property
    def there(self) -> bool:
        """Whether it lies in one of its places; what has none is never there."""
        return any(map(_found, self.places))


def _found(place: Path) -> bool:
    """A place may be a pattern, in its last part."""
    return any(place.parent.glob(place.name)) if "*" in place.name else os.path.exists(place)


def data_folder() -> Path:
    """Where data sets are: ONESTEP_DATA, else ~/.cache/onestep_bench/data."""
    return Path(os.environ.get("ONESTEP_DATA") or "~/.cache/onestep_bench/data").expanduser()


def _weights_folder() -> Path:
    return Path(os.environ.get("ONESTEP_WEIGHTS") or "~/.cache/onestep_bench/weights").expanduser()


def _hub_folder() -> Path:
    """torch.hub.get_dir()."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TORCH_HOME") or f"{cache}/torch").expanduser() / "hub"


def _timm_folder() -> Path:
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()


def awaited(name: str, value: object, folder: Path) -> bool:
    """Whether a parameter names a file that is not there yet, which a plan tells of and does not refuse.

    What has neither a slash nor the ending of such files is a name, and a wrong one is a mistake.
    """
    if name not in ("dataset", "teacher", "reference") or not isinstance(value, str) or value.startswith("https://"):
        return False
    return bool(value) and value.endswith(_ENDINGS) and not any(map(_found, _places(value, folder)))


def _places(value: str, folder: Path) -> tuple[Path, ...]:
    """Of a path: itself, from where the notebook starts, or in the data folder."""
    return folder / Path(value).expanduser(), data_folder() / value


def needed(grid: Grid, cells: Iterable[Cell]) -> list[Needed]:
    """Each file that these cells of a grid want, once."""
    values = ((grid.stages[cell.stage].declared | cell.parameters, cell.notebook.parent) for cell in cells)
    return list(dict.fromkeys(one for given, folder in values for one in _of_cell(given, folder)))


def _of_cell(values: dict, folder: Path) -> list[Needed]:
    judges = [name for name in values.get("features") or () if name in JUDGES]
    asked = [*_data_set(values.get("dataset"), folder), *_model(values.get("teacher"), folder)]
    asked += _reference(values.get("reference"), folder)
    asked += [Needed("weights of the judge", name, (_weights_folder() / JUDGES[name],), True) for name in judges]
    if "dinov2" in judges:
        asked.append(Needed("code of the judge", "dinov2", (_hub_folder() / "facebookresearch_dinov2_*",), True))
    words = set(_words(values))
    perceptual = values.get("lpips") is True or any("lpips" in word for word in words)
    if perceptual:
        asked.append(Needed("weights of LPIPS", LPIPS, (_hub_folder() / "checkpoints" / LPIPS,), True))
    backbones = sorted({name for word in words for name in re.findall(r"timm:([^+]+)", word)})
    asked += [Needed("critic", name, (_timm_folder() / f"models--timm--{name}.*",), True) for name in backbones]
    packages = ["timm"] * bool(backbones) + ["lpips"] * perceptual + ["clip"] * ("clip" in judges)
    return asked + [
        Needed("package", f"{name} (pip install 'onestep-bench[{_EXTRAS[name]}]')", (), False)
        for name in packages
        if find_spec(name) is None
    ]


def _words(value: object) -> Iterable[str]:
    """All texts in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _words(one)


def _data_set(name: object, folder: Path) -> list[Needed]:
    if not isinstance(name, str) or not name:
        return []
    if name in known("datasets"):
        files = _SETS.get(name, ())
        return [Needed("data set", name, tuple(data_folder() / file for file in files), True)] if files else []
    return [Needed("data set", name, _places(name, folder), False)]


def _model(name: object, folder: Path) -> list[Needed]:
    if not isinstance(name, str) or name in known("methods"):
        return []
    if name in known("zoo") or name.startswith("https://"):
        file = f"{name}.pkl" if name in known("zoo") else Path(urlparse(name).path).name
        return [Needed("teacher", name, (data_folder() / "models" / file,), True)]
    path = folder / Path(name).expanduser()
    return [Needed("teacher", name, (path,), False)] if name.endswith(_ENDINGS) or "/" in name else []


def _reference(name: object, folder: Path) -> list[Needed]:
    if not isinstance(name, str) or not name:
        return []
    if name.startswith("https://"):
        return [Needed("reference", name, (data_folder() / "references" / Path(urlparse(name).path).name,), True)]
    return [Needed("reference", name, _places(name, folder), False)]


def missing(found: Sequence[Needed]) -> list[Needed]:
    """Those that are not there."""
    return [one for one in found if not one.there]
