"""`onestep-bench`: grids of notebooks, models, data sets, scores, and the store."""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from onestep_bench import __version__, progress, store, tools
from onestep_bench.errors import OnestepError
from onestep_bench.grid import Grid, Status, failed_path, read_grid
from onestep_bench.terminal import print_table
from onestep_bench.units import duration, size

# Exit codes: 0 all well, 1 some cells are not done, 2 a mistake in the input, 130 interrupted.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except OnestepError as error:
        print(f"onestep-bench: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("onestep-bench: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="onestep-bench", description="Run grids of notebooks and report their scores."
    )
    parser.add_argument("--version", action="version", version=f"onestep-bench {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_grid_commands(commands)
    tools.add_commands(commands)
    _add_store_commands(commands)
    return parser


# ---- grids -----------------------------------------------------------------------------------------------------------


def _add_grid_commands(commands) -> None:
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
    _use_store(options)
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
    from onestep_bench import engine

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
    from onestep_bench import report

    print(f"report: {report.render(grid)}")


def _exit_code(statuses: list[Status]) -> int:
    unfinished = Counter(status.state for status in statuses if status.state != "done")
    if not unfinished:
        return 0
    print("not done: " + ", ".join(f"{count} {state}" for state, count in sorted(unfinished.items())), file=sys.stderr)
    return 1


# ---- the store -------------------------------------------------------------------------------------------------------


def _add_store_commands(commands) -> None:
    text = "what lies in the store: list it, verify it, clear it of garbage"
    inner = commands.add_parser("store", help=text, description=text).add_subparsers(required=True, metavar="COMMAND")
    for name, command, text in (
        ("ls", _store_ls, "list artifacts, the largest first"),
        ("verify", _store_verify, "check every file against its checksum; exit 1 if one is damaged"),
        ("gc", _store_gc, "remove damaged artifacts, and unfinished ones that nobody touched for a week"),
    ):
        sub = inner.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        sub.add_argument("--store", type=Path, metavar="DIR", help="default: ONESTEP_STORE")
        if command is _store_gc:
            unused = "also remove whole artifacts that nobody asked for in so many days"
            sub.add_argument("--unused", type=float, metavar="DAYS", help=unused)
            sub.add_argument("--dry-run", action="store_true", help="only say what would go")


def _use_store(options: argparse.Namespace) -> None:
    if options.store:
        os.environ["ONESTEP_STORE"] = str(options.store.absolute())


def _store_ls(options: argparse.Namespace) -> int:
    _use_store(options)
    from onestep_bench import upkeep

    found = upkeep.entries()
    lines = [
        (entry.key, entry.what or "-", entry.state, size(entry.bytes), f"{duration(time.time() - entry.used)} ago")
        for entry in found
    ]
    print_table([("artifact", "what", "state", "size", "last used"), *lines])
    print(f"\n{len(found)} artifacts, {size(sum(entry.bytes for entry in found))} in {store.root()}")
    return 0


def _store_verify(options: argparse.Namespace) -> int:
    _use_store(options)
    from onestep_bench import upkeep

    damages = list(upkeep.damages())
    for entry, wrong in damages:
        print(f"damaged: {entry.key}: {', '.join(wrong) or 'set aside earlier'}")
    print(f"{len(upkeep.entries())} artifacts, {len(damages)} damaged; a run makes again what it needs of them")
    return 1 if damages else 0


def _store_gc(options: argparse.Namespace) -> int:
    _use_store(options)
    from onestep_bench import upkeep

    useless = upkeep.garbage(options.unused)
    gone = [entry for entry in useless if options.dry_run or upkeep.remove(entry)]
    for entry in gone:
        print(f"{entry.state}: {entry.key}, {size(entry.bytes)}")
    verb = "would go" if options.dry_run else "removed"
    print(f"{len(gone)} {verb}, {size(sum(entry.bytes for entry in gone))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
