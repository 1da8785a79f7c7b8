"""How long cells take, and so in which order they begin: those on the longest way to the end first."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import mean

from onestep_bench.grid.cells import Cell, Status, executed_path, read_stamp


def expected(statuses: Sequence[Status], folder: Path | None = None) -> dict[str, float]:
    """Seconds that each cell can be expected to take, by id; those of which nothing is known are left out.

    By what is known best: what the cell itself took in an earlier run (of other code perhaps; looked up if `folder`, of
    the executed notebooks, is given), the mean of its stage's cells that are done, what its author expects (`takes`) at
    the pace of this machine, the mean of all that are done.
    """
    took: dict[str, list[float]] = defaultdict(list)
    for status in statuses:
        if status.state == "done":
            took[status.cell.stage].append(status.seconds)
    everything = [seconds for stage in took.values() for seconds in stage]
    # Authors have other machines.
    foreseen = [
        (status.seconds, status.cell.takes) for status in statuses if status.state == "done" and status.cell.takes
    ]
    pace = sum(seconds for seconds, _ in foreseen) / sum(takes for _, takes in foreseen) if foreseen else 1.0
    found = {}
    for cell in (status.cell for status in statuses):
        seconds = folder and _earlier(cell, folder)
        if not seconds and cell.stage in took:
            seconds = mean(took[cell.stage])
        if not seconds and cell.takes:
            seconds = cell.takes * pace
        if not seconds and everything:
            seconds = mean(everything)
        if seconds:
            found[cell.id] = seconds
    return found


def _earlier(cell: Cell, folder: Path) -> float | None:
    path = executed_path(cell, folder)
    return read_stamp(path).get("seconds") if path.exists() else None


def urgency(cells: Iterable[Cell], seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds from the beginning of each cell to the end of the last that waits for it, by id.

    A cell of which nothing is known counts as the mean of the others.
    """
    cells = {cell.id: cell for cell in cells}
    usual = mean(seconds.values()) if seconds else 1.0
    found: dict[str, float] = {}
    order = TopologicalSorter({cell.id: [need for need in cell.needs if need in cells] for cell in cells.values()})
    behind: dict[str, float] = defaultdict(float)
    for name in reversed(list(order.static_order())):
        found[name] = seconds.get(name, usual) + behind[name]
        for need in cells[name].needs:
            behind[need] = max(behind[need], found[name])
    return found
