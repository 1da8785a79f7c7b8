"""Panels: the pictures of `pictures` under sliders, drawn again as one moves."""

from collections.abc import Callable, Mapping

from torch import Tensor

from onestep_bench import samplers
from onestep_bench.explore import pictures
from onestep_bench.explore.screen import Panel, table
from onestep_bench.models import Model
from onestep_bench.report import plots

_AT_ONCE = 3  # models that a panel begins with
OWN = "each its own"  # class


def samples(models: Mapping[str, Model], *, sampler: str = "euler", steps: int = 1, seed: int = 0) -> Panel:
    """Samples of the chosen models side by side, from the same noise."""
    begin = {"sampler": sampler, "steps": steps, "seed": seed}

    def controls(widgets) -> dict:
        return _walk_controls(widgets, models, begin)

    return _panel(models, pictures.side_by_side, begin, controls)


def morph(models: Mapping[str, Model], *, sampler: str = "euler", steps: int = 1, seed: int = 0) -> Panel:
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
    """Images at a noise level, and what the chosen denoisers answer there."""
    begin = {"t": t, "seed": seed}

    def controls(widgets) -> dict:
        level = widgets.FloatSlider(t, min=0.02, max=0.98, step=0.02, description="noise t")
        return {"t": level, "seed": _seed(widgets, seed)}

    def drawn(chosen: Mapping[str, Model], **asked) -> pictures.Rows:
        return pictures.level(chosen, images, labels=labels, **asked)

    return _panel(models, drawn, begin, controls, at_once=1)


def _panel(
    models: Mapping[str, Model],
    drawn: Callable[..., pictures.Rows],
    begin: dict,
    controls: Callable,
    at_once: int = _AT_ONCE,
) -> Panel:
    """drawn(chosen models, **values of the controls): rows; controls(ipywidgets): a widget of each of its values."""
    first = dict(list(models.items())[:at_once])

    def interactive():
        import ipywidgets as widgets

        chooser = widgets.SelectMultiple(
            options=list(models), value=list(first), rows=min(8, len(models)), description="models"
        )
        chooser.layout.width = "27em"
        asked, picture = controls(widgets), widgets.HTML()

        def redraw(*_) -> None:
            chosen = {name: models[name] for name in chooser.value}
            picture.value = table(lambda: drawn(chosen, **{name: widget.value for name, widget in asked.items()}))

        for widget in (chooser, *asked.values()):
            widget.style.description_width = "7em"
            widget.observe(redraw, "value")
        redraw()
        return widgets.VBox([widgets.HBox([chooser, widgets.VBox(list(asked.values()))]), picture])

    return Panel(interactive, lambda: plots.sheet(drawn(first, **begin)))


def _walk_controls(widgets, models: Mapping[str, Model], begin: dict) -> dict:
    """Sampler, steps, seed and, where a model knows any, the class."""
    samplers.sampler(begin["sampler"])  # which knows plug-ins' too
    controls = {
        "sampler": widgets.Dropdown(options=list(samplers.SAMPLERS), value=begin["sampler"], description="sampler"),
        "steps": widgets.IntSlider(begin["steps"], 1, 64, description="steps"),
        "seed": _seed(widgets, begin["seed"]),
    }
    classes = max((len(model.class_counts) for model in models.values()), default=0)
    if classes:
        options = [(OWN, None), *((str(k), k) for k in range(classes))]
        controls["label"] = widgets.Dropdown(options=options, description="class")
    return controls


def _seed(widgets, value: int):
    return widgets.BoundedIntText(value, min=0, max=2**31 - 1, description="seed")
