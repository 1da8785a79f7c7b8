"""What comes from outside the package stands beside what is in it."""

import csv
import os
import subprocess
import sys

import pytest
from tiny import grid_file, notebook

from onestep_bench.data.splits import SPLITS
from onestep_bench.grid.plan import read_grid
from onestep_bench.known import plugins

PLUGIN = """
from dataclasses import replace

import numpy as np

from onestep_bench.data import dataset
from onestep_bench.methods import get, register
from onestep_bench.samplers import euler, register as register_sampler
from onestep_bench.scoring import metric

register(replace(get("rectified-flow"), name="our-flow"))
register_sampler("our-euler")(euler)


@dataset("our-noise")
def _noise(root):
    return np.random.default_rng(0).integers(0, 255, (300, 1, 8, 8), np.uint8), None


@metric("mean_gap", better="higher")
def _mean_gap(samples, reference):
    return float(np.abs(samples.mu - reference.mu).max())
"""
PROGRAM = """
import json, sys
from pathlib import Path
from onestep_bench import data, report, study
from onestep_bench.scoring.rows import MIME

images = data.load("our-noise")
model = study.train("our-flow", images, size="0.05M", kimg=0.5, batch_size=64)
scores = study.evaluate(model, images, label="ours", sampler="our-euler", steps=[1, 2], seeds=[0], samples=64)
study.record(scores)
folder = Path(sys.argv[1])
output = {"output_type": "display_data", "metadata": {}, "data": {MIME: scores}}
cell = {"cell_type": "code", "source": "", "metadata": {}, "outputs": [output], "execution_count": 1}
(folder / "one.ipynb").write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
"""
REPORT = "import sys; from pathlib import Path; from onestep_bench.report import render; render(Path(sys.argv[1]))"


def run(program, *arguments, **settings):
    told = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=os.environ | {key: str(value) for key, value in settings.items()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    return told.stdout


def test_a_plug_in_brings_a_method_a_data_set_a_sampler_and_a_metric_into_a_report(tmp_path):
    """One file; and the report is drawn where the plug-in is not known."""
    (tmp_path / "ours.py").write_text(PLUGIN)
    folder = tmp_path / "executed"
    folder.mkdir()
    told = run(PROGRAM, folder, ONESTEP_PLUGINS=tmp_path / "ours.py", ONESTEP_STORE=tmp_path / "store")
    assert "mean_gap" in told
    run(REPORT, folder)
    with open(folder / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == {"our-flow"}
    seats = [(row["steps"], row["split"], row["features"]) for row in rows]
    judges = ("random-features", "pixels")  # of images without labels
    assert sorted(seats) == sorted((steps, split, judge) for steps in "12" for split in SPLITS for judge in judges)
    assert {row["dataset"] for row in rows} == {"our-noise"}
    assert all(float(row["mean_gap"]) > 0 for row in rows)
    page = (folder / "report.html").read_text()
    largest = max(float(row["mean_gap"]) for row in rows)
    assert '{"key":"mean_gap","title":"mean_gap","better":"higher"}' in page
    assert f"{largest:.5g}" in page


@pytest.mark.parametrize("content", [None, "import nothing_of_the_kind", "1 +"])
def test_a_plug_in_that_cannot_be_imported_is_one_line(tmp_path, monkeypatch, refuses, content):
    path = tmp_path / "broken.py"
    if content:
        path.write_text(content)
    monkeypatch.setenv(plugins.VARIABLE, str(path))
    for _ in range(2):  # it does not pass for loaded the second time
        with refuses(str(path), "cannot be imported"):
            plugins.load()


def test_a_grid_names_its_plug_ins_and_plans_with_what_they_bring(tmp_path, monkeypatch, refuses):
    monkeypatch.setenv(plugins.VARIABLE, "")
    notebook(tmp_path / "notebooks" / "model.ipynb", "method = 'kd'", "print(method)")
    text = "name: tiny\n{}stages: {{model: {{notebook: model.ipynb, parameters: {{method: our-flow}}}}}}"
    with refuses("'method'", "'our-flow'"):
        read_grid(grid_file(tmp_path, text.format("")))
    with refuses("no file", "ours.py"):
        read_grid(grid_file(tmp_path, text.format("plugins: [ours.py]\n")))
    path = grid_file(tmp_path, text.format("plugins: [ours.py]\n"))
    (path.parent / "ours.py").write_text(PLUGIN)
    reading = "from onestep_bench.grid import read_grid; read_grid(sys.argv[1])"
    program = f"import os, sys; {reading}; print(os.environ['ONESTEP_PLUGINS'])"
    assert run(program, path).strip() == str(path.parent / "ours.py")
