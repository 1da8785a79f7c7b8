"""A grid of a thousand cells on two workers while its processes are killed every few seconds: what that leaves behind.

`make soak` runs it: half an hour on two cores, or until the grid is done. Most cells do nothing, one in twenty trains
with checkpoints. First one run on two workers; then two runs at once, on a worker each; then a run on a scheduler and
workers of their own, with the user's certificate; at last one run of which only cells and kernels are killed, so that
it lives long enough to see what grows. Whatever is killed, or ends with cells missing, is started again. Exits with 1
if a promise is broken.
"""

import argparse
import json
import os
import platform
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from statistics import median

import psutil
from chaos_grid import environment, family, outliving, start, write_notebook
from chaos_training import TRAIN
from distributed import Security

PIECES = 10  # stages of each kind, so that trainings are spread over the run
TRAININGS = 20  # cells to one that trains
KIMG = 6  # of a teacher; of a student a third
# Between two kills, by the time that cells take: a few seconds on an idle machine, and on a busy one, or where only
# trainings are left, not so few that no cell could ever end.
PAUSE = (1.0, 3.0)
WEIGHTS = {"kernel": 5, "papermill": 4, "worker": 3, "runner": 1, "scheduler": 1}
GENTLE = {"kernel": 1, "papermill": 1}
# Shares of the time at which the next part begins: two runs, a scheduler of its own, the last run.
TWO, OWN, LAST = 0.3, 0.55, 0.75
SETTLED = 10.0  # seconds from the start of a process to the first sample that its growth is counted from
FILES, MEMORY = 20, 100e6  # that a process may grow by
KEPT = Path("reports/soak/log")  # what the runs told, if a promise is broken


