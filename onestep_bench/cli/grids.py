"""Commands that work on a grid: plan, run, status, report."""

import argparse
import math
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from onestep_bench import store
from onestep_bench.cli.terminal import print_table, use_store
from onestep_bench.errors import OnestepError, near_miss, needs_extra
from onestep_bench.grid import cost, files, progress
from onestep_bench.grid.cells import Cell, Grid, Status, failed_path
from onestep_bench.grid.changes import Changes
from onestep_bench.grid.plan import read_grid
from onestep_bench.grid.schedule import expected
from onestep_bench.known.catalogue import known
from onestep_bench.scoring.recipe import BATCH, steps_for
from onestep_bench.units import duration

_NOTEBOOKS = "default: `notebooks` in the grid, else notebooks/ beside its folder, else in this one"
_OUT = "default: `out` in the grid, else reports/NAME beside the notebooks found, else in this folder"
_SOURCE = "the grid, or a folder of executed notebooks, or of a report's results.csv alone"
_LEAN = "what a repository keeps: no SVG, links to notebooks instead of pages made of them, results.csv.gz"
_SCALE = "of every budget, 0.001 to try a grid out; such a run has results of its own, in reports/NAME-scale0.001"
_INSECURE = "speak to scheduler and workers in the clear (tcp://): whoever reaches them runs code as you"
_NO_DASHBOARD = "start no dashboard; it is on this machine's 127.0.0.1:8787, where others who log in here may read it"
_SET = "a parameter of every cell that declares it, VALUE in YAML; NAME.KEY of a mapping; may be repeated"


def add_commands(commands) -> None:
    """Add plan, run, status and report."""
    for command, text in (
        (_plan, "list the cells of a grid, and what each would reuse, and check every parameter; runs nothing"),
        (_run, "execute the cells that are not done, then render the report"),
        (_status, "count done, running, failed and missing cells, the time they took and the time left"),
        (_report, "render tables, figures and report.html from what is done, or from a folder of executed notebooks"),
    ):
        sub = commands.add_parser(command.__name__.strip("_"), help=text, description=text)
        sub.set_defaults(command=command)
        if command is _report:
            sub.add_argument("grid", type=Path, metavar="FILE.yaml|DIR", help=_SOURCE)
            sub.add_argument("--lean", action="store_true", help=_LEAN)
        else:
            sub.add_argument("grid", type=Path, metavar="FILE.yaml", help="the grid")
        sub.add_argument("--notebooks", type=Path, metavar="DIR", help=_NOTEBOOKS)
        sub.add_argument("--out", type=Path, metavar="DIR", help=_OUT)
        sub.add_argument("--scale", type=float, default=1.0, metavar="FACTOR", help=_SCALE)
        sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=_SET)
        if command in (_plan, _run):
            sub.add_argument("--store", type=Path, metavar="DIR", help="artifact store (ONESTEP_STORE of the cells)")
        if command is _run:
            again = "make again, for this stage's cells, the artifacts that other source made; may be repeated"
            sub.add_argument("--fresh", action="append", default=[], metavar="STAGE", help=again)
            where = sub.add_mutually_exclusive_group()
            where.add_argument("--workers", type=_positive, metavar="N", help="default: one a GPU, or one a CPU core")
            where.add_argument("--scheduler", metavar="ADDRESS", help="a running Dask scheduler, tls://host:port")
            where.add_argument("--cluster", type=Path, metavar="FILE.yaml", help="a cluster; see params/clusters/")
            sub.add_argument("--insecure", action="store_true", help=_INSECURE)
            sub.add_argument("--no-dashboard", dest="dashboard", action="store_false", help=_NO_DASHBOARD)


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of workers; one or more are needed")
    return int(text)


def _grid(options: argparse.Namespace) -> Grid:
    changes = Changes.of(options.scale, options.set)
    return read_grid(options.grid, notebooks=options.notebooks, out=options.out, changes=changes)


def _plan(options: argparse.Namespace) -> int:
    grid = _grid(options)
    use_store(options)
    statuses = progress.survey(grid)
    common = _common(grid.cells)
    heading = ("cell", "notebook", "state", "reuses", "parameters", "needs")
    lines = [
        (
            status.cell.id,
            status.cell.notebook.name,
            status.state,
            _reuse(status),
            _in_words({key: value for key, value in status.cell.parameters.items() if key not in common}) or "-",
            ", ".join(status.cell.needs) or "-",
        )
        for status in statuses
    ]
    print_table([heading, *lines])
    if common:
        print(f"\nevery cell: {_in_words(common)}")
    _tell_outdated(statuses)
    for line in _judges_to_train(status.cell for status in statuses if status.state != "done"):
        print(line)
    print(f"\n{len(grid.cells)} cells; results go to {grid.out}, artifacts to {store.root()}")
    if told := _time_ahead(grid, statuses):
        print(told)
    ahead = [status.cell for status in statuses if status.state != "done"]
    for line in (*_hours(grid, ahead), *_figures(grid), *_missing(grid, ahead)):
        print(line)
    return 0


