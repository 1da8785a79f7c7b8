"""Faults of the ground under a grid: full disks, removed folders, a clock set back, a frozen worker.

`make faults` runs them: each must be told in one clear line, leave nothing half-written, and the re-run must be right.
Disks are small tmpfs, for which one must be root. What cannot be tried is told. Names of faults, as printed, are its
arguments. Exits with 1 if one failed.
"""

import atexit
import contextlib
import errno
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import psutil
from chaos_grid import CODE, PARAMETERS, alive, environment, family, outliving, results, start, write_notebook
from chaos_training import TRAIN

TRAINING = "name: {name}\nstages:\n  cell: {{notebook: {name}.ipynb}}\n"
CHAIN = """
name: chain
stages:
  teacher: {notebook: chain.ipynb}
  student: {notebook: chain.ipynb, needs: [teacher], over: {seed: [1, 2]}}
"""
PAIRS = (
    TRAIN.replace("import train\n", "import make_pairs, train\n")
    + """
model = train("edm", load("digits"), size="0.05M", kimg=2, batch_size=64)
pairs = make_pairs(model, 12288, steps=4)
print(hashlib.sha256((pairs.artifact.folder / "images.safetensors").read_bytes()).hexdigest())
"""
)
NOTEBOOKS = {
    "train": TRAIN + "print(trained('edm', 0, 8))",
    "pairs": PAIRS,
    "long": "print('x' * 6_000_000)",
}
FAULTS: dict[str, Callable[[Path], str]] = {}
NOTICED = 130  # seconds in which a frozen worker is noticed, and its cell runs elsewhere


class NotTried(Exception):
    """Why a fault cannot be tried here."""


class Failed(Exception):
    """What was not as promised."""


def fault(name: str) -> Callable:
    """Registers a function that tries a fault in a folder of its own and returns what was told, or raises `Failed`."""
    return lambda function: FAULTS.setdefault(name, function)


def expect(true: object, what: str) -> None:
    """Raise `Failed` unless so."""
    if not true:
        raise Failed(what)


def wait_for(true: Callable[[], object], what: str, seconds: float = 300) -> None:
    """Wait until so, or raise `Failed`."""
    end = time.monotonic() + seconds
    while not true():
        expect(time.monotonic() < end, f"never came: {what}")
        time.sleep(0.02)


@contextlib.contextmanager
def disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A small file system at `folder`."""
    folder.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)]
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    if told.returncode:
        raise NotTried(told.stderr.strip() or "no mount here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    """Make the small file system larger, read-only or writable."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the room there is; the file that holds it."""
    path = folder / "filler"
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return path


class Ground:
    """A folder with the grids of this file, a store and reports."""

    def __init__(self, folder: Path):
        self.folder, self.store, self.out = folder, folder / "store", folder / "out"
        for name, code in NOTEBOOKS.items():
            write_notebook(folder / f"{name}.ipynb", "seed = 0", code)
            (folder / f"{name}.yaml").write_text(TRAINING.format(name=name))
        write_notebook(folder / "chain.ipynb", PARAMETERS, CODE)
        (folder / "chain.yaml").write_text(CHAIN)

    def start(self, name: str) -> subprocess.Popen:
        """A run of a grid, its output in the file `log`."""
        words = ["run", str(self.folder / f"{name}.yaml"), "--notebooks", str(self.folder), "--out", str(self.out)]
        with open(self.folder / "log", "wb") as log:
            return start(self.folder, *words, "--workers", "2", log=log)

    def told(self, *texts: str) -> str:
        """The one line of the log that holds these texts; there must be no traceback."""
        log = (self.folder / "log").read_text(errors="replace")
        expect("Traceback" not in log, f"a traceback: {log[-600:]}")
        lines = [line for line in log.splitlines() if all(text in line for text in texts)]
        expect(lines, f"no line with {texts}: {log[-600:]}")
        return lines[0]

    def finish(self, name: str) -> None:
        """Run the rest, which must end well and leave nothing half-written."""
        expect(self.start(name).wait() == 0, f"the re-run: {(self.folder / 'log').read_text()[-600:]}")
        half = [*self.store.glob("*.partial"), *self.store.glob("*/.*"), *self.out.rglob(".*.*.*"), *self.scratch()]
        expect(not half, f"left: {half}")
        if any(self.store.glob("*")):  # cells that make no artifact make no store
            expect(start(self.folder, "store", "verify").wait() == 0, "damaged artifacts")

    def scratch(self) -> list[Path]:
        """Folders of running cells."""
        return [path for path in (self.out / ".cells").glob("*") if path.is_dir()]

    def printed(self) -> str:
        """The digest that the cell of a training printed."""
        text = (self.out / "notebooks" / "cell.ipynb").read_text()
        return next(word for word in text.replace("\\n", '"').split('"') if len(word) == 64 and word.isalnum())


