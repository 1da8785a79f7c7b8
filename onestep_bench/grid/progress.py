"""How far a grid is, read from its files alone: from any shell or notebook, on any machine that sees them."""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from onestep_bench.grid.cells import RUNNING, Cell, Grid, Status, scratch_path, status_of
from onestep_bench.grid.locks import is_held
from onestep_bench.grid.plan import read_grid
from onestep_bench.grid.schedule import expected
from onestep_bench.store.notes import PROGRESS
from onestep_bench.units import count, duration

STATES = ("done", "running", "failed", "outdated", "to do")


def survey(grid: Grid) -> list[Status]:
    """The status of every cell: as `grid.status_of`, and 'running' where a live process executes it now."""
    return with_running([status_of(cell, grid.executed) for cell in grid.cells], grid.executed)


def with_running(statuses: Iterable[Status], folder: Path) -> list[Status]:
    """The statuses, with those of cells that a live process executes now replaced by 'running'."""
    return [_running(status.cell, folder) or status for status in statuses]


def _running(cell: Cell, folder: Path) -> Status | None:
    scratch = scratch_path(cell, folder)
    try:
        started = json.loads((scratch / RUNNING).read_text())["started"]
    except (OSError, ValueError):
        return None
    # A killed run leaves its record, but not its lock.
    held = is_held(scratch.with_name(f"{cell.id}.lock"))
    return Status(cell, "running", max(0.0, time.time() - started), inside(cell, folder)) if held else None


def inside(cell: Cell, folder: Path) -> str:
    """How far a running cell is inside itself: 'gdd 12.3k of 32k img, 40 s left'; empty if it does not tell."""
    told = _told(cell, folder)
    if not told:
        return ""
    words = f"{told['what']} {count(told['done'])} of {count(told['total'])} {told['unit']}"
    if told["left"] is None:
        return words
    return f"{words}, {duration(max(0.0, told['left'] - (time.time() - told['at'])))} left"


def share(status: Status, folder: Path) -> str:
    """`inside` of a cell that runs, in what room a terminal has: 'gdd 38 %'."""
    told = _told(status.cell, folder) if status.state == "running" else None
    return f"{told['what']} {told['done'] / max(told['total'], 1):.0%}".replace("%", " %") if told else ""


def _told(cell: Cell, folder: Path) -> dict | None:
    try:
        return json.loads((scratch_path(cell, folder) / PROGRESS).read_text())
    except (OSError, ValueError):
        return None


def time_left(statuses: Sequence[Status]) -> float | None:
    """Seconds until all is done, if the cells that are missing take as long as `schedule.expected` has it.

    None if nothing at all is known of one. As many cells are taken to run at once as do now.
    """
    unfinished = [status for status in statuses if status.state in ("running", "outdated", "to do")]
    known = expected(statuses)
    if any(status.cell.id not in known for status in unfinished) or (not unfinished and not known):
        return None
    missing = [max(0.0, known[status.cell.id] - status.seconds * (status.state == "running")) for status in unfinished]
    running = sum(status.state == "running" for status in statuses)
    # However many run at once, the longest of them must end.
    return max([sum(missing) / max(running, 1), *missing], default=0.0)


def in_words(statuses: Sequence[Status]) -> str:
    """'2 running, about 3 min 20 s left'."""
    running = sum(status.state == "running" for status in statuses)
    left = time_left(statuses)
    return f"{running} running" + (f", about {duration(left)} left" if left is not None else "")


def table(statuses: Sequence[Status]) -> list[tuple[str, ...]]:
    """A heading, a line for each stage and one for all: how many cells are where, and the seconds they took."""
    stages: dict[str, list[Status]] = defaultdict(list)
    for status in statuses:
        stages[status.cell.stage].append(status)
    lines = [_tally(name, group) for name, group in [*stages.items(), ("all", statuses)]]
    return [("stage", *STATES, "seconds"), *lines]


def _tally(name: str, statuses: Sequence[Status]) -> tuple[str, ...]:
    states = Counter(status.state for status in statuses)
    seconds = sum(status.seconds for status in statuses)
    return (name, *(str(states[state]) for state in STATES), f"{seconds:.1f}")


def watch(path: Path | str, *, every: float = 5.0, **folders) -> None:
    """Show a grid's progress in a notebook, refreshed until no cell is left; interrupt the kernel to stop watching.

    path: the grid's YAML. every: seconds between two looks. folders: `notebooks` and `out`, as for `read_grid`.
    """
    from IPython.display import HTML, display

    grid = read_grid(path, **folders)
    statuses = survey(grid)
    shown = display(HTML(_html(grid, statuses)), display_id=True)
    try:
        while any(status.state in ("running", "outdated", "to do") for status in statuses):
            time.sleep(every)
            statuses = survey(grid)
            shown.update(HTML(_html(grid, statuses)))
    except KeyboardInterrupt:
        return


def _html(grid: Grid, statuses: Sequence[Status]) -> str:
    heading, *lines = table(statuses)
    cells = [status for status in statuses if status.state in ("running", "failed")]
    notes = [f"{status.state}: {status.cell.id} ({duration(status.seconds)}) {status.why}" for status in cells]
    return (
        f"<b>{escape(grid.title)}</b>: {in_words(statuses)}"
        f"<table><tr>{_row('th', heading)}</tr>"
        + "".join(f"<tr>{_row('td', line)}</tr>" for line in lines)
        + "</table>"
        + "<br>".join(map(escape, notes))
    )


def _row(tag: str, texts: Sequence[str]) -> str:
    return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)
