"""`onestep-bench`: grids of notebooks; scores of images from anywhere; models and data sets."""

import argparse
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from onestep_bench import __version__, tools
from onestep_bench.errors import OnestepError
from onestep_bench.grid import Grid, Status, read_grid, status_of

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
    _add_evaluate(commands)
    tools.add_commands(commands)
    return parser


# ---- grids -----------------------------------------------------------------------------------------------------------


def _add_grid_commands(commands) -> None:
    for command, text in (
        (_plan, "list the cells of a grid and check every parameter; runs nothing"),
        (_run, "execute the cells that are not done, then render the report"),
        (_status, "count done, failed and missing cells, and the time they took"),
        (_report, "render tables, figures and report.html from what is done"),
    ):
        sub = commands.add_parser(command.__name__.strip("_"), help=text, description=text)
        sub.set_defaults(command=command)
        sub.add_argument("grid", type=Path, metavar="FILE.yaml", help="the grid")
        sub.add_argument("--notebooks", type=Path, metavar="DIR", help="default: notebooks/ beside the grid's folder")
        sub.add_argument("--out", type=Path, metavar="DIR", help="default: reports/NAME beside the grid's folder")
        if command is _run:
            sub.add_argument("--store", type=Path, metavar="DIR", help="artifact store (ONESTEP_STORE of the cells)")


def _grid(options: argparse.Namespace) -> Grid:
    return read_grid(options.grid, notebooks=options.notebooks, out=options.out)


def _plan(options: argparse.Namespace) -> int:
    grid = _grid(options)
    heading = ("cell", "notebook", "state", "parameters", "needs")
    lines = [
        (
            status.cell.id,
            status.cell.notebook.name,
            status.state,
            " ".join(f"{key}={value}" for key, value in status.cell.parameters.items()) or "-",
            ", ".join(status.cell.needs) or "-",
        )
        for status in _statuses(grid)
    ]
    _print_table([heading, *lines])
    print(f"\n{len(grid.cells)} cells; results go to {grid.out}")
    return 0


def _run(options: argparse.Namespace) -> int:
    grid = _grid(options)
    from onestep_bench import engine

    statuses = engine.run(grid, store=options.store)
    _render(grid)
    return _exit_code(statuses)


def _status(options: argparse.Namespace) -> int:
    grid = _grid(options)
    statuses = _statuses(grid)
    stages: dict[str, list[Status]] = defaultdict(list)
    for status in statuses:
        stages[status.cell.stage].append(status)
    heading = ("stage", "done", "failed", "to do", "seconds")
    _print_table([heading, *(_tally(name, group) for name, group in stages.items()), _tally("all", statuses)])
    for status in statuses:
        if status.state == "failed":
            print(f"failed: {status.cell.id}: {status.why}")
    return 0


def _report(options: argparse.Namespace) -> int:
    grid = _grid(options)
    _render(grid)
    missing = [status.cell.id for status in _statuses(grid) if status.state != "done"]
    if missing:
        print(f"not in it yet, {len(missing)} of {len(grid.cells)} cells: {', '.join(missing)}")
    return 0


def _render(grid: Grid) -> None:
    # Figures go to files: a window system, or a broken one, must not matter.
    os.environ.setdefault("MPLBACKEND", "agg")
    from onestep_bench import report

    print(f"report: {report.render(grid)}")


def _statuses(grid: Grid) -> list[Status]:
    return [status_of(cell, grid.executed) for cell in grid.cells]


def _exit_code(statuses: list[Status]) -> int:
    unfinished = Counter(status.state for status in statuses if status.state != "done")
    if not unfinished:
        return 0
    print("not done: " + ", ".join(f"{count} {state}" for state, count in sorted(unfinished.items())), file=sys.stderr)
    return 1


def _tally(name: str, statuses: list[Status]) -> tuple[str, ...]:
    states = Counter(status.state for status in statuses)
    seconds = f"{sum(status.seconds for status in statuses):.1f}"
    return (name, str(states["done"]), str(states["failed"]), str(states["to do"]), seconds)


# ---- scores ----------------------------------------------------------------------------------------------------------


def _add_evaluate(commands) -> None:
    text = "score a checkpoint, or images from anywhere, against a data set or published statistics"
    sub = commands.add_parser("evaluate", help=text, description=text)
    sub.set_defaults(command=_evaluate)
    what = "folder of a checkpoint; folder or zip of images; npz with uint8 arr_0 or images (n, h, w, c)"
    sub.add_argument("source", type=Path, metavar="SOURCE", help=what)
    sub.add_argument(
        "--dataset", required=True, metavar="NAME|PATH", help="the reference: a data set's training images"
    )
    sub.add_argument(
        "--reference", type=Path, metavar="FILE", help="its statistics instead: npz or pkl of mu and sigma"
    )
    sub.add_argument("--features", default="digits", metavar="JUDGE", help="feature extractor; default: digits")
    sub.add_argument("--samples", type=int, metavar="N", help="images to score; default: as many as there are")
    sub.add_argument("--label", metavar="TEXT", help="what tables call it; default: the name of SOURCE")
    sub.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the rows to a .json or .csv")
    model = sub.add_argument_group("of a checkpoint only")
    model.add_argument("--sampler", default="euler", metavar="NAME", help="default: euler")
    model.add_argument("--steps", type=int, nargs="+", default=[1], metavar="N", help="default: 1")
    model.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")


def _evaluate(options: argparse.Namespace) -> int:
    from onestep_bench import scoresheet

    if options.output:
        scoresheet.check(options.output)
    given = {name: value for name, value in vars(options).items() if name not in ("command", "output")}
    rows = scoresheet.rows_of(**given)
    _print_table(scoresheet.table(rows))
    for warning in scoresheet.warnings(rows):
        print(f"warning: {warning}")
    if options.output:
        scoresheet.write(rows, options.output)
        print(f"rows: {options.output}")
    return 0


# ---- printing --------------------------------------------------------------------------------------------------------


def _print_table(lines: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
