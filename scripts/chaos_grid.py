"""Kill a random process of a running grid (runner, worker, papermill, kernel): the re-run must end in the same scores.

`make chaos` runs it: twenty rounds, each with a store and reports of its own, at moments drawn from a fixed seed;
another number of rounds is its argument. A round passes if after the re-run results.csv equals, measured times aside,
that of an undisturbed run, byte by byte; if no artifact in its store is damaged; if nothing of the killed run is left
alive; and if the run went on by itself unless it was the runner that was killed. Exits with 1 if a round fails.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd
import psutil

from onestep_bench.scores import MEASURED

ROUNDS = 20
NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
GRID = """
name: chaos
defaults: {teacher_kimg: 6.0, samples: 64, seeds: [0], samplers: [euler], steps: [1, 2]}
stages:
  teacher: {notebook: teacher.ipynb, over: {teacher_seed: [0, 1]}}
"""
# What tells the processes of a run apart, in their command lines.
KINDS = {"kernel": "ipykernel_launcher", "papermill": "onestep_bench.execution", "worker": "spawn_main"}


def start(folder: Path, *command: str) -> subprocess.Popen:
    """One of our commands on the round's store."""
    settings = {"ONESTEP_STORE": str(folder / "store"), "ONESTEP_CHECKPOINT_SECONDS": "0.1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "onestep_bench.cli", *command]
    return subprocess.Popen(words, env=os.environ | settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def start_grid(folder: Path) -> subprocess.Popen:
    """A run of the grid in `folder`, or the rest of one."""
    where = ["--notebooks", str(NOTEBOOKS), "--out", str(folder / "out"), "--workers", "2"]
    return start(folder, "run", str(folder.parent / "chaos.yaml"), *where)


def results(folder: Path) -> str:
    """results.csv without its measured columns."""
    rows = pd.read_csv(folder / "out" / "results.csv")
    return rows.drop(columns=list(MEASURED)).to_csv(index=False)


def family(run: psutil.Process) -> dict[str, list[psutil.Process]]:
    """The processes of a run by what they are."""
    found = defaultdict(list, {"runner": [run]})
    for process in run.children(recursive=True):
        try:
            words = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        kind = next((kind for kind, word in KINDS.items() if word in words), None)
        if kind:
            found[kind].append(process)
    return found


def kill_one(run: psutil.Process, random_: random.Random) -> tuple[str, list[psutil.Process]]:
    """SIGKILL one process of the run; what it was, and all that were there."""
    found = family(run)
    kind = random_.choice(sorted(found))
    random_.choice(found[kind]).kill()
    return kind, [process for processes in found.values() for process in processes]


def disturb(folder: Path, moment: float, random_: random.Random) -> tuple[str, str]:
    """Run the grid once with a kill at `moment`, in seconds; the victim, and what was wrong, if anything."""
    run = start_grid(folder)
    time.sleep(moment)
    if run.poll() is not None:
        return "nothing, it had ended", ""
    victim, everybody = kill_one(psutil.Process(run.pid), random_)
    code = run.wait()
    _, left = psutil.wait_procs(everybody, timeout=10)
    if left:
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
