"""Kill training at random moments with SIGKILL: the next runs must end in the same bytes as an undisturbed one.

`make chaos` runs it: five rounds of two kills, each round in a store of its own, at moments drawn from a fixed seed.
Exits with 1 if a round ends in other bits.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS, KILLS = 5, 2
# The digest is of the weights and of every loss in the log: a critic is thrown away at the end, its losses are not.
TRAIN = """
import hashlib, sys
from onestep_bench.data import load
from onestep_bench.study import train

def trained(method, seed, kimg=24):
    digits = load("digits")
    model = train("edm", digits, size="0.05M", kimg=kimg, batch_size=64, seed=seed % 10)
    if method == "gdd":
        budget = {"kimg": kimg / 3, "batch_size": 64, "critic_channels": 16, "seed": seed}
        model = train("gdd", digits, teacher=model, init=model, **budget)
    weights = (model.artifact.folder / "model.safetensors").read_bytes()
    losses = repr([(row.step, row.losses) for row in model.history]).encode()
    return hashlib.sha256(weights + losses).hexdigest()
"""


def start(method: str, store: Path) -> subprocess.Popen:
    """A process that trains into `store`, or goes on with what is there, with a checkpoint every tenth of a second."""
    settings = {"ONESTEP_STORE": str(store), "ONESTEP_CHECKPOINT_SECONDS": "0.1", "TQDM_DISABLE": "1"}
    environment = os.environ | settings | {"OMP_NUM_THREADS": "1"}
    program = TRAIN + "print(trained(sys.argv[1], 0))"
    return subprocess.Popen([sys.executable, "-c", program, method], env=environment, stdout=subprocess.PIPE, text=True)


def finish(method: str, store: Path) -> str:
    """Train to the end; the digest it prints."""
    process = start(method, store)
    printed, _ = process.communicate()
    return "the last run failed" if process.returncode else printed.strip()


def disturb(method: str, store: Path, moments: list[float]) -> int:
    """Start and kill once for each moment, in seconds after the start; how many runs were still training."""
    killed = 0
    for moment in moments:
        process = start(method, store)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += bool(list(store.glob("model-*.partial")))
    return killed


def rounds(method: str) -> bool:
    """All rounds of one method; whether every one ended as the undisturbed run did, and any was killed in training."""
    moments, passed, total = random.Random(0), 0, 0
    with tempfile.TemporaryDirectory(prefix="onestep-chaos-") as folder:
        began = time.monotonic()
        expected = finish(method, Path(folder) / "undisturbed")
        seconds = time.monotonic() - began
        print(f"{method}, undisturbed: {expected[:16]} in {seconds:.1f} s", flush=True)
        for number in range(1, ROUNDS + 1):
            store = Path(folder) / str(number)
            # GDD's second kill goes on from the first's teacher, so late moments are in GDD's own training.
            killed = disturb(method, store, [moments.uniform(0.3, 0.6) * seconds for _ in range(KILLS)])
            total += killed
            found = finish(method, store)
            passed += found == expected
            verdict = "same bits" if found == expected else f"OTHER BITS: {found[:64]}"
            print(f"{method}, round {number}: killed {killed} times while training, {verdict}", flush=True)
    print(f"chaos of {method}: {passed} of {ROUNDS} rounds passed, {total} kills while training")
    return passed == ROUNDS and total > 0


def main() -> int:
    """Run all rounds; the exit code."""
    return 0 if all([rounds(method) for method in ("edm", "gdd")]) else 1


if __name__ == "__main__":
    sys.exit(main())