@functools.cache
def calm() -> Path:
    """The folder of a run of the chain that nothing disturbs."""
    ground = Ground(Path(tempfile.mkdtemp(prefix="onestep-calm-")))
    atexit.register(shutil.rmtree, ground.folder)
    expect(ground.start("chain").wait() == 0, f"the undisturbed run: {(ground.folder / 'log').read_text()[-600:]}")
    return ground.folder


def expected_of(folder: Path, name: str) -> str:
    """What the cell of a training prints if nothing disturbs it, as one process without a grid."""
    words = [sys.executable, "-c", NOTEBOOKS[name]]
    told = subprocess.run(words, env=environment(folder / "calm"), stdout=subprocess.PIPE, text=True, check=True)
    return told.stdout.strip()


def full(folder: Path, name: str, sign: str) -> str:
    """Fill the disk of the store as soon as a file like `sign` lies in it."""
    expected = expected_of(folder, name)
    ground = Ground(folder)
    with disk(ground.store, 24):
        run = ground.start(name)
        wait_for(lambda: list(ground.store.glob(sign)), sign)
        filler = fill(ground.store)
        expect(run.wait() == 1, f"exit code {run.returncode}")
        line = ground.told("FAILED", "cannot write", "No space left on device")
        expect(not list(ground.store.glob("*/.*")), "temporary files are left")
        filler.unlink()
        ground.finish(name)
        expect(ground.printed() == expected, "other bits")
    return line


@fault("disk full in a checkpoint")
def full_checkpoint(folder: Path) -> str:
    """The training keeps its last checkpoint, and goes on from it."""
    return full(folder, "train", "model-*.partial/checkpoint.pt")


@fault("disk full in a pair file")
def full_pairs(folder: Path) -> str:
    """The parts that are whole stay."""
    return full(folder, "pairs", "pairs-*.partial/part-*")


@fault("disk full in a notebook")
def full_notebook(folder: Path) -> str:
    """Its outputs are larger than the disk."""
    ground = Ground(folder)
    with disk(ground.out, 4):
        run = ground.start("long")
        expect(run.wait() == 1, f"exit code {run.returncode}")
        line = ground.told("FAILED", "No space left on device")
        expect(not (ground.out / "notebooks" / "cell.ipynb").exists(), "a cell that is done")
        remount(ground.out, "size=64m")
        ground.finish("long")
        expect(len((ground.out / "notebooks" / "cell.ipynb").read_text()) > 6_000_000, "outputs are lost")
    return line


