"""The check list of a machine with a GPU: what fake tensors and CPUs cannot tell. `make gpu`, or

    python scripts/gpu.py [PART ...] [--again] [--minutes 8]

Parts, of a few minutes each: `methods`, every method's losses over 200 steps on the GPU, in fp32 and in bf16, against
those of the CPU in fp32, from the same draws; `resume`, the same bits after an interruption; `compile`, the same losses
compiled; `ranks`, two ranks by NCCL against one process; `throughput`, `benchmarks/throughput.py`; `grid`, the first
minutes of params/cifar10-30min.yaml, which the same command goes on with. Each writes PART.json into
reports/gpu/DEVICE/ and is left out where that exists, unless named with --again; report.md there has them all.
Ends with 1 where a part found a fault, and at once on a machine without a GPU.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from throughput import Job, made  # noqa: E402

from onestep_bench import methods  # noqa: E402
from onestep_bench.seeds import Draw  # noqa: E402
from onestep_bench.training import loop, ranks, speed  # noqa: E402
from onestep_bench.training.source import Source  # noqa: E402

STEPS, BATCH = 200, 32
# Largest differences that count as equal: of the first loss, and of the mean over all steps; relative.
CLOSE = {"fp32": (1e-3, 0.03), "bf16": (0.05, 0.15)}
SIZE = "7.0M"  # of what is resumed, compiled and shared: as large as what is worth a GPU
GRID = ROOT / "params" / "cifar10-30min.yaml"


class HostDraw(Draw):
    """A step's random numbers as a CPU draws them, whatever device they are for."""

    def __init__(self, *arguments, device="cpu", **options):
        super().__init__(*arguments, device="cpu", **options)
        self.wanted = torch.device(device)

    def normal(self, *arguments):
        """As Draw's."""
        return super().normal(*arguments).to(self.wanted)

    def uniform(self, *arguments, **options):
        """As Draw's."""
        return super().uniform(*arguments, **options).to(self.wanted)

    def integers(self, *arguments):
        """As Draw's."""
        return super().integers(*arguments).to(self.wanted)


class _Stop(Exception):
    pass


def losses(job: Job, device: str, steps: int, *, precision: str = "fp32", stop_at: int = 0, **how) -> list[float]:
    """The student's loss of every step of a run. stop_at: step that never ends. how: further arguments of `fit`."""

    def after(step: int) -> None:
        if step == stop_at:
            raise _Stop

    # On a CPU there is one precision, and it is not asked for.
    training = job.training(steps, BATCH, **({"precision": precision} if device == "cuda" else {}))
    rows = loop.fit(
        job.method.objective(job.nets, job.config),
        job.trained,
        Source(job.images, None, job.noise, device),
        training,
        seed=0,
        adams=job.method.adams(job.config, training.betas),
        networks=job.asked,
        after={step: partial(after, step) for step in range(1, steps + 1)},  # which has a log row each
        **how,
    )
    return [row.loss for row in rows]


def distances(found: list[float], expected: list[float]) -> dict:
    """Of two loss curves: relative differences of their first values and of their means."""
    mean, wanted = (sum(values) / len(values) for values in (found, expected))
    return {"first": abs(found[0] / expected[0] - 1), "mean": abs(mean / wanted - 1)}


def check_methods(device: str, steps: int = STEPS) -> dict:
    """Every method in either precision against the CPU."""
    plain, loop.Draw = loop.Draw, HostDraw
    try:
        return {
            "rows": [_against_cpu(name, precision, device, steps) for name in methods.names() for precision in CLOSE]
        }
    finally:
        loop.Draw = plain


_expected: dict[str, list[float]] = {}


