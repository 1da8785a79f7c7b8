"""Panels: the pictures of `pictures` under sliders, drawn again as one moves."""

import time
from collections.abc import Callable, Mapping

from matplotlib.figure import Figure
from torch import Tensor

from onestep_bench import samplers
from onestep_bench.errors import OnestepError
from onestep_bench.explore import pictures
from onestep_bench.explore.pictures import OWN
from onestep_bench.explore.screen import Panel, alert, table, told
from onestep_bench.methods.teacher import TEACHERS
from onestep_bench.models import Model
from onestep_bench.report import plots

_AT_ONCE = 3  # models that a panel begins with
_QUICK = 0.25  # seconds of a drawing that follows a slider; a slower one waits until it is let go
_EACH = "each its own"  # class, or sampler
_ANY = -1  # class; a drop-down shows nothing for None


def samples(models: Mapping[str, Model], *, sampler: str = OWN, steps: int = 8, seed: int = 0) -> Panel:
    """Samples of the chosen models side by side, from the same noise."""
    begin = {"sampler": sampler, "steps": steps, "seed": seed}

    def controls(widgets) -> dict:
        return _walk_controls(widgets, models, begin)

    return _panel(models, pictures.side_by_side, begin, controls)


def morph(models: Mapping[str, Model], *, sampler: str = OWN, steps: int = 8, seed: int = 0) -> Panel:
    """The way from one sample's noise to another's."""
    begin = {"first": 0, "second": 1, "sampler": sampler, "steps": steps, "seed": seed}

    def controls(widgets) -> dict:
        ends = {
            name: widgets.IntSlider(value, 0, 50, description=f"{name} noise")
            for name, value in (("first", 0), ("second", 1))
        }
        return ends | _walk_controls(widgets, models, begin)

    return _panel(models, pictures.between, begin, controls)


def levels(
    models: Mapping[str, Model], images: Tensor, *, t: float = 0.5, seed: int = 0, labels: Tensor | None = None
) -> Panel:
    """Images at a noise level, and what the chosen denoisers answer there; it begins with a teacher, if any is one."""
    begin = {"t": t, "seed": seed}

    def controls(widgets) -> dict:
        level = widgets.FloatSlider(t, min=0.02, max=1.0, step=0.02, description="noise t")
        return {"t": level, "seed": _seed(widgets, seed)}

    def drawn(chosen: Mapping[str, Model], **asked) -> pictures.Rows:
        return pictures.level(chosen, images, labels=labels, **asked)

    ordered = dict(sorted(models.items(), key=lambda item: item[1].artifact.recipe["method"] not in TEACHERS))
    return _panel(ordered, drawn, begin, controls, at_once=1)


def _panel(
    models: Mapping[str, Model],
    drawn: Callable[..., pictures.Rows],
    begin: dict,
    controls: Callable,
    at_once: int = _AT_ONCE,
) -> Panel:
    """drawn(chosen models, **values of the controls): rows; controls(ipywidgets): a widget of each of its values."""
    if not models:
        raise OnestepError("there are no models to look at; train one, or run params/quickstart.yaml")
    first = list(models)[:at_once]

    def interactive():
        import ipywidgets as widgets

        chooser = widgets.SelectMultiple(options=list(models), value=first, rows=min(8, len(models)))
        chooser.description, chooser.layout.width = "models", "34em"
        asked, picture = controls(widgets), widgets.HTML()
        sliders = [one for one in asked.values() if isinstance(one, widgets.IntSlider | widgets.FloatSlider)]

        def redraw(*_) -> None:
            began = time.monotonic()
            with told(picture):
                chosen = {name: models[name] for name in chooser.value}
                values = {name: None if widget.value == _ANY else widget.value for name, widget in asked.items()}
                picture.value = (
                    table(_each(chosen, drawn, values)) if chosen else alert("no model is chosen; choose one or more")
                )
            for model in (model for name, model in models.items() if name not in chooser.value):
                model.unload()
            for slider in sliders:
                slider.continuous_update = time.monotonic() - began < _QUICK

        for widget in (chooser, *asked.values()):
            widget.style.description_width = "7em"
            widget.observe(redraw, "value")
        redraw()
        return widgets.VBox([widgets.HBox([chooser, widgets.VBox(list(asked.values()))]), picture])

    return Panel(interactive, lambda: _sheet(_each({name: models[name] for name in first}, drawn, begin)))


def _each(models: Mapping[str, Model], drawn: Callable[..., pictures.Rows], asked: dict) -> dict[str, Tensor | str]:
    """Rows of each model, or in their place what it cannot do, which hides no other model."""
    rows: dict[str, Tensor | str] = {}
    for name, model in models.items():
        try:
            rows |= drawn({name: model}, **asked)
        except OnestepError as error:
            rows[name] = str(error)
    return rows


def _sheet(rows: Mapping[str, Tensor | str]) -> Figure:
    """The rows as a picture, over them what could not be drawn. Raises OnestepError if nothing could."""
    images = {name: row for name, row in rows.items() if isinstance(row, Tensor)}
    lines = [f"{name}: {row}" for name, row in rows.items() if isinstance(row, str)]
    if not images:
        raise OnestepError("; ".join(lines))
    return plots.sheet(images, title="\n".join(lines))


def _walk_controls(widgets, models: Mapping[str, Model], begin: dict) -> dict:
    """Sampler, steps, seed and, where a model knows any, the class."""
    if begin["sampler"] != OWN:
        samplers.sampler(begin["sampler"])  # which knows plug-ins' too
    known = [(_EACH, OWN), *((name, name) for name in samplers.SAMPLERS)]
    controls = {
        "sampler": widgets.Dropdown(options=known, value=begin["sampler"], description="sampler"),
        "steps": widgets.IntSlider(begin["steps"], 1, max(64, begin["steps"]), description="steps"),
        "seed": _seed(widgets, begin["seed"]),
    }
    classes = max(len(model.class_counts) for model in models.values())
    if classes:
        options = [(_EACH, _ANY), *((str(k), k) for k in range(classes))]
        controls["label"] = widgets.Dropdown(options=options, description="class")
    return controls


def _seed(widgets, value: int):
    return widgets.BoundedIntText(value, min=0, max=2**31 - 1, description="seed")
