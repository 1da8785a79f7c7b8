"""A grid cell of one's own: the papermill line and the YAML that run it, checked as `plan` checks them."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
import yaml
from matplotlib.figure import Figure

from onestep_bench.errors import OnestepError
from onestep_bench.explore.screen import Panel
from onestep_bench.known.catalogue import known
from onestep_bench.known.values import check

_NOTEBOOK = "method.ipynb"


@dataclass(frozen=True)
class Recipe:
    """A cell of `method.ipynb`: what it is given, and the folder of `reports/` that it is of."""

    parameters: dict
    name: str = "mine"

    @property
    def stage(self) -> str:
        """The method's name without what file names may not hold: '2-rf' of '2-rf++'."""
        return re.sub(r"[^A-Za-z0-9_-]", "", self.parameters["method"])

    @property
    def line(self) -> str:
        """Shell: papermill by hand, from the folder that holds `notebooks`."""
        out = f"reports/{self.name}/notebooks"
        given = " ".join(_argument(name, value) for name, value in self.parameters.items())
        return f"mkdir -p {out} && papermill notebooks/{_NOTEBOOK} {out}/{self.stage}.ipynb {given}"

    @property
    def grid(self) -> str:
        """YAML: a grid of this cell, for `params/NAME.yaml`."""
        stage = {"notebook": _NOTEBOOK, "parameters": self.parameters}
        document = {"name": self.name, "stages": {self.stage: stage}}
        return yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=110)


def cell(
    method: str = "gdd",
    *,
    size: str = "0.2M",
    kimg: float = 12.8,
    teacher_size: str = "0.2M",
    teacher_kimg: float = 75.0,
    steps: Sequence[int] = (1, 2, 4),
    options: dict | None = None,
    name: str = "mine",
    **further,
) -> Recipe:
    """The cell that trains a method and scores it beside its teacher.

    further: other parameters of `method.ipynb`. A student of another size than its teacher starts from random weights.
    Raises OnestepError for values that `onestep-bench plan` would refuse.
    """
    given = {"method": method, "size": size, "kimg": float(kimg)}
    given |= {"teacher_size": teacher_size, "teacher_kimg": float(teacher_kimg), "steps": list(steps)}
    given |= {"start": "random"} if size != teacher_size else {}
    given |= ({"options": options} if options else {}) | further
    check(given, given, {}, Path.cwd())
    return Recipe(given, name)


def designer() -> Panel:
    """Controls for a cell, and under them what runs it, to copy; where nobody looks on, that of the defaults."""
    return Panel(_controls, lambda: _written(cell()))


def _controls():
    import ipywidgets as widgets

    sizes = list(known("sizes"))
    asked = {
        "method": widgets.Dropdown(options=sorted(known("methods")), value="gdd", description="method"),
        "size": widgets.Dropdown(options=sizes, value="0.2M", description="size"),
        "kimg": widgets.FloatText(12.8, description="kimg"),
        "teacher_size": widgets.Dropdown(options=sizes, value="0.2M", description="teacher size"),
        "teacher_kimg": widgets.FloatText(75.0, description="teacher kimg"),
    }
    steps = widgets.Text("1, 2, 4", description="steps")
    options = widgets.Text("{}", description="options", placeholder="{lr_decay: linear}")
    wide = {"layout": widgets.Layout(width="95%")}
    line, grid = widgets.Textarea(rows=3, **wide), widgets.Textarea(rows=12, **wide)
    said = widgets.HTML()

    def write(*_) -> None:
        try:
            more = {"steps": _numbers(steps.value), "options": _mapping(options.value)}
            made = cell(**{name: widget.value for name, widget in asked.items()}, **more)
        except OnestepError as error:
            line.value = grid.value = ""
            said.value = f"<p role='alert'>{escape(str(error))}</p>"
            return
        line.value, grid.value = made.line, made.grid
        path = f"params/{made.name}.yaml"
        said.value = (
            "In a terminal, in the folder that holds <code>notebooks/</code>: the line; or save the YAML there as "
            f"<code>{path}</code> and <code>onestep-bench run {path}</code>."
        )

    for widget in (*asked.values(), steps, options):
        widget.style.description_width = "7em"
        widget.observe(write, "value")
    write()
    left = widgets.VBox([asked["method"], asked["size"], asked["kimg"], steps])
    right = widgets.VBox([asked["teacher_size"], asked["teacher_kimg"], options])
    return widgets.VBox([widgets.HBox([left, right]), said, line, grid])


def _numbers(text: str) -> list[int]:
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isdecimal() for part in parts):
        raise OnestepError(f"steps must be whole numbers with commas between, not {text!r}")
    return [int(part) for part in parts]


def _mapping(text: str) -> dict:
    try:
        found = yaml.safe_load(text or "{}")
    except yaml.YAMLError as error:
        raise OnestepError(f"options are no YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(found, dict):
        raise OnestepError(f"options must be a mapping, as {{lr_decay: linear}}, not {text!r}")
    return found


def _argument(name: str, value: object) -> str:
    if isinstance(value, list | dict | bool):
        text = yaml.safe_dump({name: value}, default_flow_style=True, width=10_000).strip()
        return f"-y {shlex.quote(text[1:-1])}"  # papermill reads the mapping without its braces as well
    return f"{'-r' if isinstance(value, str) else '-p'} {name} {shlex.quote(str(value))}"


def _written(recipe: Recipe) -> Figure:
    """The texts as a picture, for where there are no widgets to copy them from."""
    figure = plt.figure(figsize=(9, 2.6))
    folder, _, line = recipe.line.partition(" && ")
    line = f"{folder} &&\n" + line.replace(" -", " \\\n    -")
    figure.text(0, 1, f"{line}\n\n{recipe.grid}", family="monospace", fontsize=8, va="top")
    plt.close(figure)
    return figure
