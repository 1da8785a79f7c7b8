import os
from pathlib import Path

import pytest
from grids.tiny import executed, grid_file, notebook, recording, row

from onestep_bench import __version__, engine
from onestep_bench.cli import main
from onestep_bench.grid import STAMP, executed_path, failed_path, read_grid, status_of


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


def test_plan_shows_cells_states_parameters_and_needs(path, capsys):
    mark(path, 0)
    assert main(["plan", path]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["cell", "notebook", "state", "parameters", "needs"]
    assert lines[1] == ["a", "model.ipynb", "done", "-", "-"]
    assert lines[3] == ["b-seed=2", "model.ipynb", "to", "do", "seed=2", "a"]


def test_status_counts_and_adds_up_seconds(path, capsys):
    mark(path, 0)
    mark(path, 1, "ValueError: no luck")
    assert main(["status", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["a", "1", "0", "0", "2.0"]
    assert lines[2].split() == ["b", "0", "1", "1", "2.0"]
    assert lines[3].split() == ["all", "1", "1", "1", "4.0"]
    assert lines[4] == "failed: b-seed=1: ValueError: no luck"


def test_report_renders_what_is_there_and_names_the_rest(path, tmp_path, capsys):
    mark(path, 0)
    out = tmp_path / "elsewhere"
    assert main(["report", path]) == 0
    assert "not in it yet, 2 of 3 cells: b-seed=1, b-seed=2" in capsys.readouterr().out
    assert main(["report", path, "--out", str(out)]) == 0
    assert f"report: {out / 'report.html'}" in capsys.readouterr().out


def test_run_executes_renders_and_says_where(path, tmp_path, capsys, monkeypatch):
    def execute(cell, folder, environment):
        assert environment["ONESTEP_STORE"] == str(tmp_path / "store")
        mark(path, 0)
        return status_of(cell, folder)

    monkeypatch.setattr(engine, "execute", execute)
    monkeypatch.delenv("ONESTEP_STORE", raising=False)
    mark(path, 1)
    mark(path, 2)
    assert main(["run", path, "--store", str(tmp_path / "store")]) == 0
    told = capsys.readouterr().out
    assert "tiny: 3 cells, 2 done, 1 to do" in told
    assert f"report: {tmp_path / 'reports' / 'tiny' / 'report.html'}" in told
    assert "ONESTEP_STORE" not in os.environ


def test_failed_cells_exit_with_1(path, monkeypatch, capsys):
    def fail(cell, folder, environment):
        return engine.Status(cell, "failed", 1.0, "ValueError: no luck")

    monkeypatch.setattr(engine, "execute", fail)
    assert main(["run", path]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "not done: 1 failed, 2 skipped"


def test_a_mistake_is_one_line_and_exits_with_2(path, capsys):
    assert main(["plan", path.replace("tiny.yaml", "tinny.yaml")]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("onestep-bench: error: ")
    assert errors.count("\n") == 1


def test_an_interrupt_is_one_line_and_exits_with_130(path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "execute", interrupt)
    assert main(["run", path]) == 130
    assert "interrupted; the same command goes on from here" in capsys.readouterr().err


def test_other_folders_by_option(path, tmp_path, capsys):
    (tmp_path / "notebooks").rename(tmp_path / "books")
    assert main(["plan", path]) == 2
    assert main(["plan", path, "--notebooks", str(tmp_path / "books")]) == 0


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"onestep-bench {__version__}\n"