@fault("disk full in a report")
def full_report(folder: Path) -> str:
    """What was reported before stays as it was."""
    before = calm() / "out"
    expected = {path.name: path.read_bytes() for path in before.iterdir() if path.suffix in (".csv", ".png", ".svg")}
    ground = Ground(folder)
    with disk(ground.out, 16):
        shutil.copytree(before / "notebooks", ground.out / "notebooks")
        fill(ground.out)
        with open(ground.folder / "log", "wb") as log:
            words = ["report", str(ground.folder / "chain.yaml"), "--notebooks", str(folder), "--out", str(ground.out)]
            code = start(ground.folder, *words, log=log).wait()
        expect(code == 2, f"exit code {code}")
        line = ground.told("error: cannot write", "No space left on device")
        left = [path for path in ground.out.rglob("*") if path.is_file() and path.suffix != ".ipynb"]
        expect([path.name for path in left] == ["filler"], f"left: {left}")
        (ground.out / "filler").unlink()
        ground.finish("chain")
        found = {name: (ground.out / name).read_bytes() for name in expected}
        expect(found == expected, "another report")
    return line


@fault("store read-only")
def read_only(folder: Path) -> str:
    """Told before any worker starts."""
    ground = Ground(folder)
    with disk(ground.store, 24):
        remount(ground.store, "ro")
        run = ground.start("chain")
        expect(run.wait() == 2, f"exit code {run.returncode}")
        line = ground.told("error: cannot write", "Read-only file system")
        remount(ground.store, "rw")
        ground.finish("chain")
    return line


@fault("store removed while a cell runs")
def store_removed(folder: Path) -> str:
    """Told at the next checkpoint, not hours later."""
    expected = expected_of(folder, "train")
    ground = Ground(folder)
    run = ground.start("train")
    wait_for(lambda: list(ground.store.glob("model-*.partial/checkpoint.pt")), "a checkpoint")
    ground.store.rename(folder / "removed")
    expect(run.wait() == 1, f"exit code {run.returncode}")
    line = ground.told("FAILED", "was removed while")
    ground.finish("train")
    expect(ground.printed() == expected, "other bits")
    return line


def vanished(folder: Path, which: str, code: int, *texts: str, back: bool = False) -> str:
    """Remove a folder when the first cell is done."""
    expected = results(calm())
    ground = Ground(folder)
    run = ground.start("chain")
    wait_for(lambda: list((ground.out / "notebooks").glob("*.ipynb")), "an executed notebook")
    gone = folder / which
    gone.rename(folder / "removed")
    expect(run.wait() == code, f"exit code {run.returncode}: {(folder / 'log').read_text()[-600:]}")
    line = ground.told(*texts)
    if back:
        (folder / "removed").rename(gone)
    ground.finish("chain")
    expect(results(folder) == expected, "other scores")
    return line


@fault("folder of executed notebooks vanishes")
def executed_vanished(folder: Path) -> str:
    """The run goes on, and tells at its end that something is missing."""
    return vanished(folder, "out/notebooks", 1, "were removed from", "run again")


@fault("whole folder of results vanishes")
def out_vanished(folder: Path) -> str:
    """With what running cells were writing."""
    return vanished(folder, "out", 1, "were removed from", "run again")


@fault("a notebook vanishes")
def source_vanished(folder: Path) -> str:
    """The cells that are left fail, each with a line."""
    return vanished(folder, "chain.ipynb", 1, "FAILED", "does not see", "chain.ipynb", back=True)


# Not Debian's faketime: under its 0.9.10 no process can sleep if its monotonic clock is to go on, as it does where a
# clock is set back.
CLOCK = """
import pathlib, time
_file, _told, _told_ns = pathlib.Path({file!r}), time.time, time.time_ns
def _shift():
    text = _file.read_text()
    return int(text) if text else 0
time.time = lambda: _told() + _shift()
time.time_ns = lambda: _told_ns() + _shift() * 10**9
"""


