"""Who imports whom: read from the sources, so that a convenience does not become a knot."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import onestep_bench

PACKAGE = Path(onestep_bench.__file__).parent
MATHEMATICS = {
    "methods",
    "critics",
    "layers",
    "denoiser",
    "losses",
    "paths",
    "samplers",
    "networks",
    "features",
    "seeds",
    "errors",
}
GRID_SIDE = {"grid", "clusters", "execution", "engine", "progress", "report", "cli"}


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {name_of(path): path for path in PACKAGE.rglob("*.py")}
METHODS = sorted(name for name in FILES if name.startswith("methods."))


def imports(name):
    """Every module a room imports, anywhere in its code; rooms of this package without `onestep_bench.`."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute here"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {module.removeprefix("onestep_bench.") for module in found}


def rooms(name):
    return (imports(name) & FILES.keys()) - {""}


def reached(name):
    """All rooms that importing one brings along."""
    found, open_ = set(), [name]
    while open_:
        new = rooms(open_.pop()) - found
        found |= new
        open_ += new
    return found


def test_the_reader_of_imports_sees_them():
    assert {"paths", "errors"} <= rooms("denoiser")
    assert "compat" in rooms("losses")  # imported inside a function
    assert "methods" in rooms("methods.slimflow")
    assert "torch" in imports("paths")


def test_imports_point_only_down():
    TopologicalSorter({name: rooms(name) for name in FILES}).prepare()  # raises CycleError


def test_paths_knows_nobody():
    assert rooms("paths") == {"errors"}


@pytest.mark.parametrize("name", METHODS)
def test_methods_know_the_mathematics_and_not_each_other(name):
    assert rooms(name) <= MATHEMATICS


def test_the_laboratory_does_not_know_the_grid():
    for name in FILES.keys() - GRID_SIDE:
        assert not rooms(name) & GRID_SIDE, name


@pytest.mark.parametrize("name", ["grid", "engine", "scores", "upkeep"])
def test_plans_and_records_need_no_torch(name):
    for room in {name, *reached(name)}:
        assert not any(module.split(".")[0] == "torch" for module in imports(room)), room


def test_few_know_the_store():
    users = {"models", "judges", "together", "study", "engine", "upkeep", "cli"}
    assert {name for name in FILES if "store" in rooms(name)} == users