def _hours(grid: Grid, ahead: Sequence[Cell]) -> list[str]:
    """GPU-hours of the cells that are not done, by stage and in all, and how they are known."""
    if not grid.rate:
        return []
    costs, rate = {}, cost.measured(grid.rate, grid.out.parent / "gpu")
    for name, stage in grid.stages.items():
        cells = [stage.declared | cell.parameters for cell in ahead if cell.stage == name]
        if cells and (stage.passes.each or stage.passes.once):
            costs[name] = cost.hours(stage.passes, cells, rate)
    known = [hours for hours in costs.values() if hours is not None]
    told = ["", f"GPU-hours ahead, at {grid.rate.teramacs:g} * 10^12 multiply-accumulates a second: {grid.rate.of}"]
    if rate.sizes:
        told.append("as measured: " + ", ".join(f"{size} at {found:.3g}" for size, found in sorted(rate.sizes.items())))
    told += [f"  {'unknown' if hours is None else _short(hours):>7}  {name}" for name, hours in costs.items()]
    return [*told, f"  {_short(sum(known)):>7}  in all" + ", of those that are known" * (len(known) < len(costs))]


def _short(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _figures(grid: Grid) -> list[str]:
    """The published figures that stages are to meet."""
    lines = [
        f"  {name}: FID {figure['fid']:g}, {figure['at']} ({figure['source']})"
        for name, stage in grid.stages.items()
        for figure in stage.published
    ]
    return ["", "published, to be met:", *lines] if lines else []


def _missing(grid: Grid, ahead: Sequence[Cell]) -> list[str]:
    """The files that these cells want and that are not there, and where they are looked for."""
    lines = [f"  {one.what} {one.name}{_looked_for(one)}" for one in files.missing(files.needed(grid, ahead))]
    return ["", "not there yet:", *lines] if lines else []


def _looked_for(one: files.Needed) -> str:
    if not one.places:
        return ""
    how = "downloaded when it is needed, to" if one.fetched else "put it at"
    return f": {how} {' or '.join(map(str, one.places))}"


def _time_ahead(grid: Grid, statuses: Sequence[Status]) -> str:
    """What is still to do, in time of one worker, by what such cells took or their authors expect."""
    missing = [status.cell.id for status in statuses if status.state != "done"]
    known = expected(statuses, grid.executed)
    seconds = sum(known.get(name, 0.0) for name in missing)
    unknown = sum(name not in known for name in missing)
    if not seconds:
        return ""
    beside = f", and {unknown} more that nobody foresaw" if unknown else ""
    return f"{len(missing)} to do: about {duration(seconds)} of one worker{beside}"


def _in_words(parameters: dict) -> str:
    return " ".join(f"{key}={value}" for key, value in parameters.items())


def _common(cells: Sequence[Cell]) -> dict:
    """What is given to every one of several cells."""
    first, *others = (cell.parameters for cell in cells)
    return {
        key: value
        for key, value in first.items()
        if others and all(key in given and given[key] == value for given in others)
    }


def _judges_to_train(cells: Iterable[Cell]) -> list[str]:
    """What it costs to train the judges that no download brings, once for each data set."""
    asked = ((cell.parameters.get("dataset", "digits"), cell.parameters.get("features", ["auto"])) for cell in cells)
    trained = {"auto", "classifier"}
    names = dict.fromkeys(name for name, features in asked if trained & set(features) and name != "digits")
    return [f"the judge of {name}, unless the store has it: {_cost_of_judge(name)}" for name in names]


def _cost_of_judge(dataset: str) -> str:
    entry = known("datasets").get(dataset)
    if entry is None or entry.images is None:
        return "a classifier, if there are labels; how long it trains goes by the number of images"
    steps = steps_for(entry.images, entry.channels)
    what = "grey images" if entry.channels == 1 else "colour images, which is hours of a CPU"
    return f"a classifier of {steps:,} training steps of {BATCH} {what}"


def _tell_outdated(statuses: list[Status]) -> None:
    for status in statuses:
        if status.state == "outdated":
            print(f"outdated: {status.cell.id}: {status.why}")


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
    grid = _afresh(_grid(options), options.fresh)
    needs_extra("grid", "running a grid", "distributed", "cryptography", "papermill", "ipykernel", "psutil")
    _check_files(grid)
    from onestep_bench.grid import engine

    where = {name: getattr(options, name) for name in ("workers", "scheduler", "cluster", "insecure", "dashboard")}
    drafts = _Drafts(options)
    try:
        statuses = engine.run(grid, store=options.store, after=drafts.after, **where)
    finally:
        drafts.finish()
    _render(grid)
    return _exit_code(statuses)


def _check_files(grid: Grid) -> None:
    """Raise OnestepError for files that are not there and cannot be downloaded: not an hour later, in a cell."""
    ahead = [status.cell for status in progress.survey(grid) if status.state != "done"]
    if lacking := [one for one in files.missing(files.needed(grid, ahead)) if not one.fetched]:
        first = lacking[0]
        more = f", and {len(lacking) - 1} more; see onestep-bench plan" if lacking[1:] else ""
        raise OnestepError(f"{grid.path}: there is no {first.what} {first.name}{_looked_for(first)}{more}")


def _afresh(grid: Grid, stages: list[str]) -> Grid:
    """The grid, its cells of these stages marked to make again what other source made."""
    known = list(dict.fromkeys(cell.stage for cell in grid.cells))
    for stage in stages:
        if stage not in known:
            raise OnestepError(f"--fresh: {grid.path} has no stage {stage!r}{near_miss(stage, known)}")
    return replace(grid, cells=tuple(replace(cell, fresh=cell.stage in stages) for cell in grid.cells))


class _Drafts:
    """Reports of a grid that still runs: one when its first cell is done, then one every few minutes.

    A process of its own renders them, so that handing out cells goes on.
    """

    every = 300.0  # seconds

    def __init__(self, options: argparse.Namespace):
        folders = [("--notebooks", options.notebooks), ("--out", options.out)]
        named = [text for name, folder in folders if folder for text in (name, str(folder))]
        named += ["--scale", str(options.scale), *(word for text in options.set for word in ("--set", text))]
        self.command = [sys.executable, "-m", "onestep_bench.cli", "report", str(options.grid), *named]
        self.thread: threading.Thread | None = None
        self.last = -math.inf

    def after(self, statuses: list[Status]) -> None:
        """A cell is done: render what there is, if the last time is long ago and the end is not reached."""
        done = sum(status.state == "done" for status in statuses)
        busy = self.thread and self.thread.is_alive()
        if busy or done == len(statuses) or time.monotonic() - self.last < self.every:
            return
        self.last = time.monotonic()
        self.thread = threading.Thread(target=self._render, args=(f"{done} of {len(statuses)} cells",))
        self.thread.start()

    def _render(self, so_far: str) -> None:
        told = subprocess.run(self.command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        words = told.stdout if told.returncode == 0 else told.stderr
        line = next(iter(words.splitlines()), f"exited with {told.returncode}").removeprefix("report: ")
        tqdm.write(f"report so far ({so_far}): {line}")
        sys.stdout.flush()

    def finish(self) -> None:
        """Wait for the draft that is being rendered: the report that follows must be the last."""
        if self.thread:
            self.thread.join()


def _status(options: argparse.Namespace) -> int:
    grid = _grid(options)
    statuses = progress.survey(grid)
    print_table(progress.table(statuses))
    for status in statuses:
        if status.state == "running":
            inside = f": {status.why}" if status.why else ""
            print(f"running: {status.cell.id}, for {duration(status.seconds)}{inside}")
        if status.state == "failed":
            print(f"failed: {status.cell.id}: {status.why}; see {failed_path(status.cell, grid.executed)}")
    _tell_outdated(statuses)
    if any(status.state == "running" for status in statuses):
        print(progress.in_words(statuses))
    return 0


def _report(options: argparse.Namespace) -> int:
    if options.grid.is_dir():
        _render(_executed(options.grid), options.out, lean=options.lean)
        return 0
    grid = _grid(options)
    _render(grid, lean=options.lean)
    statuses = progress.survey(grid)
    _tell_outdated(statuses)
    missing = [status.cell.id for status in statuses if status.state not in ("done", "outdated")]
    if missing:
        print(f"not in it yet, {len(missing)} of {len(grid.cells)} cells: {', '.join(missing)}")
    return 0


def _executed(folder: Path) -> Path:
    from onestep_bench.report.kept import results_in

    if not any(folder.glob("*.ipynb")) and not results_in(folder):
        raise OnestepError(
            f"{folder} holds neither executed notebooks nor a results.csv; name the folder that papermill wrote to"
        )
    return folder


def _render(source: Grid | Path, out: Path | None = None, *, lean: bool = False) -> None:
    # Figures go to files: a window system, or a broken one, must not matter.
    os.environ.setdefault("MPLBACKEND", "agg")
    from onestep_bench.report import page

    print(f"report: {page.render(source, out, lean=lean)}")


def _exit_code(statuses: list[Status]) -> int:
    unfinished = Counter(status.state for status in statuses if status.state != "done")
    if not unfinished:
        return 0
    print("not done: " + ", ".join(f"{count} {state}" for state, count in sorted(unfinished.items())), file=sys.stderr)
    return 1
