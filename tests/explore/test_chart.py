"""The figure whose points show their samples, and the models of a report."""

import shutil
from dataclasses import replace

import pytest
import torch
from tiny import executed, row, strip

from onestep_bench import data, store
from onestep_bench.explore import chart, choice


@pytest.fixture
def report(tmp_path, tiny_models):
    """A report's folder: two models, one of which is in the store."""
    keys = {"SlimFlow": "model-gone", "KD": tiny_models["flow"].artifact.key}
    rows = [
        row(label=label, model=key, split=split, steps=steps, fid=10.0 * steps)
        for label, key in keys.items()
        for split in ("train", "test")
        for steps in (1, 2)
    ]
    # Two budgets of one label: each has samples of its own.
    rows.append(row(label="KD", model="model-less", split="test", kimg=100.0, fid=30.0))
    strips = [strip("KD", "0.2M", 1, kimg=500.0), strip("KD", "0.2M", 1, kimg=100.0, png=strip("", "", 7)["png"])]
    executed(tmp_path / "mine" / "notebooks" / "a.ipynb", rows, strips)
    return tmp_path / "mine"


def test_points_show_the_samples_that_were_recorded_with_them(report):
    scores = chart.read_scores(report)
    points = chart.points(scores)
    assert list(points["point"]) == [0, 1, 2, 3, 4]
    shown = {(p["label"], p["steps"], p["kimg"]): chart.samples_of(scores, p) for p in points.to_dict("records")}
    png = {one["kimg"]: one["png"] for one in scores.strips}
    assert png[500.0] != png[100.0]
    assert png[500.0] in shown["KD", 1, 500.0]
    assert png[100.0] in shown["KD", 1, 100.0]
    assert "width:224px" in shown["KD", 1, 500.0]  # four images
    assert "no samples were recorded" in shown["KD", 2, 500.0]
    assert "SlimFlow, 0.2M, euler, 1 step: 10" in shown["SlimFlow", 1, 500.0]


def test_labels_of_two_recipes_are_those_of_the_report(tmp_path):
    rows = [row(label="KD", recipe=name, split="test", model=name, fid=fid) for name, fid in (("r1", 5.0), ("r2", 7.0))]
    strips = [strip("KD", "0.2M", 1, recipe=name, saw="both") for name in ("r1", "r2")]
    recipes = {"r1": {"kd.lr": 0.1}, "r2": {"kd.lr": 0.2}}
    executed(tmp_path / "a.ipynb", rows, strips, recipes=recipes)
    scores = chart.read_scores(tmp_path)
    assert {point["label"] for point in chart.points(scores).to_dict("records")} == {"KD (lr 0.1)", "KD (lr 0.2)"}
    assert all("<img" in chart.samples_of(scores, point) for point in chart.points(scores).to_dict("records"))
    here = chart.scores_of({"rows": rows, "strips": strips, "recipes": recipes})
    assert chart.points(here).equals(chart.points(scores))


def test_the_chart_has_points_to_pick_in_the_colours_of_all_reports(report):
    spec = chart.specification(chart.read_scores(report)).to_dict()
    assert spec["layer"][0]["encoding"]["y"]["title"] == "Fréchet distance (digits judge, test split)"
    picked = next(param for param in spec["params"] if param["name"] == "picked")
    assert picked["select"] == {"type": "point", "fields": ["point"]}
    from onestep_bench.report.colours import colour

    marks = next(layer for layer in spec["layer"] if layer["mark"]["type"] == "point")
    assert marks["encoding"]["color"]["scale"] == {
        "domain": ["KD", "SlimFlow"],
        "range": [colour("KD"), colour("SlimFlow")],
    }


def test_what_is_not_there_is_named(report, refuses):
    with refuses("no scores of digits by 'clip'", "there are: digits by digits, test; digits by digits, train"):
        chart.read_scores(report, judge="clip")
    with refuses("no scores of mnist"):
        chart.read_scores(report, dataset="mnist")
    with refuses("no executed notebooks", "name the folder of a report"):
        chart.read_scores(report / "nothing")
    executed(report / "empty" / "a.ipynb", [])
    with refuses("there are no scores"):
        chart.read_scores(report / "empty")


def test_models_of_a_report_are_those_in_the_store(report, tiny_models, refuses, monkeypatch, tmp_path):
    images = data.load("digits")
    found = choice.of_report(report, images)
    assert [name.split(" ·")[0] for name in found] == ["KD 0.2M"]
    assert list(found.values()) == [tiny_models["flow"]]
    with refuses("makes images of 3x32x32, as", "name its data set"):
        choice.of_report(report, replace(images, images=torch.zeros(1, 3, 32, 32)))
    executed(report / "teacher" / "a.ipynb", [row(label="teacher (heun)", model=tiny_models["edm"].artifact.key)])
    assert next(iter(choice.of_report(report / "teacher", images))).startswith("teacher 0.2M ·")
    monkeypatch.setenv("ONESTEP_STORE", str(tmp_path / "empty"))
    assert choice.of_store(images) == {}
    with refuses("no model of", "is in the store"):
        choice.of_report(report, images)


def test_models_of_the_store_are_those_of_these_images_and_whole(tiny_models, monkeypatch, tmp_path):
    images, source = data.load("digits"), tiny_models["edm"].artifact.folder.parent
    shutil.copytree(source, tmp_path / "store")
    monkeypatch.setenv("ONESTEP_STORE", str(tmp_path / "store"))
    assert {name.split(" ·")[0] for name in choice.of_store(images)} == {
        "edm 0.01M, 0.032 kimg",
        "rectified-flow 0.01M, 0.032 kimg",
    }
    assert choice.of_store(replace(images, images=torch.zeros(1, 1, 9, 9))) == {}
    assert choice.of_store(replace(images, digest="of other digits")) == {}
    (tmp_path / "store" / tiny_models["flow"].artifact.key / "config.json").write_text("{")
    assert [model.size for model in choice.of_store(images).values()] == ["0.01M"]


def test_no_model_hides_behind_the_name_of_another(tiny_models):
    flow = tiny_models["flow"]
    twins = [replace(flow, artifact=store.Artifact(flow.artifact.folder.with_name(f"model-abcd{k}"))) for k in "123"]
    assert list(choice._named(("kd", twin) for twin in twins)) == ["kd · abcd", "kd · abcd2", "kd · abcd3"]
