"""A grid as it is planned: its cells, and what is known of each from the files of earlier runs."""

from dataclasses import dataclass
from pathlib import Path

from onestep_bench.grid.parameters import read_notebook

STAMP = "onestep_bench"  # key of our entry in an executed notebook's metadata
RUNNING = "running.json"  # in a cell's scratch folder: where and since when it runs


@dataclass(frozen=True)
class Cell:
    """One notebook with one set of parameters.

    parameters: what papermill injects. needs: ids of the cells that must be done before.
    digest: hash of the notebook's code, all its parameters (defaults included) and the package's version; an executed
    notebook counts as this cell's result only if it carries the same one.
    gpus: devices, hence processes, that it runs on. limit: seconds after which it counts as hung, memory: bytes that
    its processes may use together, each None for no bound. takes: seconds that its author expects, or None; cells on
    the longest way to the end begin first. How a cell runs is no part of its digest.
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


@dataclass(frozen=True)
class Grid:
    """The cells of one YAML file, in an order that respects their needs."""

    name: str
    title: str
    path: Path
    out: Path
    cells: tuple[Cell, ...]

    @property
    def executed(self) -> Path:
        """The folder of executed notebooks."""
        return self.out / "notebooks"


@dataclass(frozen=True)
class Status:
    """Where a cell stands: 'to do', 'running', 'done', 'failed' or 'skipped'; `why` is one line about the last two.

    Of one that runs, `why` says how far inside itself it is, if it tells. seconds: how long it took, or has been
    running. mistake: whether it failed by what its user asked for, so that another try would end the same.
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
    """'done', 'failed' or 'to do', read from the executed notebooks in `folder`.

    A notebook of older code or other parameters carries another digest and does not count.
    """
    for state, path in (("done", executed_path(cell, folder)), ("failed", failed_path(cell, folder))):
        stamp = read_stamp(path) if path.exists() else {}
        if stamp.get("digest") == cell.digest:
            return Status(cell, state, stamp["seconds"], stamp["why"])
    return Status(cell, "to do")


def scratch_path(cell: Cell, folder: Path) -> Path:
    """The folder, beside that of executed notebooks, where a running cell keeps what is not whole yet."""
    return folder.parent / ".cells" / cell.id


def read_stamp(path: Path) -> dict:
    """What the engine wrote into an executed notebook's metadata; empty for any other notebook."""
    return read_notebook(path)["metadata"].get(STAMP, {})
