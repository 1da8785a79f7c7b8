"""Kill a random process of a running grid (runner, worker, papermill, kernel): the re-run must end in the same scores.

`make chaos` runs it: twenty rounds, each with a store and reports of its own, at moments drawn from a fixed seed;
another number of rounds is its argument. A round passes if after the re-run results.csv equals, measured times aside,
that of an undisturbed run, byte by byte; if no artifact in its store is damaged; if nothing of the killed run is left
alive; and if the run went on by itself unless it was the runner that was killed. Exits with 1 if a round fails.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import IO

import nbformat
import pandas as pd
import psutil

from onestep_bench.scoring.rows import MEASURED

ROUNDS = 20
GRID = """
name: chaos
stages:
  teacher: {notebook: chain.ipynb}
  student: {notebook: chain.ipynb, needs: [teacher], over: {seed: [1, 2, 3]}}
"""
PARAMETERS = "seed = 0"
# A chain of hashes in the place of training: a step lost, doubled or taken by two at once changes all that follow. It
# keeps its state after every step, and goes on from there, as training does.
CODE = """
import hashlib, json, time
from IPython.display import display
from onestep_bench import store
from onestep_bench.scoring.rows import FIELDS, MIME, bundle
from onestep_bench.store import write_json

def chain(name, parents=()):
    def make(folder):
        file = folder / "chain.json"
        found = json.loads(file.read_text()) if file.exists() else {"step": 0, "hash": name}
        for step in range(found["step"], 15):
            found = {"step": step + 1, "hash": hashlib.sha256(f"{step} {found['hash']}".encode()).hexdigest()}
            write_json(file, found)
            time.sleep(0.1)
        return {"kimg": 1.0, "seconds": 1.5, "device": "cpu"}
    return store.memo("model", {"method": "chain", "name": name}, parents, make)

teacher = chain("teacher")
student = chain(f"student {seed}", [teacher]) if seed else teacher
value = int(json.loads((student.folder / "chain.json").read_text())["hash"][:8], 16) / 2**24
row = dict.fromkeys(FIELDS, 1.0) | {
    "split": "train", "saw": "data", "recipe": "none", "purpose": "result", "warning": "",
    "dataset": "none", "label": "chain", "method": "chain", "size": "1M", "train_seed": seed, "sampler": "none",
    "steps": 1, "nfe": 1, "seed": 0, "fid": value, "features": "none", "protocol": "none", "weights": "last",
    "model": student.key, "device": "cpu", "versions": "none", "kimg": student.cost()["kimg"],
    "train_seconds": time.time(),
}
display({MIME: bundle([row], [])}, raw=True)
"""
# What tells the processes of a run apart, in their command lines.
KINDS = {
    "kernel": "ipykernel_launcher",
    "papermill": "onestep_bench.grid.execution",
    "worker": "spawn_main",
    "runner": "onestep_bench.cli run",
    "scheduler": "distributed.cli.dask_scheduler",
}


def write_notebook(path: Path, parameters: str, code: str) -> None:
    """A notebook of one cell and its parameters."""
    tagged = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[tagged, nbformat.v4.new_code_cell(code)], metadata=spec), path)


def environment(folder: Path) -> dict[str, str]:
    """Of the processes that work on the store in `folder`."""
    return os.environ | {"ONESTEP_STORE": str(folder / "store"), "OMP_NUM_THREADS": "1"}


def start(folder: Path, *command: str, log: int | IO = subprocess.DEVNULL) -> subprocess.Popen:
    """One of our commands on the store in `folder`."""
    words = [sys.executable, "-m", "onestep_bench.cli", *command]
    return subprocess.Popen(words, env=environment(folder), stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def start_grid(folder: Path) -> subprocess.Popen:
    """A run of the grid in `folder`, or the rest of one."""
    where = ["--notebooks", str(folder.parent), "--out", str(folder / "out"), "--workers", "2"]
    return start(folder, "run", str(folder.parent / "chaos.yaml"), *where)


def results(folder: Path) -> str:
    """results.csv without its measured columns."""
    rows = pd.read_csv(folder / "out" / "results.csv")
    return rows.drop(columns=list(MEASURED)).to_csv(index=False)


def family(folder: Path) -> dict[str, list[psutil.Process]]:
    """The processes that work on the store in `folder`, orphans too, by what they are."""
    found = defaultdict(list)
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("ONESTEP_STORE") == str(folder / "store")
            words = " ".join(process.cmdline()) if ours else ""
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if ours:
            found[next((kind for kind, word in KINDS.items() if word in words), "other")].append(process)
    return found


def outliving(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that are alive after so many seconds; not what is dead, and only waits to be reaped by whoever is init."""
    end = time.monotonic() + seconds
    while processes := [process for process in processes if alive(process)]:
        if time.monotonic() > end:
            break
        time.sleep(0.2)
    return processes


def alive(process: psutil.Process) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_one(folder: Path, random_: random.Random) -> tuple[str, list[psutil.Process]]:
    """SIGKILL one process of the run; what it was, and all that were there."""
    found = family(folder)
    kind = random_.choice(sorted(found.keys() & KINDS))
    random_.choice(found[kind]).kill()
    return kind, [process for processes in found.values() for process in processes]


def disturb(folder: Path, moment: float, random_: random.Random) -> tuple[str, str]:
    """Run the grid once with a kill at `moment`, in seconds; the victim, and what was wrong, if anything."""
    run = start_grid(folder)
    time.sleep(moment)
    if run.poll() is not None:  # faster than the undisturbed one: once more, with an earlier kill
        shutil.rmtree(folder)
        return disturb(folder, 0.7 * moment, random_)
    victim, everybody = kill_one(folder, random_)
    code = run.wait()
    if left := outliving(everybody, 10):
        return victim, f"{len(left)} PROCESSES LEFT"
    return victim, "" if code == 0 or victim == "runner" else f"THE RUN EXITED WITH {code}"


def judge(folder: Path, expected: str) -> str:
    """Run the rest; what is wrong then, if anything."""
    code = start_grid(folder).wait()
    if code:
        return f"THE RE-RUN EXITED WITH {code}"
    if results(folder) != expected:
        return "OTHER SCORES"
    return "DAMAGED ARTIFACTS" if start(folder, "store", "verify").wait() else ""


def main() -> int:
    """Run all rounds; the exit code."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    random_, passed, victims = random.Random(0), 0, Counter()
    with tempfile.TemporaryDirectory(prefix="onestep-chaos-") as name:
        folder = Path(name)
        (folder / "chaos.yaml").write_text(GRID)
        write_notebook(folder / "chain.ipynb", PARAMETERS, CODE)
        began = time.monotonic()
        start_grid(folder / "undisturbed").wait()
        seconds, expected = time.monotonic() - began, results(folder / "undisturbed")
        print(f"undisturbed: {len(expected.splitlines()) - 1} scores in {seconds:.1f} s", flush=True)
        for number in range(1, rounds + 1):
            victim, wrong = disturb(folder / str(number), random_.uniform(0.1, 0.9) * seconds, random_)
            wrong = wrong or judge(folder / str(number), expected)
            passed += not wrong
            victims[victim] += 1
            print(f"round {number}: killed {victim}: {wrong or 'same scores, no artifact damaged'}", flush=True)
    print(f"chaos: {passed} passed, {rounds - passed} failed; killed {dict(victims)}")
    return 0 if passed == rounds else 1


if __name__ == "__main__":
    sys.exit(main())
