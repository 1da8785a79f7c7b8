"""Cells to executed notebooks: one papermill process a cell, in the order of their needs, resumable at any moment.

The executed notebook is the only record. It appears under its final name in one rename, stamped with the cell's digest,
so a killed run leaves either a whole result or none.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import filelock
from tqdm import tqdm

from onestep_bench.errors import OnestepError
from onestep_bench.files import write_json
from onestep_bench.grid import STAMP, Cell, Grid, Status, executed_path, failed_path, status_of


def run(grid: Grid, *, store: Path | str | None = None) -> list[Status]:
    """Execute every cell that is not done yet, telling the terminal; returns the final status of every cell.

    store: artifact store for the cells (their ONESTEP_STORE). Raises OnestepError if another run holds `grid.out`.
    """
    # Progress bars in an executed notebook are hundreds of lines of noise.
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    if store:
        environment["ONESTEP_STORE"] = str(Path(store).absolute())
    with _sole_run(grid):
        # Leftovers of a killed run: partial notebooks, and replacements that never reached their name.
        for leftover in grid.executed.glob(".*.ipynb"):
            leftover.unlink()
        found = [status_of(cell, grid.executed) for cell in grid.cells]
        ended = {status.cell.id: status for status in found if status.state == "done"}
        pending = [cell for cell in grid.cells if cell.id not in ended]
        print(f"{grid.name}: {len(grid.cells)} cells, {len(ended)} done, {len(pending)} to do", flush=True)
        # disable=None: no bar where stderr is a file.
        with tqdm(total=len(grid.cells), initial=len(ended), unit="cell", disable=None) as bar:
            for status in run_cells(pending, grid.executed, environment):
                tqdm.write(_line(status, grid.executed))
                sys.stdout.flush()
                if status.state != "running":
                    ended[status.cell.id] = status
                    bar.update()
    return [ended[cell.id] for cell in grid.cells]


def run_cells(cells: Iterable[Cell], folder: Path, environment: Mapping[str, str]) -> Iterator[Status]:
    """Execute cells one after another; yields 'running', then 'done' or 'failed', or else 'skipped', for each.

    cells: in an order that respects their needs; a need that is not among them counts as done. A failed cell stops its
    dependants and nothing else.
    """
    unmet: set[str] = set()
    for cell in cells:
        missing = next((need for need in cell.needs if need in unmet), None)
        if missing:
            unmet.add(cell.id)
            yield Status(cell, "skipped", why=f"needs {missing}")
            continue
        yield Status(cell, "running")
        status = execute(cell, folder, environment)
        if status.state != "done":
            unmet.add(cell.id)
        yield status


def execute(cell: Cell, folder: Path, environment: Mapping[str, str]) -> Status:
    """Run one cell in a process of its own and wait for it; an interrupt ends that process and leaves no file."""
    folder.mkdir(parents=True, exist_ok=True)
    failed_path(cell, folder).unlink(missing_ok=True)
    job = json.dumps(
        {"cell": {**vars(cell), "notebook": str(cell.notebook)}, "folder": str(folder), "runner": os.getpid()}
    )
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "onestep_bench.engine"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # the terminal's Ctrl-C reaches the runner alone, which then ends the worker
        )
        try:
            worker.communicate(job.encode())
        except BaseException:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
            _partial_path(cell, folder).unlink(missing_ok=True)
            raise
        if worker.returncode:
            # The worker records a notebook's failure itself and exits with 0: this is the death of the worker.
            _file(cell, folder, time.perf_counter() - started, _cause_of_death(worker.returncode, log))
    return status_of(cell, folder)


def _line(status: Status, folder: Path) -> str:
    name, seconds = status.cell.id, f"{status.seconds:.1f} s"
    if status.state == "skipped":
        return f"skipped  {name} ({status.why})"
    if status.state == "failed":
        return f"FAILED   {name}  {seconds}  {status.why}  see {failed_path(status.cell, folder)}"
    return f"running  {name}" if status.state == "running" else f"done     {name}  {seconds}"


@contextmanager
def _sole_run(grid: Grid) -> Iterator[None]:
    try:
        grid.executed.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OnestepError(f"cannot write {grid.out}: {error.strerror}; choose another folder with --out") from error
    lock = filelock.FileLock(grid.out / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise OnestepError(f"another run is writing {grid.out}; wait for it, or use another --out") from error
    try:
        yield
    finally:
        lock.release()


def _partial_path(cell: Cell, folder: Path) -> Path:
    return folder / f".{cell.id}.partial.ipynb"


def _file(cell: Cell, folder: Path, seconds: float, why: str) -> None:
    """Stamp the partial notebook and give it its name: the finished cell's, or if there is a `why` the failed one's."""
    partial = _partial_path(cell, folder)
    if not partial.exists():
        shutil.copyfile(cell.notebook, partial)  # it died before papermill wrote anything
    notebook = json.loads(partial.read_text(encoding="utf-8"))
    for key in ("input_path", "output_path"):  # absolute, and of the partial file: misleading anywhere else
        notebook["metadata"].get("papermill", {}).pop(key, None)
    notebook["metadata"][STAMP] = {
        "cell": cell.id,
        "stage": cell.stage,
        "parameters": cell.parameters,
        "digest": cell.digest,
        "seconds": round(seconds, 3),
        "why": why,
    }
    write_json(failed_path(cell, folder) if why else executed_path(cell, folder), notebook)
    partial.unlink()


def _cause_of_death(returncode: int, log) -> str:
    if returncode < 0:
        hint = " (out of memory?)" if returncode == -signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-returncode).name}{hint}"
    log.seek(0)
    lines = log.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), f"its process exited with {returncode}")


# ---- inside the worker -----------------------------------------------------------------------------------------------


def _work(job: dict) -> None:
    _die_with(job["runner"])
    cell, folder = Cell(**{**job["cell"], "notebook": Path(job["cell"]["notebook"])}), Path(job["folder"])
    started = time.perf_counter()
    why = _papermill(cell, _partial_path(cell, folder))
    _file(cell, folder, time.perf_counter() - started, why)


def _papermill(cell: Cell, partial: Path) -> str:
    """Execute the notebook; returns what went wrong in one line, or nothing."""
    import papermill

    try:
        papermill.execute_notebook(
            cell.notebook, partial, cell.parameters, cwd=cell.notebook.parent, progress_bar=False
        )
    except papermill.PapermillExecutionError as error:
        return _first_line(f"{error.ename}: {error.evalue}")
    except Exception as error:  # a dead kernel, a missing kernel spec, a full disk: recorded as this cell's failure
        return _first_line(f"{type(error).__name__}: {error}")
    return ""


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0]


def _die_with(runner: int) -> None:
    """Let the kernel end this process when the runner dies, even by kill -9; ipykernel follows its own parent.

    Without it the orphan would go on writing files that the next run believes to be its own. Elsewhere than on Linux
    there is no such call, and an orphan finishes its cell.
    """
    if sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != runner:  # it died before the call
        os._exit(1)


if __name__ == "__main__":
    _work(json.load(sys.stdin))