def _against_cpu(name: str, precision: str, device: str, steps: int) -> dict:
    if name not in _expected:
        _expected[name] = losses(made(name, "0.05M", "cpu", images=256), "cpu", steps)
    began = time.monotonic()
    found = losses(made(name, "0.05M", device, images=256), device, steps, precision=precision)
    row = distances(found, _expected[name])
    first, mean = CLOSE[precision]
    common = {"method": name, "precision": precision, "seconds": time.monotonic() - began}
    return common | row | {"fine": row["first"] <= first and row["mean"] <= mean}


def check_resume(device: str, size: str = SIZE, steps: int = 30) -> dict:
    """A run that was interrupted half way, against one that was not: to the bit where kernels repeat themselves."""
    rows = []
    for exact in (True, False):
        os.environ[speed.DETERMINISTIC] = "1" if exact else "0"
        with tempfile.TemporaryDirectory() as folder:
            place = {"checkpoint": Path(folder) / "checkpoint.pt", "checkpoint_seconds": 0}
            whole = losses(made("edm", size, device), device, steps, precision="auto")
            with contextlib.suppress(_Stop):
                losses(made("edm", size, device), device, steps, precision="auto", stop_at=steps // 2, **place)
            # Other weights: those of the checkpoint must come.
            half = losses(made("edm", size, device, seed=1), device, steps, precision="auto", **place)
            off = max(abs(a - b) / abs(b) for a, b in zip(half, whole, strict=True))
        rows.append({"deterministic": exact, "largest difference": off, "fine": off == 0 or (not exact and off < 0.05)})
    del os.environ[speed.DETERMINISTIC]
    return {"rows": rows}


def check_compile(device: str, size: str = SIZE, steps: int = 20) -> dict:
    """Losses of compiled networks against those of the same ones eager, all methods in one process; no graph twice."""
    rows = []
    plain = loop.sped_up
    try:
        for name in methods.names():
            curves, seconds = {}, {}
            for compiled in (False, True):
                loop.sped_up = lambda run, asked, compiled=compiled: speed.sped_up(run, asked, compiled=compiled)
                torch._dynamo.utils.counters.clear()
                began = time.monotonic()
                curves[compiled] = losses(made(name, size, device, dropout=0.0), device, steps, precision="bf16")
                seconds[compiled] = time.monotonic() - began
            counted = torch._dynamo.utils.counters
            row = distances(curves[True], curves[False])
            row |= {"graphs": counted["stats"]["unique_graphs"], "breaks": sum(counted["graph_break"].values())}
            row["fine"] = row["first"] <= CLOSE["bf16"][0] and row["mean"] <= CLOSE["bf16"][1]
            rows.append({"method": name, "seconds more": seconds[True] - seconds[False]} | row)
    finally:
        loop.sped_up = plain
    return {"rows": rows}


def check_ranks(device: str, steps: int = 30) -> dict:
    """Two ranks, each on a GPU of its own, against one process."""
    if torch.cuda.device_count() < 2:
        return {"rows": [], "note": "not run: this machine shows one GPU"}
    with tempfile.TemporaryDirectory() as folder:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [*torchrun, __file__, "--rank", folder, "--steps", str(steps)]
        subprocess.run(command, check=True, timeout=500)
        curves = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(2)]
    row = distances(curves[0], losses(made("edm", SIZE, device, dropout=0.0), device, steps))
    equal = curves[0] == curves[1]
    return {"rows": [{"ranks": 2, "equal on both": equal} | row | {"fine": equal and row["mean"] <= CLOSE["fp32"][1]}]}


def rank(folder: Path, steps: int) -> None:
    """What each of the two does."""
    own = str(ranks.device())
    torch.cuda.set_device(own)
    found = losses(made("edm", SIZE, "cuda", dropout=0.0), "cuda", steps)
    (folder / f"{ranks.index()}.json").write_text(json.dumps(found))


