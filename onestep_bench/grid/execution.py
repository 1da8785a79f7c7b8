"""One cell to one executed notebook: a papermill process of its own, watched until it ends.

The executed notebook is the only record. It appears under its final name in one rename, stamped with the cell's digest,
so whatever is killed, at whatever moment, leaves either a whole result or none. Until then everything lies in the
cell's scratch folder, under a lock that two runs of one grid respect.

Three processes take part: the supervisor (this module's `execute`, inside a Dask worker), papermill (this module as a
program) and the notebook's kernel. A cell on several devices has one papermill and one kernel per rank, started by
torchrun.
"""

import ctypes
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil

from onestep_bench.errors import OnestepError
from onestep_bench.grid.cells import RUNNING, STAMP, Cell, Status, executed_path, failed_path, scratch_path, status_of
from onestep_bench.grid.locks import held
from onestep_bench.grid.parameters import read_notebook
from onestep_bench.store.artifacts import WAITING
from onestep_bench.store.files import own_folder, own_temporary, write_json
from onestep_bench.store.notes import RANKS, SCRATCH, noted
from onestep_bench.units import duration, size

_POLL = 0.2  # seconds between two looks at a running cell
_KERNEL_START = 300  # seconds; a busy machine can take long
_GRACE = 10.0  # seconds in which an interrupted notebook may write its traceback
_clock = time.monotonic


def execute(
    cell: Cell, folder: Path, environment: Mapping[str, str], *, unwanted: Callable[[], bool] = lambda: False
) -> Status:
    """Run one cell in processes of its own and wait for them.

    folder: of the executed notebooks. environment: the whole environment of the processes. unwanted: asked again and
    again; once true, the processes end and no file stays.
    Returns 'done' or 'failed'; 'to do' if it became unwanted; 'busy' if another run is executing this very cell, or if
    another process makes an artifact that it needs, whose key is then the status's `why`.
    """
    if not cell.notebook.is_file():
        why = f"{socket.gethostname()} does not see {cell.notebook}; all workers need the runner's file system"
        return Status(cell, "failed", why=why)
    scratch = scratch_path(cell, folder)
    with held(scratch.with_name(f"{cell.id}.lock")) as ours:
        if not ours:
            return Status(cell, "busy")
        status = status_of(cell, folder)
        if status.state == "done":  # by another run, since this one looked
            return status
        shutil.rmtree(scratch, ignore_errors=True)  # what a killed run left
        own_folder(scratch)
        try:
            return _attempt(cell, folder, scratch, environment, unwanted)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def file_loss(cell: Cell, folder: Path, why: str) -> Status:
    """Record the failure of a cell whose supervisor did not live to do so, if the disk takes it."""
    scratch = scratch_path(cell, folder)
    # The runner tells of the loss in any case, and goes on.
    with suppress(OnestepError, OSError), held(scratch.with_name(f"{cell.id}.lock")) as ours:
        if ours:
            own_folder(scratch)
            _file(cell, folder, scratch, 0, 0.0, why)
            shutil.rmtree(scratch)
    return Status(cell, "failed", why=why)


def _attempt(cell: Cell, folder: Path, scratch: Path, environment: Mapping[str, str], unwanted: Callable) -> Status:
    failed_path(cell, folder).unlink(missing_ok=True)
    write_json(scratch / RUNNING, {"host": socket.gethostname(), "started": time.time()})
    started = time.perf_counter()
    with _private_folder(scratch) as private, open(scratch / "log", "wb") as log:
        job = {"notebook": str(cell.notebook), "parameters": cell.parameters, "ranks": cell.gpus}
        write_json(private / "job.json", {**job, "scratch": str(scratch)})
        process = subprocess.Popen(
            [sys.executable, "-m", "onestep_bench.grid.execution", str(private), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**environment, SCRATCH: str(scratch)},
            start_new_session=True,  # the terminal's Ctrl-C is the runner's business alone
        )
        try:
            stopped = _watch(process, cell, unwanted)
        finally:
            _kill_tree(process)
    if stopped is None:
        return Status(cell, "to do")
    if process.returncode and (scratch / WAITING).exists():
        return Status(cell, "busy", why=(scratch / WAITING).read_text())
    rank, why, mistake = _outcome(scratch, process.returncode)
    if stopped:
        why = f"{stopped}; {why}" if why.startswith("KeyboardInterrupt") else stopped
    _file(cell, folder, scratch, rank, time.perf_counter() - started, why)
    return replace(status_of(cell, folder), mistake=mistake)


