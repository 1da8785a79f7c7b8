"""Commands that work on a grid: plan, run, status, report."""

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

from onestep_bench import store
from onestep_bench.cli.terminal import print_table, use_store
from onestep_bench.grid import progress
from onestep_bench.grid.cells import Grid, Status, failed_path
from onestep_bench.grid.plan import read_grid
from onestep_bench.units import duration


def add_commands(commands) -> None:
    """Add plan, run, status and report."""
    for command, text in (
        (_plan, "list the cells of a grid, and what each would reuse, and check every parameter; runs nothing"),
        (_run, "execute the cells that are not done, then render the report"),
        (_status, "count done, running, failed and missing cells, the time they took and the time left"),
        (_report, "render tables, figures and report.html from what is done"),
    ):
        sub = commands.add_parser(command.__name__.strip("_"), help=text, description=text)
        sub.set_defaults(command=command)
        sub.add_argument("grid", type=Path, metavar="FILE.yaml", help="the grid")
        sub.add_argument("--notebooks", type=Path, metavar="DIR", help="default: notebooks/ beside the grid's folder")
        sub.add_argument("--out", type=Path, metavar="DIR", help="default: reports/NAME beside the grid's folder")
        if command in (_plan, _run):
            sub.add_argument("--store", type=Path, metavar="DIR", help="artifact store (ONESTEP_STORE of the cells)")
        if command is _run:
            where = sub.add_mutually_exclusive_group()
            where.add_argument("--workers", type=_positive, metavar="N", help="default: one a GPU, or one a CPU core")
            where.add_argument("--scheduler", metavar="ADDRESS", help="a running Dask scheduler, tcp://host:port")
            where.add_argument("--cluster", type=Path, metavar="FILE.yaml", help="a cluster; see params/clusters/")


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of workers; one or more are needed")
    return int(text)


def _grid(options: argparse.Namespace) -> Grid:
    return read_grid(options.grid, notebooks=options.notebooks, out=options.out)


def _plan(options: argparse.Namespace) -> int:
    grid = _grid(options)
    use_store(options)
    statuses = progress.survey(grid)
    heading = ("cell", "notebook", "state", "reuses", "parameters", "needs")
    lines = [
        (
            status.cell.id,
            status.cell.notebook.name,
            status.state,
            _reuse(status),
            " ".join(f"{key}={value}" for key, value in status.cell.parameters.items()) or "-",
            ", ".join(status.cell.needs) or "-",
        )
        for status in statuses
    ]
    print_table([heading, *lines])
    print(f"\n{len(grid.cells)} cells; results go to {grid.out}, artifacts to {store.root()}")
    return 0


def _reuse(status: Status) -> str:
    """What a run would find: the executed notebook itself, or what an earlier attempt left in the store."""
    if status.state == "done":
        return "its notebook"
    folders = [store.root() / key for key in store.used_by(status.cell.digest)]
    whole = sum(folder.is_dir() for folder in folders)
    partial = sum(folder.with_name(f"{folder.name}.partial").is_dir() for folder in folders)
    words = [f"{whole} artifacts"] * bool(whole) + [f"{partial} unfinished"] * bool(partial)
    return ", ".join(words) or "-"


def _run(options: argparse.Namespace) -> int:
    grid = _grid(options)
    from onestep_bench.grid import engine

    where = {"workers": options.workers, "scheduler": options.scheduler, "cluster": options.cluster}
    statuses = engine.run(grid, store=options.store, **where)
    _render(grid)
    return _exit_code(statuses)


def _status(options: argparse.Namespace) -> int:
    grid = _grid(options)
    statuses = progress.survey(grid)
    print_table(progress.table(statuses))
    for status in statuses:
        if status.state == "running":
            print(f"running: {status.cell.id}, for {duration(status.seconds)}")
        if status.state == "failed":
            print(f"failed: {status.cell.id}: {status.why}; see {failed_path(status.cell, grid.executed)}")
    if any(status.state == "running" for status in statuses):
        print(progress.in_words(statuses))
    return 0


def _report(options: argparse.Namespace) -> int:
    grid = _grid(options)
    _render(grid)
    missing = [status.cell.id for status in progress.survey(grid) if status.state != "done"]
    if missing:
        print(f"not in it yet, {len(missing)} of {len(grid.cells)} cells: {', '.join(missing)}")
    return 0


def _render(grid: Grid) -> None:
    # Figures go to files: a window system, or a broken one, must not matter.
    os.environ.setdefault("MPLBACKEND", "agg")
    from onestep_bench.report import page

    print(f"report: {page.render(grid)}")


def _exit_code(statuses: list[Status]) -> int:
    unfinished = Counter(status.state for status in statuses if status.state != "done")
    if not unfinished:
        return 0
    print("not done: " + ", ".join(f"{count} {state}" for state, count in sorted(unfinished.items())), file=sys.stderr)
    return 1
