"""Write params/papers/README.md: every setting of the papers' grids beside the released one, made from the grids.

What was released stands in params/papers/released.csv, with its source and, where a grid differs, why. A test holds the
README to what this makes.
"""

import csv
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path

import yaml

from onestep_bench import methods
from onestep_bench.errors import OnestepError
from onestep_bench.grid import cost
from onestep_bench.grid.cells import Cell, Grid
from onestep_bench.grid.plan import read_grid
from onestep_bench.training.config import TrainConfig

FOLDER = Path(__file__).parents[1] / "params" / "papers"
# Whose settings are meant by an options parameter of a notebook that trains several networks.
METHODS = {"reflow_options": "annealing-reflow", "distill_options": "flow-guided-distillation"}
# What no parameter says.
NOWHERE = {
    "images to train on": "nine in ten of the archive",
    "second of two levels": 1.0,
}
INTRODUCTION = """# The papers as published

A grid for each paper and data set, of the settings of its paper and its released code:

```
onestep-bench plan params/papers/cifar10-gdd.yaml   # GPU-hours, figures to meet, missing files and where they go
onestep-bench run  params/papers/cifar10-gdd.yaml
```

All score 50,000 samples from each of three sampling seeds, before Inception as published (`inception-legacy`), CLIP
and DINOv2, on the images of the data set and, Inception, on EDM's reference statistics (`reference`), whose rows are
those to set beside a published figure. Papers quote the least of several scores: `summary.csv` of a report has the mean
and `fid_min`, and `fid_snapshot`, that of the best snapshot.

Data sets of 64 pixels are zips in EDM's format, under `ONESTEP_DATA`; teachers of EDM's zoo, reference statistics and
weights of judges are downloaded when they are needed. The packages that judges, critics and losses need:
`pip install 'onestep-bench[grid,critics,lpips,clip]'`.

What EDM's networks are to meet is its paper's: 1.97 and 1.79 are in its abstract, 2.39 and 2.44 in the report's table
of published figures, and those of VE without classes (1.98, 2.53, 2.16) were written from memory of its table 2.

None of these grids has been run at its budget. `tests/test_papers_slow.py` (`make test-slow`) runs each at a
thousandth of it on a CPU, with small networks and stand-ins for teachers, critics and judges, and holds the network
passes by which its cost is told against those it counts; passes of LPIPS, and of samples and their judges, are counted
by hand. GPU-hours are of one GPU, at a rate that each grid states. So a grid is tried out by hand, on any images:

```
onestep-bench run params/papers/cifar10-ect.yaml --scale 0.001 --set dataset=cifar10.zip --set teacher=small.pkl \\
    --set 'features=[pixels, random-features]' --set reference= --set batch_size=64
```

Below, **≠** marks what differs from what was released, and why. This page is made by `python scripts/papers_table.py`.
"""


def page() -> str:
    """The whole README."""
    released = list(_released())
    parts = [_part(read_grid(path), released) for path in sorted(FOLDER.glob("*.yaml"))]
    return "\n".join([INTRODUCTION, *parts])


def _released() -> Iterator[dict]:
    with (FOLDER / "released.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield row | {"grids": row["grids"].split()}


def _part(grid: Grid, released: list[dict]) -> str:
    lines = [f"## {grid.name}", "", f"{grid.title}. {_cost(grid)}", ""]
    for name, stage in grid.stages.items():
        lines += [f"- to be met by `{name}`: FID {f['fid']:g}, {f['at']} ({f['source']})" for f in stage.published]
    lines += ["", "| setting | here | released | source |", "|---|---|---|---|"]
    rows = [row for row in released if grid.name in row["grids"]]
    return "\n".join(lines + [_line(grid, row) for row in rows]) + "\n"


def _cost(grid: Grid) -> str:
    hours = {name: stage_hours(grid, name) for name in grid.stages}
    told = ", ".join(f"{name} {_short(spent)}" for name, spent in hours.items())
    return f"GPU-hours {_short(sum(hours.values()))} ({told}), at {grid.rate.teramacs:g} TMAC/s: {grid.rate.of}."


def _short(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def stage_hours(grid: Grid, name: str) -> float:
    """GPU-hours of a stage."""
    stage = grid.stages[name]
    cells = [stage.declared | cell.parameters for cell in grid.cells if cell.stage == name]
    return cost.hours(stage.passes, cells, grid.rate)


def _line(grid: Grid, row: dict) -> str:
    ours, theirs = here(grid, row["stage"], row["setting"]), yaml.safe_load(row["released"])
    differs = ours != theirs
    if differs != bool(row["why"]):
        what = (
            "differs, and released.csv does not say why" if differs else "is as released, and released.csv says why not"
        )
        raise OnestepError(f"{grid.name}: {row['setting']} {what}: {ours!r} and {theirs!r}")
    told = f"{_text(ours)} **≠**" if differs else _text(ours)
    setting = row["setting"] if row["stage"] in ("gdd", "slimflow") else f"{row['stage']}: {row['setting']}"
    source = f"{row['source']}. {row['why'][0].upper()}{row['why'][1:]}" if differs else row["source"]
    return f"| {setting} | {told} | {_text(theirs)} | {source} |"


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(one)}" for key, one in value.items())
    return str(value).lower() if value is None or isinstance(value, bool) else f"{value}"


def here(grid: Grid, stage: str, setting: str) -> object:
    """A setting as the cells of a stage have it: one value, or those of an axis."""
    if setting in NOWHERE:
        return NOWHERE[setting]
    cells = [cell for cell in grid.cells if cell.stage == stage]
    found = [_of_cell(grid, cell, setting) for cell in cells]
    return found[0] if all(value == found[0] for value in found) else found


def _of_cell(grid: Grid, cell: Cell, setting: str) -> object:
    values = grid.stages[cell.stage].declared | cell.parameters
    name, _, key = setting.partition(".")
    if not key:
        return values[name]
    default = "sfddm" if "student_levels" in values else values.get("method")
    method = METHODS.get(name) or (values["teacher"] if name == "teacher_options" else default)
    return values[name][key] if key in values[name] else _default(methods.get(method), key)


def _default(method: methods.Method, key: str) -> object:
    """Of a training's field that the grid leaves alone."""
    own = {field.name: field.default for field in fields(method.config)}
    value = {**asdict(TrainConfig(kimg=1.0)), **own, **method.training}[key]
    return list(value) if isinstance(value, tuple) else value


if __name__ == "__main__":
    (FOLDER / "README.md").write_text(page(), encoding="utf-8")
