"""Kernels start here, at two seconds each: a few runs, each held to many claims."""

import functools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest
from grids.tiny import executed, grid_file, notebook, recording, row

from onestep_bench import engine
from onestep_bench.engine import run
from onestep_bench.errors import OnestepError
from onestep_bench.files import write_json
from onestep_bench.grid import Cell, Status, executed_path, failed_path, read_grid, read_stamp
from onestep_bench.report import read_rows, render

HERE = "import os, pathlib\nassert pathlib.Path.cwd().name == 'notebooks'\nprint(os.environ.get('ONESTEP_STORE'))"


def test_a_failure_stops_its_dependants_only_and_the_next_run_does_the_rest(tmp_path, capsys):
    notebooks = tmp_path / "notebooks"
    notebook(notebooks / "good.ipynb", "seed = 0\nsize = '1M'", HERE, recording())
    notebook(notebooks / "bad.ipynb", "seed = 0", "raise ValueError('no luck\\nat all')")
    notebook(notebooks / "killed.ipynb", "seed = 0", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)")
    path = grid_file(
        tmp_path,
        "name: tiny\nstages:\n"
        "  bad: {notebook: bad.ipynb}\n"
        "  after: {notebook: good.ipynb, needs: [bad]}\n"
        "  good: {notebook: good.ipynb, parameters: {seed: 1}}\n"
        "  killed: {notebook: killed.ipynb}\n",
    )
    grid = read_grid(path)
    cells = {cell.id: cell for cell in grid.cells}
    leftover = grid.executed / ".good.partial.ipynb"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("{")

    statuses = {status.cell.id: status for status in run(grid, store=tmp_path / "store")}

    assert {name: status.state for name, status in statuses.items()} == {
        "bad": "failed",
        "after": "skipped",
        "killed": "failed",
        "good": "done",
    }
    assert statuses["bad"].why == "ValueError: no luck"
    assert statuses["after"].why == "needs bad"
    assert "SIGKILL" in statuses["killed"].why
    assert sorted(file.name for file in grid.executed.iterdir()) == [
        "bad.failed.ipynb",
        "good.ipynb",
        "killed.failed.ipynb",
    ]
    stamp = read_stamp(executed_path(cells["good"], grid.executed))
    assert stamp["digest"] == cells["good"].digest
    assert stamp["parameters"] == {"seed": 1}
    assert stamp["seconds"] == statuses["good"].seconds > 0
    assert str(tmp_path / "notebooks") not in executed_path(cells["good"], grid.executed).read_text()
    assert str(tmp_path / "store") in executed_path(cells["good"], grid.executed).read_text()
    assert read_rows(grid.executed)["seed"].tolist() == [1]
    told = capsys.readouterr().out
    assert f"ValueError: no luck  see {failed_path(cells['bad'], grid.executed)}" in told
    assert "skipped  after (needs bad)" in told

    notebook(notebooks / "bad.ipynb", "seed = 0", "'better luck'")
    path.write_text(path.read_text().replace("  killed: {notebook: killed.ipynb}\n", ""))
    failed_path(cells["killed"], grid.executed).unlink()
    before = executed_path(cells["good"], grid.executed).stat().st_mtime_ns
    assert {status.state for status in run(read_grid(path))} == {"done"}
    assert executed_path(cells["good"], grid.executed).stat().st_mtime_ns == before
    assert not list(grid.executed.glob("*.failed.ipynb"))
    assert "running  good\n" not in capsys.readouterr().out


def test_skipping_reaches_the_dependants_of_dependants(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "execute", lambda cell, folder, environment: Status(cell, "failed"))
    cells = [Cell(name, tmp_path, {}, needs, name, name) for name, needs in [("a", ()), ("b", ("a",)), ("c", ("b",))]]
    ends = [(status.cell.id, status.state, status.why) for status in engine.run_cells(cells, tmp_path, {})]
    assert ends == [("a", "running", ""), ("a", "failed", ""), ("b", "skipped", "needs a"), ("c", "skipped", "needs b")]


