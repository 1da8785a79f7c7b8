import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny import executed, grid_file, notebook, recording, row

from onestep_bench import __version__
from onestep_bench.cli import main
from onestep_bench.grid.cells import RUNNING, STAMP, Status, executed_path, failed_path, scratch_path, status_of
from onestep_bench.grid.plan import read_grid
from onestep_bench.store.artifacts import memo
from onestep_bench.store.files import write_json, write_text
from onestep_bench.store.notes import PROGRESS


@pytest.fixture
def path(tmp_path: Path) -> str:
    notebook(tmp_path / "notebooks" / "model.ipynb", "seed = 0\nsize = '1M'", recording())
    stages = "  a: {notebook: model.ipynb}\n  b: {notebook: model.ipynb, needs: [a], over: {seed: [1, 2]}}"
    return str(grid_file(tmp_path, f"name: tiny\nstages:\n{stages}"))


def mark(path: str, index: int, why: str = "") -> None:
    """Pretend that a cell ran for two seconds."""
    grid = read_grid(path)
    cell = grid.cells[index]
    place = failed_path if why else executed_path
    stamp = {STAMP: {"digest": cell.digest, "seconds": 2.0, "why": why}}
    executed(place(cell, grid.executed), [row(seed=index)], stamp=stamp)


@pytest.fixture
def pretend(monkeypatch):
    """Function that puts `execute` in the place of execution, on workers in this very process."""
    from distributed import Client

    from onestep_bench.grid import clusters, execution

    @contextmanager
    def connected(gpus, **where):
        with Client(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as client:
            client.register_plugin(clusters.Devices())
            client.register_plugin(clusters.Inside())
            yield client

    def pretend(execute):
        monkeypatch.setattr(clusters, "connected", connected)
        monkeypatch.setattr(execution, "execute", execute)

    return pretend


def make(kind: str, folder_name: str, parents=()) -> object:
    """Put an artifact of one 1,000-byte file into the store."""

    def write(folder):
        write_text(folder / "weights", "x" * 1000)
        return {"kimg": 1.0, "seconds": 2.0, "device": "none"}

    return memo(kind, {"method": folder_name, "size": "1M"}, parents, write)


def test_plan_shows_cells_states_parameters_needs_and_what_is_reused(path, capsys, store_folder, monkeypatch):
    mark(path, 0)
    monkeypatch.setenv("ONESTEP_CELL", read_grid(path).cells[2].digest)
    teacher = make("model", "edm")
    make("model", "edm")

    def killed(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        memo("pairs", {}, [teacher], killed)
    assert main(["plan", path]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["cell", "notebook", "state", "reuses", "parameters", "needs"]
    assert lines[1] == ["a", "model.ipynb", "done", "its", "notebook", "-", "-"]
    assert lines[2] == ["b-seed=1", "model.ipynb", "to", "do", "-", "seed=1", "a"]
    assert lines[3] == ["b-seed=2", "model.ipynb", "to", "do", "1", "artifacts,", "1", "unfinished", "seed=2", "a"]
    assert main(["plan", path, "--store", str(store_folder / "other")]) == 0
    assert "artifacts," not in capsys.readouterr().out.split("3 cells")[0]


def test_plan_tells_the_time_ahead(tmp_path, capsys):
    notebook(tmp_path / "notebooks" / "model.ipynb", "seed = 2", "seed")
    stages = "{a: {notebook: model.ipynb, takes: 90s, over: {seed: [0, 1]}}, b: {notebook: model.ipynb}}"
    assert main(["plan", str(grid_file(tmp_path, f"name: tiny\nstages: {stages}"))]) == 0
    assert "3 to do: about 3 min 0 s of one worker, and 1 more that nobody foresaw" in capsys.readouterr().out


def test_plan_tells_once_what_all_cells_share_and_what_judges_cost(tmp_path, capsys):
    declared = "dataset = 'digits'\nfeatures = 'auto'\nseed = 0"
    notebook(tmp_path / "notebooks" / "model.ipynb", declared, "dataset, features, seed")
    text = "name: tiny\ndataset: {}\nstages: {{model: {{notebook: model.ipynb, over: {{seed: [0, 1]}}}}}}"
    assert main(["plan", str(grid_file(tmp_path, text.format("mnist")))]) == 0
    told = capsys.readouterr().out
    assert "every cell: dataset=mnist" in told
    assert ["seed=0" in told.splitlines()[1], "seed=1" in told.splitlines()[2]] == [True, True]
    assert "dataset" not in "".join(told.splitlines()[:3])
    assert "the judge of mnist, unless the store has it: a classifier of 900 training steps of 120 grey images" in told
    assert main(["plan", str(grid_file(tmp_path, text.format("digits")))]) == 0
    assert "judge of" not in capsys.readouterr().out


def test_a_thousand_cells_are_planned_in_a_second(tmp_path):
    notebook(tmp_path / "notebooks" / "model.ipynb", "seed = 0\nkimg = 1\nlr = 0.1", "seed")
    axes = ", ".join(f"{key}: {list(range(1, 11))}" for key in ("seed", "kimg", "lr"))
    path = grid_file(tmp_path, f"name: tiny\nstages: {{model: {{notebook: model.ipynb, over: {{{axes}}}}}}}")
    command = [sys.executable, "-X", "importtime", "-m", "onestep_bench.cli", "plan", str(path)]
    before = os.times()
    planned = subprocess.run(command, capture_output=True, text=True, check=True)
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1
    assert "1000 cells" in planned.stdout
    imported = {line.split("|")[-1].strip() for line in planned.stderr.splitlines()}
    assert not {"torch", "numpy", "pandas", "dask", "distributed", "papermill"} & imported


def test_status_counts_and_adds_up_seconds(path, capsys):
    mark(path, 0)
    mark(path, 1, "ValueError: no luck")
    assert main(["status", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["a", "1", "0", "0", "0", "0", "2.0"]
    assert lines[2].split() == ["b", "0", "0", "1", "0", "1", "2.0"]
    assert lines[3].split() == ["all", "1", "0", "1", "0", "1", "4.0"]
    assert lines[4].startswith("failed: b-seed=1: ValueError: no luck; see ")
    assert lines[4].endswith("b-seed=1.failed.ipynb")


HOLD = """
import filelock, sys, time
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print(flush=True)
time.sleep(60)
"""


def test_status_knows_what_runs_from_the_files_alone(path, capsys):
    mark(path, 0)
    grid = read_grid(path)
    scratch = scratch_path(grid.cells[1], grid.executed)
    write_json(scratch / RUNNING, {"host": "here", "started": time.time() - 0.5})
    inside = {"what": "gdd", "done": 12_300, "total": 32_000, "unit": "img", "at": time.time(), "left": 60 * 60 + 59}
    lock = scratch.with_name(f"{grid.cells[1].id}.lock")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        assert main(["status", path]) == 0
        lines = capsys.readouterr().out.splitlines()
        write_json(scratch / PROGRESS, inside)
        assert main(["status", path]) == 0
        inside_lines = capsys.readouterr().out.splitlines()
        holder.kill()
    assert lines[2].split()[:6] == ["b", "0", "1", "0", "0", "1"]
    assert re.fullmatch(r"running: b-seed=1, for \d+(\.\d)? s", lines[4])
    assert re.fullmatch(r"running: b-seed=1, for \d+(\.\d)? s: gdd 12\.3k of 32k img, 1 h 0 min left", inside_lines[4])
    # What is left of one and the whole of another, at 2 s each.
    assert re.fullmatch(r"1 running, about [23]\.\d s left", lines[5])
    assert main(["status", path]) == 0  # its record lies there still
    assert capsys.readouterr().out.splitlines()[2].split()[:6] == ["b", "0", "0", "0", "0", "2"]


def test_report_renders_what_is_there_and_names_the_rest(path, tmp_path, capsys):
    mark(path, 0)
    out = tmp_path / "elsewhere"
    assert main(["report", path]) == 0
    assert "not in it yet, 2 of 3 cells: b-seed=1, b-seed=2" in capsys.readouterr().out
    assert main(["report", path, "--out", str(out)]) == 0
    assert f"report: {out / 'report.html'}" in capsys.readouterr().out


def test_run_executes_renders_and_says_where(path, tmp_path, capsys, monkeypatch, pretend):
    def execute(cell, folder, environment, unwanted):
        assert environment["ONESTEP_STORE"] == str(tmp_path / "store")
        assert environment["ONESTEP_DATA"] == str(Path.cwd() / "data")
        assert environment["ONESTEP_CELL"] == cell.digest
        mark(path, 0)
        return status_of(cell, folder)

    pretend(execute)
    monkeypatch.delenv("ONESTEP_STORE", raising=False)
    monkeypatch.setenv("ONESTEP_DATA", "data")
    mark(path, 1)
    mark(path, 2)
    assert main(["run", path, "--store", str(tmp_path / "store")]) == 0
    told = capsys.readouterr().out
    assert "tiny: 3 cells, 2 done, 1 to do" in told
    assert f"report: {tmp_path / 'reports' / 'tiny' / 'report.html'}" in told
    assert "ONESTEP_STORE" not in os.environ


def test_a_draft_of_the_report_is_there_before_the_end(path, tmp_path, capsys, pretend):
    """The first cell is done: its scores are drawn while the others run, and the terminal says where."""
    page = tmp_path / "reports" / "tiny" / "report.html"

    def execute(cell, folder, environment, unwanted):
        while cell.id != "a" and not page.exists():
            time.sleep(0.05)
        mark(path, [other.id for other in read_grid(path).cells].index(cell.id))
        return status_of(cell, folder)

    pretend(execute)
    assert main(["run", path]) == 0
    told = capsys.readouterr().out
    assert f"report so far (1 of 3 cells): {page}" in told
    assert told.splitlines()[-1] == f"report: {page}"
    assert page.read_text().count('class="done">done') == 3  # the last word is not the draft's


def test_a_folder_of_executed_notebooks_is_reported_too(tmp_path, capsys):
    executed(tmp_path / "done" / "one.ipynb", [row(seed=0)])
    assert main(["report", str(tmp_path / "done"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.html").exists()
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty")]) == 2
    assert "holds neither executed notebooks nor a results.csv" in capsys.readouterr().err


def test_failed_cells_exit_with_1(path, capsys, pretend):
    pretend(lambda cell, folder, environment, unwanted: Status(cell, "failed", 1.0, "ValueError: no luck"))
    assert main(["run", path]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "not done: 1 failed, 2 skipped"


@pytest.mark.parametrize("options", [["--workers", "0"], ["--workers", "2", "--scheduler", "tcp://x:1"]])
def test_where_to_run_is_said_once(path, options, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["run", path, *options])
    assert capsys.readouterr().err.splitlines()[-1].startswith("onestep-bench run: error: argument --")


# ---- the store -------------------------------------------------------------------------------------------------------


def test_store_ls_shows_sizes(store_folder, capsys):
    teacher = make("model", "edm")
    make("model", "sfddm", [teacher])
    assert main(["store", "ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[0].split()) == "artifact method variant size data kimg seed bytes unused"
    assert sorted(line.split()[1:4] for line in lines[1:3]) == [["edm", "-", "1M"], ["sfddm", "-", "1M"]]
    assert "1.4 KB" in lines[1]
    assert lines[-1].startswith("2 artifacts, 2.7 KB in ")


def test_store_ls_tells_what_one_knows_a_model_by(store_folder, capsys):
    def keep(kind, recipe, parents=(), **noted):
        return memo(kind, recipe, parents, lambda folder: {"kimg": 1.0, "seconds": 2.0, "device": "none"} | noted)

    common = {"size": "0.2M", "seed": 0, "training": {"kimg": 200.0}, "config": {}}
    teacher = keep("model", common | {"method": "edm", "data": "0123456789abcdef"}, data="digits")
    pairs = keep("pairs", {"n": 8, "sampler": "heun", "steps": 18, "seed": 3}, [teacher])
    reflow = {"method": "flow-guided-distillation", "data": "pairs", "training": {"kimg": 1.5}}
    student = keep("model", common | reflow, [pairs, teacher])
    gdd = {"method": "gdd", "data": "fedcba9876543210", "config": {"variant": "gdd-i"}}  # trained by an older version
    other = keep("model", common | gdd, [teacher])
    scores = keep("scores", {"sampler": "dpmpp_2m", "steps": 18, "data": "0123456789abcdef"}, [other])
    keep("reference", {"protocol": "digits-cnn@0123; no resize", "data": "0123456789abcdef"})
    (store_folder / "model-1.partial").mkdir()
    assert main(["store", "ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 120
    assert any(line.split()[1:5] == ["digits-cnn", "-", "-", "digits"] for line in lines)
    told = {line.split()[0]: " ".join(line.split()[1:]).rsplit(" ", 4)[0] for line in lines[1:8] if line[:3] != "ref"}
    assert told == {
        teacher.key: "edm - 0.2M digits 200 0",
        pairs.key: "edm heun 18 0.2M digits 200 3",
        student.key: "flow-guided-distillation - 0.2M digits 1.5 0",
        other.key: "gdd gdd-i 0.2M fedcba98 200 0",
        scores.key: "gdd gdd-i dpmpp_2m 18 0.2M digits 200 0",
        "model-1": "(partial) - - - - -",
    }


def test_store_verify_names_what_is_damaged(store_folder, capsys):
    teacher = make("model", "edm")
    student = make("model", "sfddm", [teacher])
    assert main(["store", "verify"]) == 0
    assert capsys.readouterr().out.startswith("2 artifacts, 0 damaged")
    (student.folder / "weights").write_text("y")
    assert main(["store", "verify"]) == 1
    assert f"damaged: {student.key}: weights\n" in capsys.readouterr().out


def test_store_gc_takes_what_nobody_needs(store_folder, capsys):
    old, student, lonely = make("model", "edm"), None, make("model", "gdd")
    student = make("model", "sfddm", [old])
    week = time.time() - 8 * 86400
    for artifact in (old, lonely):
        for file in artifact.folder.iterdir():
            os.utime(file, (week, week))
    fresh, stale = (store_folder / f"{name}.partial" for name in ("model-1", "model-2"))
    for partial in (fresh, stale):
        write_text(partial / "checkpoint.pt", "x")
    os.utime(stale / "checkpoint.pt", (week, week))
    damaged = store_folder / "model-3.damaged"
    damaged.mkdir()

    assert main(["store", "gc", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 would go, 1 B")
    assert main(["store", "gc"]) == 0
    assert {p.name for p in store_folder.iterdir() if p.name[0] != "."} == {
        *(artifact.key for artifact in (old, lonely, student)),
        fresh.name,
    }
    assert main(["store", "gc", "--unused", "7"]) == 0
    assert not lonely.folder.exists()
    assert old.folder.exists()  # the student was made from it
    make("model", "edm")  # asked for again
    assert main(["store", "gc", "--unused", "7"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 removed, 0 B"


def test_no_store_is_one_line(store_folder, tmp_path, capsys):
    assert main(["store", "ls", "--store", str(tmp_path / "none")]) == 2
    assert "no store at" in capsys.readouterr().err


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_a_mistake_is_one_line_and_exits_with_2(path, capsys):
    assert main(["plan", path.replace("tiny.yaml", "tinny.yaml")]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("onestep-bench: error: ")
    assert errors.count("\n") == 1


def test_an_interrupt_is_one_line_and_exits_with_130(path, monkeypatch, capsys):
    from onestep_bench.grid import clusters

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(clusters, "connected", interrupt)
    assert main(["run", path]) == 130
    assert "interrupted; run the same command again to go on" in capsys.readouterr().err


def test_other_folders_by_option(path, tmp_path, capsys):
    (tmp_path / "notebooks").rename(tmp_path / "books")
    assert main(["plan", path]) == 2
    assert main(["plan", path, "--notebooks", str(tmp_path / "books")]) == 0


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"onestep-bench {__version__}\n"


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("methods", r"kd +pairs +yes +one-step regression"),
        ("sizes", r"3\.4M +DDPM\+\+, 64, 64, 128 channels, 1 block a level, attention at 16 px"),
        ("judges", r"digits +The shipped judge"),
        ("datasets", r"mnist +60,000 grey 28x28 digits"),
        ("samplers", r"heun +Heun's method"),
    ],
)
def test_list_tells_a_line_of_each_name(kind, line, capsys):
    assert main(["list", kind]) == 0
    assert re.search(f"^{line}", capsys.readouterr().out, re.M)


def test_list_says_what_it_can_list(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["list", "teachers"])
    assert "choose from methods, sizes, judges, datasets, samplers" in capsys.readouterr().err.replace("'", "")
    for command in ("sample", "evaluate"):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert "onestep-bench list samplers" in " ".join(capsys.readouterr().out.split())


def test_a_reader_that_has_seen_enough_is_no_traceback():
    command = [sys.executable, "-m", "onestep_bench.cli", "list", "sizes"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        told = process.stderr.read()
    assert (process.returncode, told) == (141, b"")
