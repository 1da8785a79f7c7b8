"""The figure whose points show their samples, and the models of a report."""

import pytest
from tiny import executed, row, strip

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
    executed(tmp_path / "mine" / "notebooks" / "a.ipynb", rows, [strip("KD", "0.2M", 1)])
    return tmp_path / "mine"


def test_points_show_the_samples_that_were_recorded_with_them(report):
    scores = chart.read_scores(report)
    points = chart.points(scores)
    assert list(points["point"]) == [0, 1, 2, 3]
    shown = {(p["label"], p["steps"]): chart.samples_of(scores, p) for p in points.to_dict("records")}
    assert scores.strips[0]["png"] in shown["KD", 1]
    assert "width:224px" in shown["KD", 1]  # four images
    assert "no samples were recorded" in shown["KD", 2]
    assert "SlimFlow, 0.2M, euler, 1 steps: 10" in shown["SlimFlow", 1]


def test_the_chart_has_points_to_pick_in_the_colours_of_all_reports(report):
    spec = chart.specification(chart.points(chart.read_scores(report))).to_dict()
    picked = next(param for param in spec["params"] if param["name"] == "picked")
    assert picked["select"] == {"type": "point", "fields": ["point"]}
    from onestep_bench.report.colours import colour

    marks = next(layer for layer in spec["layer"] if layer["mark"]["type"] == "point")
    assert marks["encoding"]["color"]["scale"] == {
        "domain": ["KD", "SlimFlow"],
        "range": [colour("KD"), colour("SlimFlow")],
    }


def test_what_is_not_there_is_named(report, refuses):
    with refuses("no scores by 'clip'", "digits, test"):
        chart.read_scores(report, judge="clip")
    with refuses("no executed notebooks", "name the folder of a report"):
        chart.read_scores(report / "nothing")


def test_models_of_a_report_are_those_in_the_store(report, tiny_models, refuses, monkeypatch, tmp_path):
    found = choice.of_report(report, (1, 8, 8))
    assert [name.split(" ·")[0] for name in found] == ["KD 0.2M"]
    assert list(found.values()) == [tiny_models["flow"]]
    assert choice.of_report(report, (3, 32, 32)) == {}
    assert {name.split(" ·")[0] for name in choice.of_store((1, 8, 8))} == {"edm 0.01M", "rectified-flow 0.01M"}
    monkeypatch.setenv("ONESTEP_STORE", str(tmp_path / "empty"))
    assert choice.of_store((1, 8, 8)) == {}
    with refuses("no model of", "is in the store"):
        choice.of_report(report, (1, 8, 8))
