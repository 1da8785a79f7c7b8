"""A scheduler and workers that somebody else started, in folders of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from distributed import Client
from tiny import grid_file, notebook

from onestep_bench.grid.cells import RUNNING
from onestep_bench.grid.plan import read_grid

pytestmark = pytest.mark.slow

HOUSE = Path(__file__).parents[2]
QUICKSTART = Path(__file__).with_name("quickstart.yaml")


@pytest.fixture
def remote(tmp_path):
    """(address, workers): a Dask scheduler and two workers, each a command of its own."""
    with_package = os.environ | {"PYTHONPATH": str(HOUSE)}
    processes = []

    def start(name: str, *command: str) -> subprocess.Popen:
        (tmp_path / name).mkdir()
        with open(tmp_path / name / "log", "wb") as log:
            words = [sys.executable, "-m", "distributed.cli." + command[0], *command[1:]]
            process = subprocess.Popen(words, cwd=tmp_path / name, env=with_package, stdout=log, stderr=log)
        processes.append(process)
        return process

    file = tmp_path / "scheduler.json"
    where = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file)]
    start("scheduler", "dask_scheduler", *where, "--port", "0")
    until(file.exists)
    for name in ("one", "two"):
        start(name, "dask_worker", *where[:4], "--scheduler-file", str(file), "--nthreads", "1")
    address = json.loads(file.read_text())["address"]
    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=120)
    yield address, processes[1:]
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(60)


def run(grid: Path, remote: str, folder: Path, *options: str) -> subprocess.Popen:
    """A run from a folder of its own, with a store named by where it is seen from there."""
    folder.mkdir(exist_ok=True)
    words = [sys.executable, "-m", "onestep_bench.cli", "run", str(grid), "--scheduler", remote, "--insecure"]
    settings = os.environ | {"PYTHONPATH": str(HOUSE)}
    return subprocess.Popen(
        [*words, "--store", "store", *options],
        cwd=folder,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(true, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def cells_of(worker: subprocess.Popen) -> list[psutil.Process]:
    """The papermill processes below a worker."""
    children = psutil.Process(worker.pid).children(recursive=True)
    return [child for child in children if "onestep_bench.grid.execution" in child.cmdline()]


def test_the_grid_completes_though_a_worker_is_killed(remote, tmp_path):
    address, workers = remote
    out = tmp_path / "out"
    runner = run(QUICKSTART, address, tmp_path / "here", "--notebooks", str(HOUSE / "notebooks"), "--out", str(out))
    until(lambda: (out / "notebooks" / "teacher.ipynb").exists())
    until(lambda: all(cells_of(worker) for worker in workers))
    victims = [*psutil.Process(workers[0].pid).children(recursive=True), psutil.Process(workers[0].pid)]
    workers[0].kill()
    output, errors = runner.communicate(timeout=500)
    assert runner.returncode == 0, output + errors
    assert "2 workers, 2 cells at a time" in output
    assert "not encrypted (--insecure): whoever reaches the scheduler or a worker runs code as you\n" in output
    assert output.count("done     ") == 4
    _, alive = psutil.wait_procs(victims, timeout=10)
    assert not alive
    assert (tmp_path / "here" / "store").is_dir()
    assert len(list((out / "notebooks").iterdir())) == 4


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGKILL])
def test_cells_end_with_their_runner_and_workers_stay(remote, tmp_path, way):
    address, workers = remote
    notebook(tmp_path / "notebooks" / "slow.ipynb", "seed = 0", "import time\ntime.sleep(300)")
    path = grid_file(tmp_path, "name: tiny\nstages: {slow: {notebook: slow.ipynb, over: {seed: [0, 1, 2]}}}")
    runner = run(path, address, tmp_path / "here")
    until(lambda: all(cells_of(worker) for worker in workers))
    busy = [process for worker in workers for process in cells_of(worker)]
    until(lambda: all(process.children() for process in busy))
    busy += [child for process in busy for child in process.children()]
    runner.send_signal(way)
    _, errors = runner.communicate(timeout=60)
    if way == signal.SIGINT:
        assert runner.returncode == 130
        assert errors == "onestep-bench: interrupted; run the same command again to go on\n"
    _, alive = psutil.wait_procs(busy, timeout=30)
    assert not alive
    assert not any(cells_of(worker) for worker in workers)  # the third did not start in their place
    out = read_grid(path).out
    until(lambda: not list((out / ".cells").glob(f"*/{RUNNING}")))
    assert all(worker.poll() is None for worker in workers)


def test_losing_the_scheduler_is_one_line(remote, tmp_path):
    address, workers = remote
    notebook(tmp_path / "notebooks" / "slow.ipynb", "seed = 0", "import time\ntime.sleep(300)")
    path = grid_file(tmp_path, "name: tiny\nstages: {slow: {notebook: slow.ipynb}}")
    runner = run(path, address, tmp_path / "here")
    until(lambda: any(cells_of(worker) for worker in workers))
    busy = [process for worker in workers for process in cells_of(worker)]
    scheduler = next(
        process for process in psutil.Process().children() if "distributed.cli.dask_scheduler" in process.cmdline()
    )
    scheduler.kill()
    _, errors = runner.communicate(timeout=120)
    assert runner.returncode == 2
    assert errors == "onestep-bench: error: lost the scheduler; run again, finished cells stay\n"
    _, alive = psutil.wait_procs(busy, timeout=60)
    assert not alive