@contextmanager
def _private_folder(scratch: Path) -> Iterator[Path]:
    """A folder on this machine that nobody else may enter, as scratch may be a group's: what is run, and its sockets.

    It is the cell's by its name, so that what a killed run left there goes with the next one.
    """
    name = hashlib.sha256(os.fsencode(scratch.absolute())).hexdigest()[:16]
    folder = own_temporary(_place_of_sockets()) / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place_of_sockets() -> str:
    """Where a folder's path leaves room: a socket's may have some hundred bytes in all."""
    place = tempfile.gettempdir()
    return place if len(os.fsencode(place)) < 50 else "/tmp"


def _watch(process: subprocess.Popen, cell: Cell, unwanted: Callable[[], bool]) -> str | None:
    """Wait for the end; returns why it was brought about, '' if it came by itself, None if the cell is unwanted."""
    started = _clock()
    while not _ended(process, _POLL):
        if unwanted():
            return None
        if cell.limit and _clock() - started > cell.limit:
            _interrupt(process)
            return f"hung: ended at its limit of {duration(cell.limit)}"
        if cell.memory and (used := _memory(process)) > cell.memory:
            return f"out of memory: ended at {size(used)}, its bound is {size(cell.memory)}"
    return ""


def _ended(process: subprocess.Popen, patience: float) -> bool:
    """Whether the process ends within so many seconds."""
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        return False
    return True


def _tree(process: subprocess.Popen) -> list[psutil.Process]:
    """A process and all its descendants, as far as they are still there."""
    if process.poll() is not None:
        return []
    try:
        top = psutil.Process(process.pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _memory(process: subprocess.Popen) -> int:
    total = 0
    for part in _tree(process):
        try:
            total += part.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _interrupt(process: subprocess.Popen) -> None:
    """Interrupt the kernels, so that the traceback of where it hung gets into the notebook; wait a little for that.

    Twice: training lets a first interrupt wait for the end of its step, to keep what was done.
    """
    for _ in range(2):
        for part in _tree(process):
            try:
                if "ipykernel_launcher" in part.cmdline():
                    part.send_signal(signal.SIGINT)
            except psutil.NoSuchProcess:
                continue
        if _ended(process, _GRACE / 2):
            return


def _kill_tree(process: subprocess.Popen) -> None:
    """Kernels have sessions of their own, so a signal to the process group would miss them."""
    for part in _tree(process):
        try:
            part.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def _outcome(scratch: Path, returncode: int) -> tuple[int, str, bool]:
    """The rank whose notebook tells the story, what went wrong in one line, or nothing, and whether by a mistake.

    One rank's mistake makes torchrun end the others, so it is the first failure that tells.
    """
    outcomes = [json.loads(path.read_text()) for path in scratch.glob("outcome-*.json")]
    failures = sorted((outcome for outcome in outcomes if outcome["why"]), key=lambda outcome: outcome["time"])
    if failures:
        rank, why, mistake = (failures[0][key] for key in ("rank", "why", "mistake"))
        return rank, f"rank {rank}: {why}" if rank else why, mistake
    return 0, _cause_of_death(returncode, scratch / "log") if returncode else "", False


def _cause_of_death(returncode: int, log: Path) -> str:
    if returncode < 0:
        hint = " (out of memory?)" if returncode == -signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-returncode).name}{hint}"
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), f"its process exited with {returncode}")