def write_grid(folder: Path, cells: int) -> dict[str, tuple[str, int]]:
    """The grid's file and notebooks; the trainings, {cell: (method, seed)}."""
    write_notebook(folder / "tiny.ipynb", "seed = 0", "print(seed * seed)")
    write_notebook(folder / "train.ipynb", "seed = 0\nmethod = 'edm'", TRAIN + f"print(trained(method, seed, {KIMG}))")
    lines, trainings = ["name: soak", "stages:"], {}
    count = max(2, cells // TRAININGS)
    jobs = [
        ("edm", seed) if i % 5 == 0 else ("gdd", seed) for i in range(count) for seed in [i // 5 if i % 5 == 0 else i]
    ]
    tiny = list(range(cells - count))
    for piece in range(PIECES):
        if seeds := tiny[piece::PIECES]:
            lines.append(f"  tiny{piece}: {{notebook: tiny.ipynb, over: {{seed: {seeds}}}}}")
        for method, seed in jobs[piece::PIECES]:
            lines.append(f"  {method}{seed}: {{notebook: train.ipynb, parameters: {{method: {method}, seed: {seed}}}}}")
            trainings[f"{method}{seed}"] = (method, seed)
    (folder / "soak.yaml").write_text("\n".join(lines) + "\n")
    return trainings


def own_certificate(folder: Path) -> dict[str, str]:
    """A certificate that is its own authority, and its key, as a user tells Dask of them: environment variables."""
    own = Security.temporary()
    told = {"CA_FILE": own.tls_ca_file}
    for role in ("CLIENT", "SCHEDULER", "WORKER"):
        told |= {f"{role}__CERT": own.tls_client_cert, f"{role}__KEY": own.tls_client_key}
    folder.mkdir(mode=0o700)
    for name, text in told.items():
        (folder / name).write_text(text)
    return {f"DASK_DISTRIBUTED__COMM__TLS__{name}": str(folder / name) for name in told}


def undisturbed(folder: Path, trainings: dict[str, tuple[str, int]]) -> dict[str, str]:
    """What the trainings print in one process that nobody kills, {cell: digest}."""
    program = TRAIN + f"\nfor word in sys.argv[1:]:\n    print(trained(word[:3], int(word[3:]), {KIMG}))"
    words = [sys.executable, "-c", program, *(f"{method}{seed}" for method, seed in trainings.values())]
    told = subprocess.run(words, env=environment(folder / "calm"), check=True, stdout=subprocess.PIPE, text=True)
    return dict(zip(trainings, told.stdout.split(), strict=True))


class Soak:
    """The run, or runs, of the grid in a folder; what was killed, how runs ended, what their processes held."""

    def __init__(self, folder: Path, seconds: float):
        self.folder, self.began, self.seconds = folder, time.monotonic(), seconds
        self.random = random.Random(0)
        self.runs: list[subprocess.Popen] = []
        self.cluster: list[subprocess.Popen] = []
        self.part = ""
        self.kills, self.ends, self.orphans = Counter(), Counter(), 0
        self.samples: dict[tuple[str, int], list[tuple[float, int, int]]] = defaultdict(list)

    def done(self) -> int:
        """How many cells are done."""
        return sum(not path.name.endswith(".failed.ipynb") for path in (self.folder / "out/notebooks").glob("*.ipynb"))

    def disturb(self, cells: int) -> None:
        """Keep the grid running and kill, until a run ends with every cell done."""
        told = -1
        while not (self.ends[0] and self.done() == cells):
            self.turn()
            self.keep_running()
            time.sleep(self.random.uniform(*PAUSE) * self.pace())
            self.sample()
            self.kill(GENTLE if self.part == "last run" else WEIGHTS)
            if (minute := int(self.clock() / 60)) > told:
                told = minute
                print(
                    f"{minute:3d} min, {self.part}: {self.done()} of {cells} cells, {sum(self.kills.values())} kills",
                    flush=True,
                )
        self.stop()

    def pace(self) -> float:
        """Seconds of a cell, as of late."""
        done = [path for path in (self.folder / "out/notebooks").glob("*.ipynb") if ".failed" not in path.name]
        done.sort(key=lambda path: path.stat().st_mtime)
        return median([stamp(path)["seconds"] for path in done[-9:]] or [3.0])

    def clock(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def turn(self) -> None:
        """Begin the next part if it is time: what runs is killed."""
        share = self.clock() / self.seconds
        part = (
            "one run" if share < TWO else "two runs" if share < OWN else "own scheduler" if share < LAST else "last run"
        )
        if part != self.part:
            self.stop()
            self.part = part

    def stop(self) -> None:
        """Kill the runs, and end the cluster; what does not end with them is an orphan."""
        for run in self.runs:
            if run.poll() is None:
                run.kill()
                self.kills["runner"] += 1
        self.end_cluster(patience=0)
        self.runs, self.cluster = [], []
        self.orphans += self.left()

    def left(self) -> int:
        """How many processes outlive the runs for half a minute; they are ended."""
        there = [process for found in family(self.folder).values() for process in found]
        left = outliving(there, 30)
        for process in left:
            print(f"ORPHAN: {process}", flush=True)
            process.kill()
        return len(left)

    def keep_running(self) -> None:
        """Start what is missing."""
        for run in [run for run in self.runs if run.poll() is not None]:
            self.ends[run.returncode] += 1
            self.runs.remove(run)
        where = ["--workers", "2" if self.part != "two runs" else "1"]
        if self.part == "own scheduler":
            where = ["--scheduler", self.scheduler()]
        while len(self.runs) < (2 if self.part == "two runs" else 1) and not (self.ends[0] and not self.runs):
            self.runs.append(self.run(where))

    def run(self, where: list[str]) -> subprocess.Popen:
        """A run of the grid, or of the rest of it."""
        folders = ["--notebooks", str(self.folder), "--out", str(self.folder / "out")]
        with open(self.folder / "log", "ab") as log:
            return start(self.folder, "run", str(self.folder / "soak.yaml"), *folders, *where, log=log)

    def scheduler(self) -> str:
        """The address of a scheduler with two workers, started if it is not there."""
        if self.cluster and self.cluster[0].poll() is None:
            return self.address
        self.end_cluster(patience=60)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"tls://127.0.0.1:{port}"
        words = ["scheduler", "--protocol", "tls", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
        worker = ["worker", self.address, "--nthreads", "1", "--no-dashboard", "--death-timeout", "30"]
        self.cluster = [self.dask(words), self.dask(worker), self.dask(worker)]
        return self.address

    def end_cluster(self, patience: float) -> None:
        """Let scheduler and workers end by themselves for so many seconds, then end them."""
        for process in outliving([psutil.Process(one.pid) for one in self.cluster if one.poll() is None], patience):
            process.terminate()

    def dask(self, words: list[str]) -> subprocess.Popen:
        """One of Dask's own commands."""
        command = [sys.executable, "-m", f"distributed.cli.dask_{words[0]}", *words[1:]]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, env=environment(self.folder), cwd=self.folder, **quiet)

    def kill(self, weights: dict[str, int]) -> None:
        """SIGKILL one process, if a notebook is being executed: else a slow machine would never come so far."""
        found = family(self.folder)
        kinds = sorted(found.keys() & weights)
        if not found["kernel"] or not list((self.folder / "out/notebooks").glob("tiny*.ipynb")):
            return
        kind = self.random.choices(kinds, [weights[kind] for kind in kinds])[0]
        victim = self.random.choice(found[kind])
        try:
            victim.kill()
        except psutil.NoSuchProcess:  # it ended by itself
            return
        self.kills[kind] += 1

    def sample(self) -> None:
        """Note memory and open files of what lives long, while cells are executed: a report wants its own."""
        found = family(self.folder)
        if not found["papermill"]:
            return
        for kind, processes in found.items():
            for process in processes if kind in ("runner", "scheduler", "worker") else ():
                try:
                    numbers = process.memory_info().rss, process.num_fds()
                except psutil.NoSuchProcess:
                    continue
                if time.time() - process.create_time() > SETTLED:
                    self.samples[kind, process.pid].append((time.monotonic(), *numbers))

    def growth(self) -> list[tuple[str, float, int, int, int, int]]:
        """(kind, seconds, memory first and last, files first and last) of the longest-lived process of each kind."""
        longest = {}
        for (kind, _), found in self.samples.items():
            longest[kind] = max(longest.get(kind, []), found, key=lambda rows: rows[-1][0] - rows[0][0] if rows else -1)
        return [(kind, r[-1][0] - r[0][0], r[0][1], r[-1][1], r[0][2], r[-1][2]) for kind, r in sorted(longest.items())]


def stamp(path: Path) -> dict:
    """What the engine wrote into an executed notebook."""
    return json.loads(path.read_text())["metadata"]["onestep_bench"]


def printed(path: Path) -> str:
    """What the last cell of an executed notebook printed."""
    outputs = json.loads(path.read_text())["cells"][-1]["outputs"]
    return "".join("".join(output.get("text", "")) for output in outputs).strip()


def overhead(folder: Path, slots: int = 2) -> list[tuple[float, float]]:
    """(seconds of a cell that does nothing, seconds of its worker between two cells), of the first and last tenth."""
    done = [(path.stat().st_mtime, stamp(path)) for path in folder.glob("tiny*.ipynb")]
    done.sort(key=lambda one: one[0])
    tenth = max(5, len(done) // 10)
    found = []
    for part in (done[:tenth], done[-tenth:]):
        cell = median(stamp["seconds"] for _, stamp in part)
        turn = median(b[0] - a[0] for a, b in pairwise(part)) * slots
        found.append((cell, turn - cell))
    return found


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--cells", type=int, default=1000)
    options = parser.parse_args()
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="onestep-soak-") as name:
        folder = Path(name)
        os.environ |= {"ONESTEP_CHECKPOINT_SECONDS": "0.2", "TMPDIR": str(folder / "tmp"), "TQDM_DISABLE": "1"}
        (folder / "tmp").mkdir()
        os.environ |= own_certificate(folder / "certificate")
        trainings = write_grid(folder, options.cells)
        expected = undisturbed(folder, trainings)
        print(f"{len(expected)} trainings, undisturbed: done", flush=True)
        soak = Soak(folder, options.minutes * 60)
        soak.disturb(options.cells)
        broken = tell(soak, options.cells, expected)
        loads = f"load {busy:.1f} before, {os.getloadavg()[0]:.1f} at the end"
        print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {loads}")
        if broken:
            KEPT.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / "log", KEPT)
            print(f"what the runs told: {KEPT}")
    print(f"soak: {'BROKEN: ' + ', '.join(broken) if broken else 'every promise held'}")
    return 1 if broken else 0


def tell(soak: Soak, cells: int, expected: dict[str, str]) -> list[str]:
    """Print the table; the promises that were broken."""
    folder, executed = soak.folder, soak.folder / "out/notebooks"
    same = sum(printed(executed / f"{cell}.ipynb") == digest for cell, digest in expected.items())
    tiny = [path for path in executed.glob("tiny*.ipynb")]
    right = sum(int(printed(path)) == stamp(path)["parameters"]["seed"] ** 2 for path in tiny)
    damaged = start(folder, "store", "verify").wait() or len(list((folder / "store").glob("*.damaged")))
    half = [
        path
        for pattern in (
            "store/*.partial",
            "store/*/.*",
            "out/notebooks/.*",
            "out/notebooks/*.failed.ipynb",
            "out/.cells/*/",
        )
        for path in folder.glob(pattern)
    ]
    tracebacks = (folder / "log").read_text(errors="replace").count("Traceback")
    (first, gap), (last, last_gap) = overhead(executed)
    growth = soak.growth()
    rows = [
        ("cells done", f"{soak.done()} of {cells} in {soak.clock() / 60:.1f} min"),
        (
            "kills survived",
            f"{sum(soak.kills.values())}: " + ", ".join(f"{n} {kind}" for kind, n in soak.kills.most_common()),
        ),
        ("runs that ended", ", ".join(f"{n} with {code}" for code, n in sorted(soak.ends.items()))),
        ("trainings equal to undisturbed ones", f"{same} of {len(expected)}, weights and losses to the bit"),
        ("other cells right", f"{right} of {len(tiny)}"),
        ("artifacts damaged", str(damaged)),
        ("half-written files left", str(len(half))),
        ("tracebacks told", str(tracebacks)),
        ("a cell that does nothing", f"{first:.2f} s at the start, {last:.2f} s at the end (median)"),
        ("its worker between two cells", f"{gap:.2f} s at the start, {last_gap:.2f} s at the end (median)"),
        *(
            (
                f"growth of a {kind}",
                f"{a / 1e6:.0f} to {b / 1e6:.0f} MB, {f} to {g} files in {s:.0f} s (the longest life)",
            )
            for kind, s, a, b, f, g in growth
        ),
        ("temporary folders of cells left", str(len(list((folder / "tmp").glob(f"onestep-*/{'?' * 16}"))))),
        ("orphans left", str(soak.orphans)),
    ]
    for name, text in rows:
        print(f"| {name:36} | {text} |", flush=True)
    promises = {
        "cells missing": soak.done() == cells,
        "other results": same == len(expected) and right == len(tiny),
        "damaged artifacts": not damaged,
        "half-written files": not half,
        "tracebacks": not tracebacks,
        "orphans": not soak.orphans,
        "files grow": all(g - f <= FILES for _, _, _, _, f, g in growth),
        "memory grows": all(b - a <= MEMORY for _, _, a, b, _, _ in growth),
    }
    return [name for name, held in promises.items() if not held]


if __name__ == "__main__":
    sys.exit(main())
