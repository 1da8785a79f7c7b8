"""Panels: widgets that draw again where somebody looks on, one picture where nobody does."""

import base64
import re

import pytest
import torch
from IPython.core.formatters import DisplayFormatter

from onestep_bench import data
from onestep_bench.explore import panels, screen


@pytest.mark.parametrize("panel", [panels.samples, panels.morph])
def test_without_a_front_end_a_panel_is_a_picture(tiny_models, panel):
    shown, _ = DisplayFormatter().format(panel(tiny_models))
    assert base64.b64decode(shown["image/png"]).startswith(b"\x89PNG")
    assert shown["text/plain"] == "explore.Panel"
    assert "application/vnd.jupyter.widget-view+json" not in shown


def test_with_one_it_is_widgets_that_draw_again(tiny_models, looked_at):
    panel = panels.samples(tiny_models, steps=2)
    assert "application/vnd.jupyter.widget-view+json" in panel._repr_mimebundle_()
    (chooser, asked), picture = panel._shown.children[0].children, panel._shown.children[1]
    by_name = {widget.description: widget for widget in asked.children}
    assert by_name.keys() == {"sampler", "steps", "seed", "class"}
    seen = {picture.value}
    for name, value in (("steps", 1), ("seed", 3), ("sampler", "heun"), ("steps", 3)):
        by_name[name].value = value
        seen.add(picture.value)
    assert len(seen) == 4  # heun in one step is euler
    assert len(re.findall("<img", picture.value)) == 20
    chooser.value = ["flow"]
    assert len(re.findall("<img", picture.value)) == 10
    chooser.value = []
    assert "no model is chosen" in picture.value


def test_the_noise_level_moves(tiny_models, looked_at):
    images = data.to_unit(data.load("digits").images[:2])
    shown = panels.levels(tiny_models, images, labels=torch.tensor([0, 1]))._shown
    (_, asked), picture = shown.children[0].children, shown.children[1]
    before = picture.value
    asked.children[0].value = 0.9
    assert picture.value != before
    assert "x at t = 0.90" in picture.value
    assert "velocity" in picture.value


def test_names_are_text_and_not_markup():
    assert "<b>" not in screen.table(lambda: {"<b>": torch.zeros(1, 3, 4, 4)})


@pytest.mark.parametrize("unattended", ["ONESTEP_SCRATCH", "PYTEST_VERSION"])
def test_what_executes_notebooks_does_not_look_on(looked_at, monkeypatch, unattended):
    assert screen.live()
    monkeypatch.setenv(unattended, "1")
    assert not screen.live()