@fault("clock set back")
def clock_set_back(folder: Path) -> str:
    """By a day, for all processes of the run, as its second cell begins."""
    expected = results(calm())
    ground, clock, site = Ground(folder), folder / "clock", folder / "site"
    clock.write_text("0")
    site.mkdir()
    (site / "sitecustomize.py").write_text(CLOCK.format(file=str(clock)))
    with patched({"PYTHONPATH": os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))}):
        run = ground.start("chain")
    wait_for(lambda: list((ground.out / "notebooks").glob("*.ipynb")), "an executed notebook")
    clock.write_text("-86400")
    expect(run.wait() == 0, f"exit code {run.returncode}: {(folder / 'log').read_text()[-600:]}")
    ground.told("done")
    rows = pd.read_csv(ground.out / "results.csv")
    expect(rows["train_seconds"].max() - rows["train_seconds"].min() > 80_000, "no clock was set back")
    ground.finish("chain")
    expect(results(folder) == expected, "other scores")
    return "the run goes on, with the same scores"


@contextlib.contextmanager
def patched(settings: dict[str, str]) -> Iterator[None]:
    """Further environment variables of what starts in this block."""
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@fault("a worker freezes")
def frozen(folder: Path) -> str:
    """It is ended, so that it cannot write when it is continued."""
    expected = results(calm())
    ground = Ground(folder)
    run = ground.start("chain")
    wait_for(lambda: len(ground.scratch()) == 2, "two running cells")
    (victim,) = [process for process in family(folder)["worker"] if busy(process)][:1]
    victim.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    wait_for(lambda: not alive(victim), "its end", NOTICED)
    seconds = time.monotonic() - began
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.send_signal(signal.SIGCONT)
    expect(run.wait() == 0, f"exit code {run.returncode}: {(folder / 'log').read_text()[-600:]}")
    ground.finish("chain")
    expect(results(folder) == expected, "other scores")
    return f"ended after {seconds:.0f} s, its cell ran elsewhere"


def busy(worker: psutil.Process) -> bool:
    """Whether a worker has a cell."""
    return any("onestep_bench.grid.execution" in " ".join(child.cmdline()) for child in worker.children())


NO_LOCKS = """
import errno, fcntl, os, sys
def flock(*given):
    raise OSError(int(sys.argv[1]), os.strerror(int(sys.argv[1])))
fcntl.flock = flock
from onestep_bench.cli import main
sys.exit(main(sys.argv[2:]))
"""


@fault("no locks on the file system")
def no_locks(folder: Path) -> str:
    """flock answers that it has no locks (ENOLCK), or that there is no such call (ENOSYS); told at the start."""
    ground = Ground(folder)
    for number in (errno.ENOLCK, errno.ENOSYS):
        words = ["run", str(folder / "chain.yaml"), "--notebooks", str(folder), "--out", str(ground.out)]
        with open(folder / "log", "wb") as log, patched({"ONESTEP_STORE": str(ground.store)}):
            told = subprocess.run(
                [sys.executable, "-c", NO_LOCKS, str(number), *words], stdout=log, stderr=log, check=False
            )
        expect(told.returncode == 2, f"exit code {told.returncode}")
        line = ground.told("error:", "has no file locks", os.strerror(number))
        expect(not list((ground.out / "notebooks").glob("*")), "cells were begun")
    ground.finish("chain")
    return line


def attempt(name: str) -> bool:
    """Try one fault, print its line; whether it is as promised, or cannot be tried."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="onestep-fault-") as text:
        folder = Path(text)
        try:
            verdict, what = "ok", FAULTS[name](folder).replace(text, "DIR")
        except NotTried as error:
            verdict, what = "not tried", str(error)
        except Failed as error:
            verdict, what = "FAILED", str(error)
        for process in outliving([one for found in family(folder).values() for one in found], 10):
            process.kill()
            verdict, what = "FAILED", f"{what}; {process} is left"
    print(f"{verdict:9} {name}: {what}  ({time.monotonic() - began:.0f} s)", flush=True)
    return verdict != "FAILED"


def main() -> int:
    """Try all faults, or those named; the exit code."""
    os.environ |= {"ONESTEP_CHECKPOINT_SECONDS": "0.1", "TQDM_DISABLE": "1"}
    held = [attempt(name) for name in sys.argv[1:] or FAULTS]
    print(f"faults: {sum(held)} as promised, {len(held) - sum(held)} failed")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
