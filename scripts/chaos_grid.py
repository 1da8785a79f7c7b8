"""Kill a random process of a running grid (runner, worker, kernel): the re-run must end in the same scores.

`make chaos` runs it: five rounds, each with a store and reports of its own, at moments drawn from a fixed seed.
Exits with 1 if a round's results.csv differs, measured times aside, from that of an undisturbed run.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import psutil

from onestep_bench.scores import MEASURED

ROUNDS = 5
NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
GRID = """
name: chaos
defaults: {teacher_kimg: 24.0, samples: 256, seeds: [0], samplers: [euler], steps: [1, 4]}
stages:
  teacher: {notebook: teacher.ipynb, over: {teacher_seed: [0, 1]}}
"""


def start(folder: Path) -> subprocess.Popen:
    """A run of the grid in `folder`, or the rest of one."""
    settings = {"ONESTEP_STORE": str(folder / "store"), "ONESTEP_CHECKPOINT_SECONDS": "0.1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "onestep_bench.cli", "run", str(folder.parent / "chaos.yaml")]
    command += ["--notebooks", str(NOTEBOOKS), "--out", str(folder / "out")]
    return subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def results(folder: Path) -> str:
    """results.csv without its measured columns."""
    rows = pd.read_csv(folder / "out" / "results.csv")
    return rows.drop(columns=list(MEASURED)).to_csv(index=False)


def kill_one(run: subprocess.Popen, random_: random.Random) -> str:
    """SIGKILL one process of the run's tree; what it was."""
    tree = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
    victim = random_.choice(tree)
    words = victim.cmdline()
    victim.kill()
    return next((word for word in ("ipykernel_launcher", "onestep_bench.engine") if word in words), "the runner")


def main() -> int:
    """Run all rounds; the exit code."""
    random_, passed = random.Random(0), 0
    with tempfile.TemporaryDirectory(prefix="onestep-chaos-") as name:
        folder = Path(name)
        (folder / "chaos.yaml").write_text(GRID)
        began = time.monotonic()
        start(folder / "undisturbed").wait()
        seconds, expected = time.monotonic() - began, results(folder / "undisturbed")
        print(f"undisturbed: {len(expected.splitlines()) - 1} scores in {seconds:.1f} s", flush=True)
        for number in range(1, ROUNDS + 1):
            run = start(folder / str(number))
            time.sleep(random_.uniform(0.1, 0.9) * seconds)
            victim = kill_one(run, random_) if run.poll() is None else "nothing, it had ended"
            run.wait()
            code = start(folder / str(number)).wait()
            same = code == 0 and results(folder / str(number)) == expected
            passed += same
            print(f"round {number}: killed {victim}, {'same scores' if same else 'OTHER SCORES'}", flush=True)
    print(f"chaos: {passed} passed, {ROUNDS - passed} failed")
    return 0 if passed == ROUNDS else 1


if __name__ == "__main__":
    sys.exit(main())