def _file(cell: Cell, folder: Path, scratch: Path, rank: int, seconds: float, why: str) -> None:
    """Stamp a rank's notebook and give it its name: the finished cell's, or if there is a `why` the failed one's."""
    try:
        notebook = read_notebook(_partial_path(scratch, rank))
    except OnestepError:  # it died before papermill wrote anything, or while it wrote
        notebook = read_notebook(cell.notebook)
    for key in ("input_path", "output_path"):  # absolute, and of the partial file: misleading anywhere else
        notebook["metadata"].get("papermill", {}).pop(key, None)
    notebook["metadata"][STAMP] = {
        "cell": cell.id,
        "stage": cell.stage,
        "parameters": cell.parameters,
        "digest": cell.digest,
        "seconds": round(seconds, 3),
        "why": why,
        "used": noted(scratch),
    }
    whole = scratch / "whole.ipynb"
    write_json(whole, notebook)
    folder.mkdir(parents=True, exist_ok=True)  # somebody may have removed it meanwhile
    os.replace(whole, failed_path(cell, folder) if why else executed_path(cell, folder))


def _partial_path(scratch: Path, rank: int) -> Path:
    return scratch / f"partial-{rank}.ipynb"


# ---- inside the process ----------------------------------------------------------------------------------------------


def main(private: Path, parent: int, *, rank: int | None = None) -> int:
    """Execute the notebook of a job; the exit code.

    private: the folder of job.json. parent: the process without which this one ends. rank: None in the process that the
    supervisor started.
    """
    _die_with(parent)
    job = json.loads((private / "job.json").read_text())
    if rank is None and job["ranks"] > 1:
        _become_torchrun(job["ranks"], private)
    place, scratch = rank or 0, Path(job["scratch"])
    connection = private / f"kernel-{place}.json"
    why, mistake = _papermill(Path(job["notebook"]), _partial_path(scratch, place), job["parameters"], connection)
    write_json(scratch / f"outcome-{place}.json", {"rank": place, "why": why, "mistake": mistake, "time": time.time()})
    return 1 if why else 0


def _become_torchrun(ranks: int, private: Path) -> None:
    """Left to itself, torchrun listens on a port of every network, and unpickles what anybody leaves there.

    So its processes, and the ranks, find each other by files, and speak to each other on the loopback.
    """
    os.environ |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", RANKS: str(private / "ranks")}
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    words = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--log-dir={private}"]
    words += ["--rdzv-backend=c10d", f"--rdzv-endpoint={private / 'torchrun'}", "--rdzv-conf=store_type=file"]
    words += ["--local-addr=127.0.0.1", "-m", "onestep_bench.grid.execution", str(private), str(os.getpid()), "rank"]
    os.execv(sys.executable, words)


def _papermill(notebook: Path, partial: Path, parameters: dict, connection: Path) -> tuple[str, bool]:
    """Execute the notebook; returns what went wrong in one line, or nothing, and whether it was a user's mistake."""
    # Where it is installed, papermill's jsonschema compiles a grammar of web addresses, which no notebook is checked
    # by, and which would make each cell begin more than a second later.
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill
    from traitlets.config import Config

    # Kernels that start at one time take each other's TCP ports, now and then, and everybody on the machine reaches
    # those. Sockets are files.
    manager = {"transport": "ipc", "connection_file": str(connection)}
    try:
        papermill.execute_notebook(
            notebook,
            partial,
            parameters,
            cwd=notebook.parent,
            progress_bar=False,
            start_timeout=_KERNEL_START,
            config=Config({"KernelManager": manager}),
        )
    except papermill.PapermillExecutionError as error:
        # The name itself: of its subclasses, that another rank ended is nobody's mistake.
        return _first_line(f"{error.ename}: {error.evalue}"), error.ename == OnestepError.__name__
    except Exception as error:  # a dead kernel, a missing kernel spec, a full disk: recorded as this cell's failure
        hint = " (it exited, was killed, or ran out of memory)" if type(error).__name__ == "DeadKernelError" else ""
        return _first_line(f"{type(error).__name__}: {error}") + hint, False
    return "", False


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0].rstrip(": ")


def _die_with(parent: int) -> None:
    """Let the kernel end this process when its parent dies, even by kill -9; ipykernel follows its own parent.

    Without it the orphan would go on writing files that the next run believes to be its own. Elsewhere than on Linux
    there is no such call, and an orphan finishes its cell.
    """
    if sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), rank=int(os.environ["RANK"]) if sys.argv[3:] else None))
