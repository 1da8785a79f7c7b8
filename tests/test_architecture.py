"""Who imports whom, read from the sources: the tower of CONTRIBUTING.md, so that a convenience does not become a knot.

A room is a folder or one of the files of the landing. Importing a room's face (its `__init__`) counts as the room.
"""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import onestep_bench

PACKAGE = Path(onestep_bench.__file__).parent
GROUND = {"errors", "units", "seeds", "compat"}
MATHEMATICS = {"paths", "denoiser", "flow_map", "samplers", "losses"}
# From the street to the roof; each floor uses only lower ones, and rooms of one floor do not know each other.
TOWER = [
    GROUND,
    {"known"},
    {"store"},
    {"data", "grid"},
    MATHEMATICS,
    {"networks"},
    {"methods"},
    {"training"},
    {"models"},
    {"scoring"},
    {"study", "report"},
    {"explore"},
    {"cli"},
]
FLOOR = {room: height for height, rooms in enumerate(TOWER) for room in rooms}
# The five files of mathematics stand on each other, the ground's files too.
NEIGHBOURS = [GROUND, MATHEMATICS]
NO_TORCH = ("grid", "store", "cli", "known", "scoring.rows", "scoring.recipe", "networks.sizes", "errors", "units")


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {name_of(path): path for path in PACKAGE.rglob("*.py")} | {"": PACKAGE / "__init__.py"}


def imports(name, *, lazily=True):
    """Every module a file imports; those of this package without `onestep_bench.`. lazily: inside functions too."""
    tree = ast.parse(FILES[name].read_text())
    nodes = ast.walk(tree) if lazily else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute here"
            found |= {_meant(node.module, alias.name) for alias in node.names}
    return {module.removeprefix("onestep_bench.") for module in found}


def _meant(module, name):
    """What `from module import name` imports: a file of a package, or else the module itself."""
    inner = f"{module}.{name}".removeprefix("onestep_bench.")
    return inner if inner in FILES else module


def files(name, **how):
    """Files of this package that a file imports."""
    return (imports(name, **how) & FILES.keys()) - {"", name}


def room_of(name):
    return name.split(".")[0]


def reached(name):
    """All files that importing one brings along at once."""
    found, open_ = set(), [name]
    while open_:
        new = files(open_.pop(), lazily=False) - found
        found |= new
        open_ += new
    return found


def test_the_reader_of_imports_sees_them():
    assert {"paths", "errors"} <= files("denoiser")
    assert "compat" in files("losses")  # imported inside a function
    assert "compat" not in files("losses", lazily=False)
    assert "methods" in files("methods.slimflow")
    assert "torch" in imports("paths")


def test_every_room_stands_on_a_floor():
    assert {room_of(name) for name in FILES} - {""} == FLOOR.keys()


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_point_only_down(name):
    room = room_of(name)
    for other in {room_of(used) for used in files(name)} - {room}:
        together = any({room, other} <= group for group in NEIGHBOURS)
        assert together or FLOOR[other] < FLOOR[room] or (room, other) == ("report", "grid"), f"{name} imports {other}"


def test_no_circle_between_files():
    # A package's file is imported with any file inside it; `methods` and `data.sets` find theirs by looking.
    TopologicalSorter({name: files(name) for name in FILES}).prepare()  # raises CycleError


def test_grids_and_the_laboratory_do_not_know_each_other():
    laboratory = {"networks", "methods", "training", "models", "scoring", "study", *MATHEMATICS}
    for name in FILES:
        used = {room_of(other) for other in files(name)}
        if room_of(name) == "grid":
            assert used <= {"grid", "store", "known", *GROUND}, name
        if room_of(name) in laboratory:
            assert "grid" not in used, name


def test_paths_knows_nobody():
    assert files("paths") == {"errors"}


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.startswith("methods.")))
def test_methods_know_the_mathematics_and_not_each_other(name):
    assert {room_of(used) for used in files(name)} <= {"networks", "known", *GROUND, *MATHEMATICS, "methods"}
    assert not any(used.startswith("methods.") for used in files(name))


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.startswith(NO_TORCH)))
def test_plans_records_and_help_need_no_torch(name):
    if name == "cli.evaluate":  # imported by its command alone
        return
    for file in {name, *reached(name)}:
        found = {module.split(".")[0] for module in imports(file, lazily=False)}
        assert not found & {"torch", "pandas", "matplotlib"}, file


def test_planning_a_grid_brings_along_neither_torch_nor_dask():
    rooms = "import onestep_bench.cli; from onestep_bench.grid import read_grid, status_of, survey"
    program = f"import sys; {rooms}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "dask", "distributed", "pandas", "numpy", "papermill", "psutil", "IPython"} & set(loaded)
    assert "onestep_bench.grid.plan" in loaded


def test_few_know_the_store():
    users = {"models", "scoring", "training", "study", "grid", "cli", "store"}
    artifacts = {name for name in FILES if {"store", "store.artifacts"} & files(name)}
    assert {room_of(name) for name in artifacts} == users
