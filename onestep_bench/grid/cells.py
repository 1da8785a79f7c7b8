"""A grid as it is planned: its cells, and what is known of each from the files of earlier runs."""

import math
import os
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from onestep_bench.errors import OnestepError
from onestep_bench.grid.cost import Passes, Rate
from onestep_bench.grid.parameters import read_notebook
from onestep_bench.store.artifacts import META, Artifact
from onestep_bench.store.files import same_data

STAMP = "onestep_bench"  # key of our entry in an executed notebook's metadata
_STAMPED = {"digest": str, "why": str, "seconds": int | float, "parameters": dict, "used": list}
_ARTIFACT = {"artifact": str, "content": str}
_DATA = {"data": str, "sha256": str, "size": int, "mtime": int}
RUNNING = "running.json"  # in a cell's scratch folder: where and since when it runs


@dataclass(frozen=True)
class Cell:
    """One notebook with one set of parameters.

    parameters: what papermill injects. needs: ids of the cells that must be done before.
    digest: hash of the notebook's code without comments, of the parameters that it uses (defaults included) as they
    end up, and of the package's version; an executed notebook that carries another one is outdated.
    gpus: devices, hence processes, that it runs on. limit: seconds after which it counts as hung, memory: bytes that
    its processes may use together, each None for no bound. takes: seconds that its author expects, or None; cells on
    the longest way to the end begin first. fresh: artifacts that other source made are made again for it. How a cell
    runs is no part of its digest.
    """

    stage: str
    notebook: Path
    parameters: dict
    needs: tuple[str, ...]
    id: str
    digest: str
    gpus: int = 1
    limit: float | None = None
    memory: int | None = None
    takes: float | None = None
    fresh: bool = False


@dataclass(frozen=True)
class Stage:
    """What a plan says of a stage's cells together. declared: the defaults of their notebook.

    published: figures they are to meet, each {fid, at, source}.
    """

    declared: dict
    passes: Passes
    published: tuple[dict, ...] = ()


@dataclass(frozen=True)
class Grid:
    """The cells of one YAML file, in an order that respects their needs.

    stages: by name, in that order. rate: what its costs are told by.
    """

    name: str
    title: str
    path: Path
    out: Path
    cells: tuple[Cell, ...]
    stages: dict[str, Stage] = field(default_factory=dict)
    rate: Rate | None = None

    @property
    def executed(self) -> Path:
        """The folder of executed notebooks."""
        return self.out / "notebooks"


@dataclass(frozen=True)
class Status:
    """Where a cell stands: 'to do', 'running', 'done', 'outdated', 'failed' or 'skipped'.

    why: one line about the last three; of one that runs, how far inside itself it is, if it tells. seconds: how long it
    took, or has been running. mistake: whether it failed by what its user asked for, so that another try would end the
    same.
    """

    cell: Cell
    state: str
    seconds: float = 0.0
    why: str = ""
    mistake: bool = False


def executed_path(cell: Cell, folder: Path) -> Path:
    """Where the executed notebook of a finished cell lies."""
    return folder / f"{cell.id}.ipynb"


def failed_path(cell: Cell, folder: Path) -> Path:
    """Where the notebook of a failed cell is kept."""
    return folder / f"{cell.id}.failed.ipynb"


def status_of(cell: Cell, folder: Path) -> Status:
    """'done', 'outdated', 'failed' or 'to do', read from the executed notebooks in `folder`.

    Outdated: it was executed, but of other code or with other parameters than now; or it used artifacts that other
    source made, or that were made again since; or its data are gone or have other content.
    """
    done, failed = (
        read_stamp(path) if path.exists() else {} for path in (executed_path(cell, folder), failed_path(cell, folder))
    )
    why = _moved_on(cell, done) if done else ""
    if done and not why:
        return Status(cell, "done", done["seconds"], done["why"])
    if failed.get("digest") == cell.digest:
        return Status(cell, "failed", failed["seconds"], failed["why"])
    return Status(cell, "outdated", done["seconds"], why) if done else Status(cell, "to do")


def _moved_on(cell: Cell, stamp: dict) -> str:
    """Why an executed notebook is not what a run would make now; '' if it is."""
    if stamp["digest"] != cell.digest:
        same = stamp.get("parameters", cell.parameters) == cell.parameters
        return f"the code of {cell.notebook.name} changed since" if same else "its parameters changed since"
    reasons = (
        _artifact_moved_on(used) if "artifact" in used else _data_moved_on(used) for used in stamp.get("used", ())
    )
    return next(filter(None, reasons), "")


def _artifact_moved_on(used: dict) -> str:
    folder = Path(used["artifact"])
    try:
        content, why = _artifact_now(folder, (folder / META).stat().st_mtime_ns, int(time.monotonic()))
    except (OSError, OnestepError):  # the notebook is the record, also where the store was cleared
        return ""
    if content != used["content"]:
        return f"{folder.name} was made again since"
    return f"{folder.name}: {why}" if why else ""


@lru_cache(10_000)
def _artifact_now(folder: Path, written: int, second: int) -> tuple[str, str]:
    """Its content, and why it is outdated: looked up once a second, as a thousand cells may use one teacher."""
    artifact = Artifact(folder)
    return artifact.content, artifact.outdated()


def _data_moved_on(used: dict) -> str:
    path = Path(used["data"])
    if not os.path.exists(path):  # unlike Path's, of any name
        return f"its data {path} are gone"
    return "" if same_data(path, used) else f"its data {path} have other content"


def scratch_path(cell: Cell, folder: Path) -> Path:
    """The folder, beside that of executed notebooks, where a running cell keeps what is not whole yet."""
    return folder.parent / ".cells" / cell.id


def read_stamp(path: Path) -> dict:
    """What the engine wrote into an executed notebook's metadata; empty for any other notebook.

    Raises OnestepError for what it would not write.
    """
    stamp = read_notebook(path)["metadata"].get(STAMP, {})
    if stamp != {} and not _is_stamp(stamp):
        raise OnestepError(f"{path} has a stamp that no run wrote; delete it and run the grid again")
    return stamp


def _is_stamp(found: object) -> bool:
    told = isinstance(found, dict) and {"parameters": {}, "used": []} | found  # which older ones lack
    if not told or not _has(told, _STAMPED) or not 0 <= told["seconds"] < math.inf:  # NaN is not either
        return False
    return all(_has(used, _ARTIFACT) or _has(used, _DATA) for used in told["used"])


def _has(found: object, kinds: dict[str, type]) -> bool:
    return isinstance(found, dict) and all(
        isinstance(found.get(name), kind) and not isinstance(found[name], bool) for name, kind in kinds.items()
    )
