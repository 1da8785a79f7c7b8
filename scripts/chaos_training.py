"""Kill training at random moments with SIGKILL: the next runs must end in the same bytes as an undisturbed one.

`make chaos` runs it: five rounds of two kills, each round in a store of its own, at moments drawn from a fixed seed.
Exits with 1 if a round ends in other weights.
"""

import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS, KILLS = 5, 2
TRAIN = """
from onestep_bench.data import load
from onestep_bench.study import train
train("edm", load("digits"), size="0.05M", kimg=24, batch_size=64)
"""


def start(store: Path) -> subprocess.Popen:
    """A process that trains into `store`, or goes on with what is there, with a checkpoint every tenth of a second."""
    settings = {"ONESTEP_STORE": str(store), "ONESTEP_CHECKPOINT_SECONDS": "0.1", "TQDM_DISABLE": "1"}
    return subprocess.Popen([sys.executable, "-c", TRAIN], env=os.environ | settings | {"OMP_NUM_THREADS": "1"})


def finish(store: Path) -> str:
    """Train to the end; the SHA-256 of the weights."""
    if start(store).wait() != 0:
        return "the last run failed"
    models = list(store.glob("model-*/model.safetensors"))
    if len(models) != 1:
        return f"{len(models)} models in the store"
    return hashlib.sha256(models[0].read_bytes()).hexdigest()


def disturb(store: Path, moments: list[float]) -> int:
    """Start and kill once for each moment, in seconds after the start; how many runs were still training."""
    killed = 0
    for moment in moments:
        process = start(store)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += bool(list(store.glob("model-*.partial")))
    return killed


def main() -> int:
    """Run all rounds; the exit code."""
    moments, passed, total = random.Random(0), 0, 0
    with tempfile.TemporaryDirectory(prefix="onestep-chaos-") as folder:
        began = time.monotonic()
        expected = finish(Path(folder) / "undisturbed")
        seconds = time.monotonic() - began
        print(f"undisturbed: {expected[:16]} in {seconds:.1f} s", flush=True)
        for number in range(1, ROUNDS + 1):
            store = Path(folder) / str(number)
            killed = disturb(store, [moments.uniform(0.3, 0.6) * seconds for _ in range(KILLS)])
            total += killed
            found = finish(store)
            passed += found == expected
            verdict = "same weights" if found == expected else f"OTHER WEIGHTS: {found[:64]}"
            print(f"round {number}: killed {killed} times while training, {verdict}", flush=True)
    failed = ROUNDS - passed
    if not total:
        print("chaos: no run was killed while it trained, so nothing was tested")
        return 1
    print(f"chaos: {passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