def check_throughput(device: str) -> dict:
    """The table, of the teacher at three sizes and of three methods at one."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        sizes = ["--sizes", "7.0M", "15.7M", "61.8M"] if device == "cuda" else ["--sizes", "0.05M"]
        command = [sys.executable, str(ROOT / "benchmarks" / "throughput.py"), *sizes, "--json", str(file)]
        done = subprocess.run([*command, "--device", device], capture_output=True, text=True, check=False)
        if done.returncode:
            return {"rows": [{"error": done.stderr[-500:], "fine": False}]}
        document = json.loads(file.read_text())
    rows = [row | {"fine": "error" not in row} for row in document.pop("rows")]
    return document | {"rows": rows, "table": done.stdout}


def check_grid(device: str, minutes: float) -> dict:
    """So many minutes of the grid; it keeps where it is, and this part is never done with."""
    if not GRID.exists():
        return {"rows": [], "note": f"not run: there is no {GRID.relative_to(ROOT)}"}
    command = [sys.executable, "-m", "onestep_bench.cli", "run", str(GRID)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        code, state = process.wait(60 * minutes), "whole"
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        code, state = process.wait(120), "under way; the same command goes on with it"
    return {"rows": [{"grid": GRID.stem, "state": state, "exit code": code, "fine": state != "whole" or code == 0}]}


def folder_of(name: str) -> Path:
    """Where the results of a device lie."""
    return ROOT / "reports" / "gpu" / re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-")


def report(folder: Path, device: str) -> str:
    """All parts that were run, as a page."""
    lines = [f"# {device}", "", f"torch {torch.__version__}, CUDA {torch.version.cuda}. Made by `scripts/gpu.py`.", ""]
    for part in PARTS:
        if not (folder / f"{part}.json").exists():
            lines += [f"## {part}", "", "Not run.", ""]
            continue
        found = json.loads((folder / f"{part}.json").read_text())
        summary = (PARTS[part].__doc__ or "").split("\n")[0]
        lines += [f"## {part}", "", f"{summary} {found.get('seconds', 0):.0f} s.", "", *_lines(found), ""]
    return "\n".join(lines)


def _lines(found: dict) -> list[str]:
    if "table" in found:
        return ["```", found["table"].rstrip(), "```"]
    if not found["rows"]:
        return [found.get("note", "Nothing.")]
    names = list(found["rows"][0])
    body = [" | ".join(_told(row.get(name)) for name in names) for row in found["rows"]]
    return [f"| {line} |" for line in (" | ".join(names), " | ".join("---" for _ in names), *body)]


def _told(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


PARTS: dict[str, Callable[..., dict]] = {
    "methods": check_methods,
    "resume": check_resume,
    "compile": check_compile,
    "ranks": check_ranks,
    "throughput": check_throughput,
    "grid": check_grid,
}


def main() -> int:
    """Parse, check, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help="by default all")
    parser.add_argument("--again", action="store_true", help="also those whose results are there")
    parser.add_argument("--minutes", type=float, default=8.0, help="for the grid")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=30, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"error: torch {torch.__version__} sees no GPU here; this is for a machine that has one", file=sys.stderr)
        return 1
    if arguments.rank:
        rank(arguments.rank, arguments.steps)
        return 0
    device = torch.cuda.get_device_name()
    folder = folder_of(device)
    folder.mkdir(parents=True, exist_ok=True)
    faults = []
    for part in arguments.parts or PARTS:
        file = folder / f"{part}.json"
        if file.exists() and part != "grid" and not arguments.again:
            print(f"{part}: was run before, see {file}")
            continue
        began = time.monotonic()
        options = {"minutes": arguments.minutes} if part == "grid" else {}
        found = PARTS[part]("cuda", **options)
        found |= {"device": device, "torch": torch.__version__, "seconds": time.monotonic() - began}
        file.write_text(json.dumps(found, indent=1) + "\n")
        (folder / "report.md").write_text(report(folder, device) + "\n")
        bad = [row for row in found["rows"] if not row["fine"]]
        faults += bad
        count = len(found["rows"])
        print(f"{part}: {found.get('note') or f'{len(bad)} of {count} at fault'}", flush=True)
    print(f"see {folder / 'report.md'}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
