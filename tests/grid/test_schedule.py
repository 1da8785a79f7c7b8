"""Expected times and the order that follows from them."""

from pathlib import Path

import pytest
from tiny import executed

from onestep_bench.grid.cells import STAMP, Cell, Status, executed_path
from onestep_bench.grid.schedule import expected, urgency


def cell(name, needs=(), takes=None, stage=None):
    return Cell(stage or name, Path(), {}, tuple(needs), name, name, takes=takes)


def test_what_a_cell_took_before_goes_first_whatever_code_it_ran(tmp_path):
    old = cell("a", takes=5.0, stage="s")
    executed(executed_path(old, tmp_path), [], stamp={STAMP: {"digest": "of older code", "seconds": 70.0, "why": ""}})
    statuses = [Status(old, "to do"), Status(cell("b", stage="s"), "done", 30.0), Status(cell("c", stage="s"), "to do")]
    assert expected(statuses, tmp_path) == {"a": 70.0, "b": 30.0, "c": 30.0}
    assert expected(statuses) == {"a": 30.0, "b": 30.0, "c": 30.0}


def test_an_authors_guess_is_taken_at_the_pace_of_this_machine():
    statuses = [Status(cell("a", takes=10.0), "done", 30.0), Status(cell("b", takes=20.0), "to do")]
    assert expected(statuses)["b"] == 60.0
    assert expected([Status(cell("b", takes=20.0), "to do"), Status(cell("c"), "to do")]) == {"b": 20.0}


def test_an_unknown_stage_is_judged_by_the_others():
    assert expected([Status(cell("a"), "done", 10.0), Status(cell("b"), "to do")])["b"] == 10.0


def test_urgency_is_the_longest_way_to_the_end():
    cells = [cell("a"), cell("b", ["a"]), cell("c", ["a"]), cell("d", ["b", "elsewhere"]), cell("e")]
    found = urgency(cells, {"a": 1, "b": 2, "c": 9, "d": 4, "e": 3})
    assert found == {"a": 10, "b": 6, "c": 9, "d": 4, "e": 3}


def test_cells_of_which_nothing_is_known_count_as_usual():
    assert urgency([cell("a"), cell("b", ["a"])], {}) == {"a": 2.0, "b": 1.0}
    assert urgency([cell("a"), cell("b"), cell("c")], {"a": 2, "b": 4}) == {"a": 2, "b": 4, "c": pytest.approx(3)}
