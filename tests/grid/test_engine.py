"""Kernels start here, at two seconds each: a few runs, each held to many claims."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from distributed import Client, get_worker
from filelock import FileLock
from tiny import executed, grid_file, notebook, recording, row

from onestep_bench import store
from onestep_bench.cli import main
from onestep_bench.errors import OnestepError
from onestep_bench.grid import clusters, engine, execution, progress
from onestep_bench.grid.cells import Cell, Grid, Status, executed_path, failed_path, read_stamp, scratch_path
from onestep_bench.grid.engine import run, run_cells
from onestep_bench.grid.plan import read_grid
from onestep_bench.report import read_rows
from onestep_bench.report.page import render
from onestep_bench.store.files import write_json
from onestep_bench.store.notes import PROGRESS

HERE = "import os, pathlib\nassert pathlib.Path.cwd().name == 'notebooks'\nprint(os.environ.get('ONESTEP_STORE'))"

# ---- what the runner hands out, with executions that only pretend ----------------------------------------------------


@pytest.fixture
def client():
    """Two slots in this very process: what tests patch, they see."""
    with Client(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as client:
        client.register_plugin(clusters.Devices())
        client.register_plugin(clusters.Inside())
        yield client


@pytest.fixture
def pretend(client, tmp_path, monkeypatch):
    """Function that runs cells {id: needs} with `execute` in the place of execution; what it yields, ticks left out."""

    def pretend(needs: dict[str, list[str]], execute: Callable[[Cell], Status]) -> list[Status]:
        monkeypatch.setattr(execution, "execute", lambda cell, folder, environment, unwanted: execute(cell))
        cells = [Cell(name, tmp_path / "none.ipynb", {}, tuple(needs), name, name) for name, needs in needs.items()]
        return [status for status in run_cells(cells, tmp_path / "notebooks", {}, client) if status]

    return pretend


def test_every_cell_runs_once_after_its_needs(pretend):
    order = []

    def execute(cell):
        order.append(cell.id)
        return Status(cell, "done")

    needs = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c", "elsewhere"]}
    statuses = pretend(needs, execute)
    assert sorted(order) == ["a", "b", "c", "d"]
    assert order[0] == "a"
    assert order[-1] == "d"
    assert [status.state for status in statuses] == ["running", "done"] * 4


def test_cells_do_not_inherit_dasks_thrift_with_memory(client, tmp_path, monkeypatch):
    """MALLOC_TRIM_THRESHOLD_, which Dask sets for its workers, halves the speed of training."""
    seen = {}

    def execute(cell, folder, environment, unwanted):
        seen.update(environment)
        return Status(cell, "done")

    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    monkeypatch.setattr(execution, "execute", execute)
    list(run_cells([Cell("a", tmp_path / "none.ipynb", {}, (), "a", "a")], tmp_path, {"ONESTEP_STORE": "s"}, client))
    assert "MALLOC_TRIM_THRESHOLD_" not in seen
    assert seen["PATH"] == os.environ["PATH"]


def test_a_failure_is_tried_once_more(pretend):
    tries = Counter()

    def execute(cell):
        tries[cell.id] += 1
        return Status(cell, "done" if tries["a"] == 2 else "failed", why="" if tries["a"] == 2 else "bad luck")

    statuses = pretend({"a": [], "b": ["a"]}, execute)
    told = [(status.cell.id, status.state, status.why) for status in statuses]
    assert told[:3] == [("a", "running", ""), ("a", "again", "bad luck"), ("a", "done", "")]
    assert told[-1] == ("b", "done", "")


def test_a_users_mistake_is_not_tried_again(pretend):
    ends = pretend({"a": []}, lambda cell: Status(cell, "failed", why="OnestepError: no size 9M", mistake=True))
    assert [status.state for status in ends] == ["running", "failed"]


def test_the_dashboards_workers_and_the_terminal_tell_how_far_inside_cells_are(pretend, tmp_path, monkeypatch):
    told = {"what": "gdd", "done": 12_300, "total": 32_000, "unit": "img", "at": 0, "left": None}
    shown = []

    def execute(cell):
        write_json(scratch_path(cell, tmp_path / "notebooks") / PROGRESS, told)
        shown.append(get_worker().metrics["inside"](None))
        return Status(cell, "done")

    class Bar:
        disable = False
        set_postfix_str = staticmethod(shown.append)

    (_, done) = pretend({"a": []}, execute)
    assert shown == ["gdd 12.3k of 32k img"]
    running = [Status(done.cell, "running", 3.0)]
    monkeypatch.setattr(progress, "with_running", lambda statuses, folder: running)
    engine._refresh(Bar, running, Grid("tiny", "", tmp_path, tmp_path, (done.cell,)))
    assert shown[1] == "1 running; gdd 38 %"


def test_skipping_reaches_the_dependants_of_dependants(pretend):
    tries = Counter()

    def execute(cell):
        tries[cell.id] += 1
        return Status(cell, "failed" if cell.id == "a" else "done")

    statuses = pretend({"a": [], "b": ["a"], "c": ["b"], "d": []}, execute)
    ends = {(s.cell.id, s.state, s.why) for s in statuses if s.state not in ("running", "again")}
    assert ends == {("a", "failed", ""), ("b", "skipped", "needs a"), ("c", "skipped", "needs b"), ("d", "done", "")}
    assert tries == {"a": 2, "d": 1}


def test_an_engine_error_is_the_failure_of_its_cell_alone(pretend, tmp_path):
    notebook(tmp_path / "none.ipynb", "")
    (tmp_path / "notebooks").mkdir()

    def execute(cell):
        if cell.id == "a":
            raise OSError("no space left\non device")
        return Status(cell, "done")

    ends = {s.cell.id: (s.state, s.why) for s in pretend({"a": [], "b": []}, execute)}
    assert ends == {"a": ("failed", "OSError: no space left"), "b": ("done", "")}
    assert (tmp_path / "notebooks" / "a.failed.ipynb").exists()


def test_a_cell_of_another_run_comes_back_last(pretend):
    order = []

    def execute(cell):
        order.append(cell.id)
        return Status(cell, "busy" if order.count("a") == 1 and cell.id == "a" else "done")

    statuses = pretend({name: [] for name in "abcd"}, execute)
    assert order.count("a") == 2
    assert [(s.cell.id, s.state) for s in statuses if s.state == "waiting"] == [("a", "waiting")]
    assert {s.cell.id for s in statuses if s.state == "done"} == set("abcd")


def test_the_longest_way_to_the_end_begins_first(client, tmp_path, monkeypatch):
    order = []

    def execute(cell, folder, environment, unwanted):
        order.append(cell.id)
        time.sleep(0.2)
        return Status(cell, "done")

    monkeypatch.setattr(execution, "execute", execute)
    seconds = {"short": 1, "long": 9, "middle": 5, "first": 2, "last": 8, "gate": 0.1}
    cells = [Cell(name, tmp_path, {}, ("first",) if name == "last" else (), name, name) for name in seconds]
    list(run_cells(cells, tmp_path, {}, client, seconds=seconds, slots=1))
    assert order == ["first", "long", "last", "middle", "short", "gate"]


def test_a_cell_that_would_wait_for_an_artifact_makes_room_and_begins_again(client, tmp_path, monkeypatch):
    """Cell b needs what somebody else makes just now: c runs meanwhile, in the one slot, and b when it is there."""
    order, lock = [], FileLock(tmp_path / ".model-1.lock", thread_local=False)

    def execute(cell, folder, environment, unwanted):
        order.append(cell.id)
        if order == ["b"]:
            return Status(cell, "busy", why="model-1")
        if cell.id == "c":
            lock.release()
        return Status(cell, "done")

    monkeypatch.setattr(execution, "execute", execute)
    lock.acquire()
    cells = [Cell(name, tmp_path, {}, (), name, name) for name in "bc"]
    settings = {"ONESTEP_STORE": str(tmp_path)}
    statuses = [status for status in run_cells(cells, tmp_path, settings, client, slots=1) if status]
    assert order == ["b", "c", "b"]
    assert ("b", "waiting", "model-1") in [(s.cell.id, s.state, s.why) for s in statuses]
    assert [s.cell.id for s in statuses if s.state == "done"] == ["c", "b"]


def test_a_record_that_somebody_removes_meanwhile_is_to_do_again(tmp_path, capsys):
    cells = tuple(Cell(name, tmp_path, {}, (), name, name) for name in "abc")
    grid = Grid("tiny", "", tmp_path, tmp_path, cells)
    executed(executed_path(cells[0], grid.executed), [])
    found = engine._kept([*(Status(cell, "done", 3.0) for cell in cells[:2]), Status(cells[2], "failed")], grid)
    assert [status.state for status in found] == ["done", "to do", "failed"]
    assert f"1 executed notebooks were removed from {grid.executed} meanwhile; run again" in capsys.readouterr().out


def test_a_loss_is_filed_in_a_folder_made_again_and_told_even_if_no_disk_takes_it(tmp_path, monkeypatch):
    cell = Cell("a", notebook(tmp_path / "none.ipynb", ""), {}, (), "a", "a")
    folder = tmp_path / "out" / "notebooks"
    assert execution.file_loss(cell, folder, "its worker died").why == "its worker died"
    assert read_stamp(failed_path(cell, folder))["why"] == "its worker died"

    def full(path, value):
        raise OnestepError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(execution, "write_json", full)
    assert execution.file_loss(cell, folder, "no luck") == Status(cell, "failed", why="no luck")


# ---- notebooks ------------------------------------------------------------------------------------------------------


def test_failures_of_every_kind_are_told_and_stop_their_dependants_only(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engine, "TRIES", 1)
    notebooks = tmp_path / "notebooks"
    notebook(notebooks / "good.ipynb", "seed = 0\nsize = '1M'", HERE, recording())
    for name, code in {
        "bad": "raise ValueError('no luck\\nat all')",
        "exits": "import os\nos._exit(3)",
        "hangs": "import time\ntime.sleep(60)",
        "eats": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\nbytearray(8 << 30)",
        "grows": "import time\nx = bytearray(300 << 20)\nx[::4096] = b'1' * len(x[::4096])\ntime.sleep(60)",
        "killed": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    }.items():
        notebook(notebooks / f"{name}.ipynb", "seed = 0", code)
    path = grid_file(
        tmp_path,
        "name: tiny\nstages:\n"
        "  bad: {notebook: bad.ipynb}\n"
        "  after: {notebook: good.ipynb, needs: [bad]}\n"
        "  exits: {notebook: exits.ipynb}\n"
        "  hangs: {notebook: hangs.ipynb, limit: 4s}\n"
        "  eats: {notebook: eats.ipynb}\n"
        "  grows: {notebook: grows.ipynb, memory: 300MB}\n"
        "  killed: {notebook: killed.ipynb}\n"
        "  good: {notebook: good.ipynb, parameters: {seed: 1}}\n",
    )
    grid = read_grid(path)
    cells = {cell.id: cell for cell in grid.cells}
    leftover = scratch_path(cells["good"], grid.executed) / "partial-0.ipynb"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("{")

    statuses = {status.cell.id: status for status in run(grid, store=tmp_path / "store", workers=2)}

    whys = {name: status.why for name, status in statuses.items() if status.state == "failed"}
    assert {name: status.state for name, status in statuses.items() if name not in whys} == {
        "after": "skipped",
        "good": "done",
    }
    assert whys["bad"] == "ValueError: no luck"
    assert whys["exits"].startswith("DeadKernelError")
    assert whys["hangs"].startswith("hung: ended at its limit of 4.0 s")
    assert whys["eats"] == "MemoryError"
    assert whys["grows"].startswith("out of memory: ended at ")
    assert "SIGKILL" in whys["killed"]
    assert statuses["after"].why == "needs bad"
    assert sorted(file.name for file in grid.executed.iterdir()) == sorted(
        ["good.ipynb", *(f"{name}.failed.ipynb" for name in whys)]
    )
    assert {file.suffix for file in (grid.out / ".cells").iterdir()} == {".lock"}
    stamp = read_stamp(executed_path(cells["good"], grid.executed))
    assert stamp["digest"] == cells["good"].digest
    assert stamp["parameters"] == {"seed": 1}
    assert stamp["seconds"] == statuses["good"].seconds > 0
    good = executed_path(cells["good"], grid.executed)
    assert str(tmp_path / "notebooks") not in good.read_text()
    assert str(tmp_path / "store") in good.read_text()
    assert read_rows(grid.executed)["seed"].tolist() == [1]
    told = capsys.readouterr().out
    assert "dashboard http://127.0.0.1:" in told
    assert f"ValueError: no luck  see {failed_path(cells['bad'], grid.executed)}" in told
    assert "skipped  after (needs bad)" in told

    notebook(notebooks / "bad.ipynb", "seed = 0", "'better luck'")
    kept = ("bad", "after", "good")
    path.write_text("\n".join(line for line in path.read_text().splitlines() if line.split(":")[0].strip() not in whys))
    path.write_text(path.read_text() + "\n  bad: {notebook: bad.ipynb}\n")
    before = good.stat().st_mtime_ns
    again = run(read_grid(path))
    assert {status.cell.id: status.state for status in again} == dict.fromkeys(kept, "done")
    assert good.stat().st_mtime_ns == before
    assert not failed_path(cells["bad"], grid.executed).exists()
    assert "running  good\n" not in capsys.readouterr().out
    assert len(run(read_grid(path))) == 3
    assert "dashboard" not in capsys.readouterr().out  # nothing to do starts nothing


def test_a_users_mistake_in_a_notebook_is_one_line_and_one_try(tmp_path, capsys):
    mistake = "from onestep_bench.errors import OnestepError\nraise OnestepError('no size 9M; known: 1M')"
    notebook(tmp_path / "notebooks" / "bad.ipynb", "seed = 0", mistake)
    grid = read_grid(grid_file(tmp_path, "name: tiny\nstages: {bad: {notebook: bad.ipynb}}"))
    (status,) = run(grid, workers=1)
    assert (status.state, status.why) == ("failed", "OnestepError: no size 9M; known: 1M")
    assert "again" not in capsys.readouterr().out
    shown = json.loads(failed_path(status.cell, grid.executed).read_text())["cells"][-1]["outputs"][0]["traceback"]
    assert shown == ["OnestepError: no size 9M; known: 1M"]


@pytest.mark.slow
def test_a_cell_of_other_source_is_refused_and_made_again_afresh(tmp_path, store_folder, capsys):
    making = (
        "from onestep_bench import store\n"
        "def make(folder):\n"
        "    store.write_json(folder / 'text', seed)\n"
        "    return {'kimg': 0, 'seconds': 0, 'device': 'none'}\n"
        "store.memo('model', {'method': 'edm'}, [], make, source=['networks.sizes:size_config']).key"
    )
    notebook(tmp_path / "notebooks" / "model.ipynb", "seed = 0", making)
    path = grid_file(tmp_path, "name: tiny\nstages:\n  model: {notebook: model.ipynb}\n")
    assert main(["run", str(path), "--workers", "1"]) == 0
    (key,) = (folder.name for folder in store_folder.iterdir() if folder.suffix == "" and folder.name[0] != ".")
    record = store_folder / key / store.META
    record.write_text(
        re.sub(r'"networks.sizes:size_config": "\w+"', '"networks.sizes:size_config": "0"', record.read_text())
    )

    assert main(["plan", str(path)]) == 0
    changed = f"{key}: networks.sizes:size_config changed since it was made and the version of edm did not"
    assert f"outdated: model: {changed}" in capsys.readouterr().out
    assert main(["run", str(path), "--workers", "1"]) == 1
    assert f"OnestepError: {changed}; raise the version, or make it again" in capsys.readouterr().out
    assert main(["run", str(path), "--fresh", "modle"]) == 2
    assert main(["run", str(path), "--workers", "1", "--fresh", "model"]) == 0
    assert [status.state for status in progress.survey(read_grid(path))] == ["done"]


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
    path = grid_file(
        tmp_path,
        "name: tiny\nstages:\n"
        "  first: {notebook: model.ipynb}\n"
        "  then: {notebook: model.ipynb, needs: [first], parameters: {seed: 1}}\n",
    )
    grid = read_grid(path)
    slow.touch()

    interrupted = start(path)
    family = [*tree(interrupted), *pids(slow)]
    assert [status.state for status in progress.survey(grid)] == ["done", "running"]
    os.killpg(interrupted.pid, signal.SIGINT)  # as a terminal does
    output, errors = interrupted.communicate(timeout=300)
    assert interrupted.returncode == 130
    assert errors == "onestep-bench: interrupted; run the same command again to go on\n"
    assert wait(lambda: not any(map(alive, family)))
    assert [file.name for file in grid.executed.iterdir()] == ["first.ipynb"]
    assert {file.suffix for file in (grid.out / ".cells").iterdir()} == {".lock"}

    killed = start(path)
    family = [*tree(killed), *pids(slow)]
    killed.kill()
    output = killed.communicate(timeout=300)[0]
    assert "1 done, 1 to do" in output
    assert wait(lambda: not any(map(alive, family)))
    assert [status.state for status in progress.survey(grid)] == ["done", "to do"]

    slow.unlink()
    finished = start(path)
    output, errors = finished.communicate(timeout=300)
    assert finished.returncode == 0, errors
    assert sorted(file.name for file in grid.executed.iterdir()) == ["first.ipynb", "then.ipynb"]
    undisturbed = [row(seed=seed, fid=100.0 / (1 + seed), size="1M") for seed in (0, 1)]
    executed(tmp_path / "other" / "all.ipynb", undisturbed)
    render(tmp_path / "other")
    assert (grid.out / "results.csv").read_bytes() == (tmp_path / "other" / "results.csv").read_bytes()


@pytest.mark.slow
def test_two_runs_of_one_grid_share_its_cells(tmp_path):
    mark = f"import os\nos.makedirs({str(tmp_path / 'runs')!r} + f'/{{seed}}')  # fails the second time"
    notebook(tmp_path / "notebooks" / "model.ipynb", "seed = 0\nsize = '1M'", mark, recording())
    path = grid_file(tmp_path, "name: tiny\nstages: {model: {notebook: model.ipynb, over: {seed: [0, 1, 2]}}}")
    (tmp_path / "runs").mkdir()
    both = [start(path, "--workers", "1") for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert not any("again" in output for output, _ in outputs)
    assert len(list((tmp_path / "reports" / "tiny" / "notebooks").glob("*.ipynb"))) == 3


AVERAGE = """
import os, psutil, torch
from onestep_bench.training import ranks
x = [torch.tensor([ranks.index() + 1.0])]
ranks.average(x)
torchrun = psutil.Process(os.getppid()).parent()
assert "torch.distributed.run" in torchrun.cmdline()
everybody = [torchrun, *torchrun.children(recursive=True)]
sockets = [socket for process in everybody for socket in process.net_connections("inet")]
heard = {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
ranks.shared(None)  # nobody ends while the other one looks
print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], "mean", x[0].item())
print("torchrun listens", len(torchrun.net_connections("inet")), "times, all of them on", sorted(heard))
"""


def test_a_cell_on_two_devices_is_two_ranks_and_one_record(tmp_path):
    """That find each other without a port, and listen on the loopback alone."""
    notebook(tmp_path / "notebooks" / "reduce.ipynb", "seed = 0", AVERAGE)
    grid = read_grid(grid_file(tmp_path, "name: tiny\nstages: {sum: {notebook: reduce.ipynb, gpus: 2}}"))
    (status,) = run(grid, workers=2)
    assert status.state == "done"
    record = executed_path(status.cell, grid.executed).read_text()
    assert "rank 0 of 2 mean 1.5" in record
    assert "torchrun listens 0 times, all of them on ['127.0.0.1']" in record
    assert len(list(grid.executed.iterdir())) == 1


@pytest.mark.parametrize("words", [[], ["rank"]])
def test_a_process_whose_parent_died_as_it_started_runs_nothing(tmp_path, words):
    """Its parent is not the process that it was told: it ends before it looks for its job, which is not there."""
    command = [sys.executable, "-m", "onestep_bench.grid.execution", str(tmp_path), str(os.getppid()), *words]
    told = subprocess.run(command, env=os.environ | {"RANK": "1"}, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (1, "")


def test_what_a_cell_runs_lies_where_nobody_else_may_write(tmp_path):
    """Though a group may write its scratch; and what a killed run left there goes with the next one."""
    scratch = tmp_path / "out" / ".cells" / "a"
    with execution._private_folder(scratch) as private:
        assert private.stat().st_mode & 0o777 == private.parent.stat().st_mode & 0o777 == 0o700
        (private / "kernel-0.json").write_text("its key")
        with execution._private_folder(scratch.with_name("b")) as other:
            assert other != private
        with execution._private_folder(scratch) as again:
            assert again == private
            assert not list(again.iterdir())
    assert not private.exists()


@pytest.mark.slow
def test_the_rank_that_fails_tells_why(tmp_path):
    one_fails = "import os, time\nif os.environ['RANK'] == '1':\n    raise ValueError('no luck')\ntime.sleep(60)"
    notebook(tmp_path / "notebooks" / "fails.ipynb", "seed = 0", one_fails)
    grid = read_grid(grid_file(tmp_path, "name: tiny\nstages: {bad: {notebook: fails.ipynb, gpus: 2}}"))
    status = execution.execute(grid.cells[0], folder_of(grid), os.environ)
    assert (status.state, status.why) == ("failed", "rank 1: ValueError: no luck")
    assert "no luck" in failed_path(status.cell, grid.executed).read_text()
    assert len(list(grid.executed.iterdir())) == 1


def test_the_notebook_of_a_cell_that_hangs_shows_where(tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    code = f"import pathlib, time\npathlib.Path({str(mark)!r}).touch()\ntime.sleep(600)"
    notebook(tmp_path / "notebooks" / "hangs.ipynb", "seed = 0", code)
    grid = read_grid(grid_file(tmp_path, "name: tiny\nstages: {a: {notebook: hangs.ipynb, limit: 100h}}"))

    def clock():  # the limit passes as soon as the notebook sleeps
        return time.monotonic() + 360_001 * mark.exists()

    monkeypatch.setattr(execution, "_clock", clock)
    status = execution.execute(grid.cells[0], folder_of(grid), os.environ)
    assert status.why == "hung: ended at its limit of 100 h 0 min; KeyboardInterrupt"
    assert "time.sleep(" in failed_path(status.cell, grid.executed).read_text()


def test_a_missing_kernel_is_a_failed_cell_with_its_name(tmp_path):
    source = notebook(tmp_path / "notebooks" / "model.ipynb", "seed = 0")
    content = json.loads(source.read_text())
    content["metadata"]["kernelspec"]["name"] = "julia"
    write_json(source, content)
    grid = read_grid(grid_file(tmp_path, "name: tiny\nstages: {model: {notebook: model.ipynb}}"))
    status = execution.execute(grid.cells[0], folder_of(grid), os.environ)
    assert status.state == "failed"
    assert "julia" in status.why
    assert failed_path(status.cell, grid.executed).exists()


LOADS = """
import sys
from pathlib import Path
from onestep_bench.grid.execution import _papermill
print(_papermill(Path("none.ipynb"), None, {}, Path("none")), "jsonschema" in sys.modules, "lark" in sys.modules)
"""


def test_a_cell_does_not_wait_for_a_grammar_of_which_it_has_no_use():
    told = subprocess.run([sys.executable, "-c", LOADS], capture_output=True, text=True, check=True).stdout
    assert "FileNotFoundError" in told
    assert told.endswith("True False\n")


def folder_of(grid) -> Path:
    grid.executed.mkdir(parents=True)
    return grid.executed


def test_a_worker_that_sees_other_files_says_so(tmp_path):
    notebook(tmp_path / "notebooks" / "model.ipynb", "seed = 0")
    grid = read_grid(grid_file(tmp_path, "name: tiny\nstages: {model: {notebook: model.ipynb}}"))
    shutil.rmtree(tmp_path / "notebooks")
    status = execution.execute(grid.cells[0], folder_of(grid), os.environ)
    assert status.state == "failed"
    assert "all workers need the runner's file system" in status.why


def test_an_unwritable_folder_is_one_line(tmp_path):
    notebook(tmp_path / "notebooks" / "model.ipynb", "seed = 0")
    path = grid_file(tmp_path, "name: tiny\nstages: {model: {notebook: model.ipynb}}")
    (tmp_path / "shut").write_text("a file, below which not even root makes folders")
    with pytest.raises(OnestepError, match=r"cannot write .*shut"):
        run(read_grid(path, out=tmp_path / "shut" / "tiny"))


# ---- processes -------------------------------------------------------------------------------------------------------


def start(path: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "onestep_bench.cli", "run", str(path), *options]
    # A shell starts background jobs with interrupts ignored, and all their children inherit that: the tests may be one.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, preexec_fn=heed, start_new_session=True)


def pids(slow: Path) -> tuple[int, int]:
    """Process ids of papermill and of the kernel that sleeps."""
    file = slow.with_suffix(".pids")
    assert wait(lambda: file.exists() and " " in file.read_text(), seconds=300)
    worker, kernel = file.read_text().split()
    file.unlink()
    return int(worker), int(kernel)


def tree(process: subprocess.Popen) -> list[int]:
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]


def wait(true: Callable[[], bool], seconds: float = 60) -> bool:
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
