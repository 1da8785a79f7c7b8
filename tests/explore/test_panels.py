"""Panels: widgets that draw again where somebody looks on, one picture where nobody does."""

import base64
import re
from dataclasses import replace

import pytest
import torch
from IPython.core.formatters import DisplayFormatter

from onestep_bench import data, store
from onestep_bench.errors import OnestepError
from onestep_bench.explore import panels, screen


@pytest.mark.parametrize("panel", [panels.samples, panels.morph])
def test_without_a_front_end_a_panel_is_a_picture(tiny_models, panel):
    shown, _ = DisplayFormatter().format(panel(tiny_models))
    assert base64.b64decode(shown["image/png"]).startswith(b"\x89PNG")
    assert shown["text/plain"] == "explore.Panel"
    assert "application/vnd.jupyter.widget-view+json" not in shown


def test_with_one_it_is_widgets_that_draw_again(tiny_models, looked_at):
    panel = panels.samples(tiny_models, sampler="euler", steps=2)
    assert "application/vnd.jupyter.widget-view+json" in panel._repr_mimebundle_()
    (chooser, asked), picture = panel._shown.children[0].children, panel._shown.children[1]
    by_name = {widget.description: widget for widget in asked.children}
    assert by_name.keys() == {"sampler", "steps", "seed", "class"}
    assert by_name["class"].label == by_name["sampler"].options[0][0] == "each its own"
    seen = {picture.value}
    for name, value in (("steps", 1), ("seed", 3), ("sampler", "heun"), ("steps", 3)):
        by_name[name].value = value
        seen.add(picture.value)
    assert len(seen) == 4  # heun in one step is euler
    assert len(re.findall("<img", picture.value)) == 20
    chooser.value = ["flow"]
    assert len(re.findall("<img", picture.value)) == 10
    assert "denoiser" not in tiny_models["edm"].__dict__  # nobody looks at it: its memory is given back
    chooser.value = []
    assert "no model is chosen" in picture.value


def test_what_one_model_cannot_do_hides_no_other(tiny_models, looked_at, tmp_path):
    gone = replace(tiny_models["edm"], artifact=store.Artifact(tmp_path / "model-gone"))
    gone.artifact.__dict__["meta"] = tiny_models["edm"].artifact.meta  # it was removed after it was chosen
    shown = panels.samples({"flow": tiny_models["flow"], "gone": gone} | tiny_models)._shown
    picture = shown.children[1]
    assert len(re.findall("<img", picture.value)) == 20
    assert "model-gone holds no whole model" in picture.value


def test_a_picture_tells_what_it_lacks(tiny_models, monkeypatch):
    drawn = []
    monkeypatch.setattr(panels.plots, "sheet", lambda rows, title: drawn.append((list(rows), title)))
    rows = {"a": torch.zeros(1, 1, 4, 4), "b": "8 steps do not fit into 4 levels"}
    panels._sheet(rows)
    assert drawn == [(["a"], "b: 8 steps do not fit into 4 levels")]
    with pytest.raises(OnestepError, match="b: 8 steps"):
        panels._sheet({"b": rows["b"]})


def test_a_slow_picture_waits_until_the_slider_is_let_go(tiny_models, looked_at, monkeypatch):
    for quick, follows in ((60.0, True), (0.0, False)):
        monkeypatch.setattr(panels, "_QUICK", quick)
        asked = panels.samples(tiny_models)._shown.children[0].children[1]
        steps = next(widget for widget in asked.children if widget.description == "steps")
        assert steps.continuous_update == follows


def test_an_error_of_ours_is_seen_and_raised_for_the_log(tiny_models, looked_at, monkeypatch):
    shown = panels.samples(tiny_models)._shown
    (_, asked), picture = shown.children[0].children, shown.children[1]
    monkeypatch.setattr(panels, "_each", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        asked.children[1].value = 3
    assert "ZeroDivisionError: division by zero; all of it is in the log" in picture.value


def test_without_widgets_installed_a_kernel_is_told_what_to_install(tiny_models, looked_at, monkeypatch):
    monkeypatch.setattr("onestep_bench.errors.find_spec", lambda name: None)
    with pytest.raises(OnestepError, match=r"ipywidgets, anywidget: pip install 'onestep-bench\[lab\]'"):
        panels.samples(tiny_models)


def test_there_are_no_panels_of_no_models():
    with pytest.raises(OnestepError, match="no models to look at"):
        panels.samples({})


def test_the_noise_level_moves(tiny_models, looked_at, as_if):
    images = data.to_unit(data.load("digits").images[:2])
    models = {"kd": as_if("kd"), "kid": as_if("kid")} | tiny_models
    shown = panels.levels(models, images, labels=torch.tensor([0, 1]))._shown
    (_, asked), picture = shown.children[0].children, shown.children[1]
    before = picture.value
    assert "edm: velocity" in before  # the first of the models that is a teacher
    asked.children[0].value = 0.9
    assert picture.value != before
    assert "x at t = 0.90" in picture.value
    assert "velocity" in picture.value


def test_names_are_text_and_not_markup():
    assert "<b>" not in screen.table({"<b>": torch.zeros(1, 3, 4, 4), "a": "<b>"})
    assert "width:60px" in screen.table({"a": torch.zeros(1, 3, 20, 20)})  # a whole number of pixels for each


@pytest.mark.parametrize("unattended", ["ONESTEP_SCRATCH", "PYTEST_VERSION"])
def test_what_executes_notebooks_does_not_look_on(looked_at, monkeypatch, unattended):
    assert screen.live()
    monkeypatch.setenv(unattended, "1")
    assert not screen.live()
