"""The grids that come with the package: each can be planned anywhere, and the papers' are what their page says."""

import re
import runpy
from pathlib import Path

import pytest

from onestep_bench.cli import main
from onestep_bench.grid import cost
from onestep_bench.grid.changes import Changes
from onestep_bench.grid.plan import read_grid

HOUSE = Path(__file__).parents[1]
PARAMS = HOUSE / "params"
GRIDS = sorted(path for path in PARAMS.rglob("*.yaml") if path.parent.name != "clusters")
PAPERS = [path for path in GRIDS if path.parent.name == "papers"]
# Of these no figure could be had that they might meet.
UNPUBLISHED = ("cifar10-sfddm", "cifar10-gdd-cond")


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine on which nothing was ever downloaded."""
    for name in ("ONESTEP_DATA", "ONESTEP_WEIGHTS", "TORCH_HOME", "HF_HUB_CACHE", "ONESTEP_STORE"):
        monkeypatch.setenv(name, str(tmp_path / name))


def hours(grid):
    """GPU-hours by stage."""
    cells = {name: [cell for cell in grid.cells if cell.stage == name] for name in grid.stages}
    return {
        name: cost.hours(stage.passes, [stage.declared | cell.parameters for cell in cells[name]], grid.rate)
        for name, stage in grid.stages.items()
    }


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_grid_is_planned_on_a_bare_machine(path, bare, capsys):
    assert main(["plan", str(path)]) == 0
    told = capsys.readouterr().out
    assert (path in PAPERS) == ("published, to be met:" in told) or path.stem in UNPUBLISHED
    if path in PAPERS:
        missing = told.split("not there yet:")[1]
        assert "weights of the judge dinov2" in missing
        assert ("reference" in missing) == (path.stem != "cifar10-sfddm")


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_every_paper_is_scored_as_papers_are(path):
    grid = read_grid(path)
    assert grid.name == path.stem
    for cell in grid.cells:
        assert cell.parameters["features"] == ["inception-legacy", "clip", "dinov2"]
        assert (cell.parameters["samples"], cell.parameters["seeds"]) == (50000, [0, 1, 2])
        side = re.search(r"\d+(?=-)|10-", grid.name)[0]
        reference = cell.parameters.get("reference", "")
        assert reference.endswith(f"-{'32x32' if side == '10' else '64x64'}.npz") or grid.name == "cifar10-sfddm"
    students = [figure for name, stage in grid.stages.items() if name != "teacher" for figure in stage.published]
    assert bool(students) == (grid.name not in UNPUBLISHED)
    assert None not in hours(grid).values()


def test_published_figures_are_those_of_the_report():
    table = (HOUSE / "onestep_bench" / "report" / "published.csv").read_text()
    known = {float(number) for number in re.findall(r"(?<=,)\d+\.\d+(?=,)", table)}
    for path in PAPERS:
        for name, stage in read_grid(path).stages.items():
            for figure in stage.published if name != "teacher" else ():
                assert figure["fid"] in known or figure["source"] in OWN_SOURCES, (path.stem, figure)


# Figures that the report's table has not: SlimFlow's of a 1-rectified flow's pairs, ECT's of 25.6 million images.
OWN_SOURCES = ("arXiv:2407.12718", "github.com/locuslab/ect")


def test_the_page_of_the_papers_is_made_from_the_grids():
    made = runpy.run_path(str(HOUSE / "scripts" / "papers_table.py"))["page"]()
    written = (PARAMS / "papers" / "README.md").read_text(encoding="utf-8")
    assert written == made, "run python scripts/papers_table.py"


def test_a_setting_that_differs_for_no_stated_reason_is_refused(refuses):
    script = runpy.run_path(str(HOUSE / "scripts" / "papers_table.py"))
    grid = read_grid(PARAMS / "papers" / "cifar10-ect.yaml")
    row = {"stage": "ect", "setting": "options.dropout", "released": "0.2", "source": "x", "why": ""}
    assert "≠" not in script["_line"](grid, row)
    with refuses("cifar10-ect: options.dropout differs", "0.2 and 0.3"):
        script["_line"](grid, row | {"released": "0.3"})
    with refuses("is as released"):
        script["_line"](grid, row | {"why": "we like it"})
    assert "**≠**" in script["_line"](grid, row | {"released": "0.3", "why": "we like it"})


def test_the_grid_of_a_day_takes_one_and_has_every_method_at_four_sizes():
    from onestep_bench import methods

    grid = read_grid(PARAMS / "cifar10.yaml")
    assert 12 < sum(hours(grid).values()) <= 24
    trained = {cell.parameters.get("method") for cell in grid.cells} | {"edm", "sfddm"}
    slimflow = {"annealing-reflow", "flow-guided-distillation"}
    others = {"rectified-flow", "ddpm"}  # teachers of another kind
    assert set(methods.names()) == trained - {None} | slimflow | others
    sizes = ("3.4M", "7.0M", "15.7M", "27.9M")
    for name in set(grid.stages) - {"slimflow-small"}:
        cells = [cell for cell in grid.cells if cell.stage == name]
        assert [cell.parameters["teacher_size"] for cell in cells] == list(sizes), name


def test_the_grid_of_half_an_hour_takes_it_in_cells_of_minutes():
    grid = read_grid(PARAMS / "cifar10-30min.yaml")
    assert sum(hours(grid).values()) <= 0.35  # the rest is for starting up, compiling and judging
    assert all(cell.takes <= 600 for cell in grid.cells)
    assert sum(cell.takes for cell in grid.cells) <= 30 * 60
    assert all(cell.parameters["features"][0] == "classifier" for cell in grid.cells)


@pytest.mark.parametrize("name", ["cifar10-cd", "cifar10-ect", "cifar10-pd", "cifar10-sfddm", "cifar10-slimflow"])
def test_a_thousandth_costs_about_a_thousandth(name):
    path = PARAMS / "papers" / f"{name}.yaml"
    whole, small = (sum(hours(read_grid(path, changes=Changes.of(scale))).values()) for scale in (1, 0.001))
    assert small == pytest.approx(whole / 1000, rel=0.25)  # no budget falls below a batch
