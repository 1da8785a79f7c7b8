"""A cell of one's own: what the designer writes must plan, and papermill's line must say the same."""

import shlex
from pathlib import Path

import pytest
import yaml

from onestep_bench.explore.recipe import cell, designer
from onestep_bench.grid import read_grid
from onestep_bench.grid.parameters import Notebook, checked
from onestep_bench.known.catalogue import known

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def planned(recipe, folder):
    path = folder / f"{recipe.name}.yaml"
    path.write_text(recipe.grid)
    (only,) = read_grid(path, notebooks=NOTEBOOKS).cells
    return only


@pytest.mark.parametrize("method", sorted(known("methods")))
def test_the_yaml_of_every_method_is_one_planned_cell(method, tmp_path):
    recipe = cell(method, size="0.05M", kimg=1.28, options={"lr_decay": "linear", "clip": 1.0})
    assert planned(recipe, tmp_path).parameters == recipe.parameters
    assert recipe.parameters["start"] == "random"  # a network that is smaller than its teacher
    assert "start" not in cell(method).parameters


def test_the_line_of_papermill_gives_the_same_parameters(tmp_path):
    recipe = cell("kd", options={"lr_decay": "linear"}, conditional=True, label="KD, mine")
    make, run = (shlex.split(part) for part in recipe.line.split(" && "))
    assert make == ["mkdir", "-p", "reports/mine/notebooks"]
    assert run[:3] == ["papermill", "notebooks/method.ipynb", "reports/mine/notebooks/kd.ipynb"]
    given, words = {}, iter(run[3:])
    for mark in words:
        if mark == "-y":
            given |= yaml.safe_load(next(words))
            continue
        name, text = next(words), next(words)
        given[name] = text if mark == "-r" else yaml.safe_load(text)
    declared = Notebook.read(NOTEBOOKS / "method.ipynb").declared
    assert {name: checked(name, value, declared, "", "") for name, value in given.items()} == recipe.parameters
    assert planned(recipe, tmp_path).parameters == recipe.parameters


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"method": "gdx"}, "did you mean 'gdd'?"),
        ({"kimg": -1}, "'kimg' must be positive"),
        ({"steps": []}, "'steps' must be"),
        ({"options": {"lr_decai": "linear"}}, "did you mean 'lr_decay'?"),
    ],
)
def test_what_plan_would_refuse_is_refused(wrong, says, refuses):
    with refuses(says):
        cell(**wrong)


def test_the_designer_writes_as_its_controls_say_and_says_what_is_wrong(looked_at, tmp_path):
    box = designer()._shown
    controls, said, line, grid = box.children
    (method, _, kimg, steps), (_, _, options) = (column.children for column in controls.children)
    method.value, kimg.value, steps.value = "kd", 2.5, "1 2"
    document = yaml.safe_load(grid.value)
    assert document["stages"]["kd"]["parameters"]["steps"] == [1, 2]
    assert "-p kimg 2.5" in line.value
    for widget, wrong, mistake in (
        (steps, "one", "whole numbers"),
        (options, "{lr", "no YAML"),
        (options, "5", "mapping"),
    ):
        right, widget.value = widget.value, wrong
        assert mistake in said.value
        assert line.value == grid.value == ""
        widget.value = right
    assert grid.value
