"""Time a grid of a fast notebook, two cells at a time, against bare papermill; and the plan of a thousand cells.

python benchmarks/engine.py [CELLS]

Bare papermill runs half of its cells before and half after the grid, so that a machine that becomes busy meets both.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat

WORKERS = 2
TAGGED = {"tags": ["parameters"]}
SETTINGS = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}


def write_notebook(path: Path, marks: Path) -> None:
    """A notebook that leaves a file of its seed, and fails if there is one."""
    cells = [
        nbformat.v4.new_code_cell("seed = 0\nlr = 0.1\nkimg = 1", metadata=TAGGED),
        nbformat.v4.new_code_cell(f"import pathlib\n(pathlib.Path({str(marks)!r}) / str(seed)).touch(exist_ok=False)"),
    ]
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.parent.mkdir()
    marks.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=spec), path)


def bare(notebook: Path, seeds: range) -> float:
    """Seconds that papermill takes for a cell of each seed."""

    def execute(seed: int) -> None:
        command = [sys.executable, "-m", "papermill", str(notebook), str(notebook.parent / f"out-{seed}.ipynb")]
        command += ["-p", "seed", str(seed), "--no-progress-bar", "--log-level", "ERROR"]
        subprocess.run(command, check=True, env=os.environ | SETTINGS)

    started = time.perf_counter()
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(execute, seeds))
    return time.perf_counter() - started


def onestep(command: str, grid: Path, *options: str) -> float:
    """Seconds that one command of ours takes."""
    started = time.perf_counter()
    words = [sys.executable, "-m", "onestep_bench.cli", command, str(grid), *options]
    subprocess.run(words, check=True, env=os.environ | SETTINGS, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> int:
    """Print the times and what the engine adds to a cell; 1 if that is over 10 % and half a second."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    with tempfile.TemporaryDirectory(prefix="onestep-engine-") as name:
        folder = Path(name)
        notebook, marks = folder / "notebooks" / "fast.ipynb", folder / "marks"
        write_notebook(notebook, marks)
        (folder / "params").mkdir()
        grid, thousand = folder / "params" / "grid.yaml", folder / "params" / "thousand.yaml"
        stage = "name: {}\nstages: {{fast: {{notebook: fast.ipynb, over: {}}}}}"
        grid.write_text(stage.format("grid", {"seed": list(range(count))}))
        ten = list(range(1, 11))
        thousand.write_text(stage.format("thousand", {"seed": ten, "kimg": ten, "lr": [float(i) for i in ten]}))

        before = bare(notebook, range(count, count + count // 2))
        ours = onestep("run", grid, "--workers", str(WORKERS))
        after = bare(notebook, range(count + count // 2, 2 * count))
        plan = onestep("plan", thousand)
        once = len(list((folder / "reports" / "grid" / "notebooks").glob("*.ipynb"))) == count
        whole = all(json.loads(path.read_text()) for path in (folder / "reports" / "grid" / "notebooks").glob("*"))
    theirs = before + after
    per_cell = [seconds * WORKERS / count for seconds in (theirs, ours)]
    added = per_cell[1] - per_cell[0]
    print(f"papermill      {theirs:6.1f} s, {per_cell[0]:.2f} s a cell ({before:.1f} s and {after:.1f} s a half)")
    print(f"onestep-bench  {ours:6.1f} s, {per_cell[1]:.2f} s a cell, {count} cells, each once: {once and whole}")
    print(f"ratio {ours / theirs:.3f}; {added:+.2f} s a cell, allowed {0.1 * per_cell[0] + 0.5:.2f} s")
    print(f"plan of 1000 cells: {plan:.2f} s")
    return 0 if once and whole and added < 0.1 * per_cell[0] + 0.5 else 1


if __name__ == "__main__":
    sys.exit(main())
