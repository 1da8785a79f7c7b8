"""Time left, and the view that refreshes in a notebook. What runs now is tried through `onestep-bench status`."""

from pathlib import Path

import pytest
from tiny import executed, grid_file, notebook

from onestep_bench.grid import progress
from onestep_bench.grid.cells import STAMP, Cell, Status, executed_path
from onestep_bench.grid.plan import read_grid
from onestep_bench.grid.progress import in_words, time_left


def status(stage, state, seconds=0.0):
    return Status(Cell(stage, Path(), {}, (), stage, stage), state, seconds)


@pytest.mark.parametrize(
    ("statuses", "seconds"),
    [
        ([("a", "to do", 0)], None),  # nothing was measured
        ([("a", "done", 10)], 0),
        ([("a", "done", 10), ("a", "done", 20), ("a", "to do", 0)], 15),
        ([("a", "done", 10), ("b", "done", 100), ("a", "to do", 0), ("b", "to do", 0)], 110),  # each stage by its own
        ([("a", "done", 10), ("b", "done", 30), ("c", "to do", 0)], 20),  # an unknown one by all
        ([("a", "done", 10), ("a", "running", 4), ("a", "running", 20), ("a", "to do", 0), ("a", "to do", 0)], 13),
        (
            [("a", "done", 10), ("a", "running", 9), ("a", "running", 9), ("a", "to do", 0)],
            10,
        ),  # one cell is not halved
        ([("a", "done", 10), ("a", "failed", 3), ("a", "skipped", 0)], 0),
    ],
)
def test_time_left_goes_by_measured_times(statuses, seconds):
    assert time_left([status(*one) for one in statuses]) == seconds


def test_words():
    assert in_words([status("a", "running", 5)]) == "1 running"
    assert in_words([status("a", "done", 65), status("a", "to do")]) == "0 running, about 1 min 5 s left"


def test_watching_refreshes_until_nothing_is_left(tmp_path, monkeypatch):
    notebook(tmp_path / "notebooks" / "model.ipynb", "seed = 0")
    path = grid_file(
        tmp_path, "name: tiny\ntitle: A <b>\nstages: {model: {notebook: model.ipynb, over: {seed: [0, 1]}}}"
    )
    grid = read_grid(path)
    left = list(grid.cells)

    def finish(seconds):
        assert seconds == 7
        cell = left.pop()
        stamp = {STAMP: {"digest": cell.digest, "seconds": 2.0, "why": ""}}
        executed(executed_path(cell, grid.executed), [], stamp=stamp)

    shown = []

    class Handle:
        def update(self, html):
            shown.append(html.data)

    def display(html, display_id):
        shown.append(html.data)
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(progress.time, "sleep", finish)
    progress.watch(path, every=7)
    assert len(shown) == 3
    assert "A &lt;b&gt;" in shown[0]
    for html, done, to_do in zip(shown, "012", "210", strict=True):
        assert f"<td>all</td><td>{done}</td><td>0</td><td>0</td><td>0</td><td>{to_do}</td>" in html
    assert "about 2.0 s left" in shown[1]