def test_an_interrupted_and_a_killed_run_go_on_where_they_were(tmp_path):
    slow = tmp_path / "slow"
    waiting = (
        "import os, pathlib, time\n"
        f"slow = pathlib.Path({str(slow)!r})\n"
        "if seed == 1 and slow.exists():\n"
        "    slow.with_suffix('.pids').write_text(f'{os.getppid()} {os.getpid()}')\n"
        "    time.sleep(60)"
    )
    notebook(tmp_path / "notebooks" / "model.ipynb", "seed = 0\nsize = '1M'", waiting, recording())
    path = grid_file(tmp_path, "name: tiny\nstages: {model: {notebook: model.ipynb, over: {seed: [0, 1]}}}")
    results = tmp_path / "reports" / "tiny" / "notebooks"
    slow.touch()

    interrupted = start(path)
    worker, kernel = pids(slow)
    interrupted.send_signal(signal.SIGINT)
    output, errors = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130
    assert errors == "onestep-bench: interrupted; the same command goes on from here\n"
    assert wait(lambda: not alive(worker) and not alive(kernel))
    assert [file.name for file in results.iterdir()] == ["model-seed=0.ipynb"]

    killed = start(path)
    worker, kernel = pids(slow)
    killed.kill()
    output = killed.communicate(timeout=60)[0]
    assert "1 done, 1 to do" in output
    assert wait(lambda: not alive(worker) and not alive(kernel))

    slow.unlink()
    finished = start(path)
    output, errors = finished.communicate(timeout=60)
    assert finished.returncode == 0, errors
    assert sorted(file.name for file in results.iterdir()) == ["model-seed=0.ipynb", "model-seed=1.ipynb"]
    undisturbed = [row(seed=seed, fid=100.0 / (1 + seed), size="1M") for seed in (0, 1)]
    executed(tmp_path / "other" / "all.ipynb", undisturbed)
    render(tmp_path / "other")
    assert (results.parent / "results.csv").read_bytes() == (tmp_path / "other" / "results.csv").read_bytes()


def start(path: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "onestep_bench.cli", "run", str(path)]
    # A shell starts background jobs with interrupts ignored, and all their children inherit that: the tests may be one.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)


def pids(slow: Path) -> tuple[int, int]:
    """Process ids of the worker and of the kernel that sleeps."""
    file = slow.with_suffix(".pids")
    assert wait(lambda: file.exists() and " " in file.read_text(), seconds=60)
    worker, kernel = file.read_text().split()
    file.unlink()
    return int(worker), int(kernel)


def wait(true: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody reaps does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_second_run_of_the_same_folder_is_refused(tmp_path):
    notebook(tmp_path / "notebooks" / "model.ipynb", "seed = 0")
    grid = read_grid(grid_file(tmp_path, "name: tiny\nstages: {model: {notebook: model.ipynb}}"))
    grid.executed.mkdir(parents=True)
    with (
        filelock.FileLock(grid.out / ".lock"),
        pytest.raises(OnestepError, match=r"another run is writing .*tiny; wait for it, or use another --out"),
    ):
        run(grid)
    assert not list(grid.executed.iterdir())


def test_a_missing_kernel_is_a_failed_cell_with_its_name(tmp_path):
    source = notebook(tmp_path / "notebooks" / "model.ipynb", "seed = 0")
    content = json.loads(source.read_text())
    content["metadata"]["kernelspec"]["name"] = "julia"
    write_json(source, content)
    grid = read_grid(grid_file(tmp_path, "name: tiny\nstages: {model: {notebook: model.ipynb}}"))
    (status,) = run(grid)
    assert status.state == "failed"
    assert "julia" in status.why
    assert failed_path(status.cell, grid.executed).exists()


def test_an_unwritable_folder_is_one_line(tmp_path):
    notebook(tmp_path / "notebooks" / "model.ipynb", "seed = 0")
    path = grid_file(tmp_path, "name: tiny\nstages: {model: {notebook: model.ipynb}}")
    (tmp_path / "shut").write_text("a file, below which not even root makes folders")
    with pytest.raises(OnestepError, match=r"cannot write .*shut"):
        run(read_grid(path, out=tmp_path / "shut" / "tiny"))
