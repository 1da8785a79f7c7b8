"""Pictures for notebooks: what is drawn where."""

import pytest
import torch
from matplotlib.colors import to_rgb

from onestep_bench.report import plots


def test_scores_over_evaluations_are_marked_and_teachers_are_grey():
    lines = {"meanflow": ([1, 2, 8], [30.0, 20.0, 19.0]), "teacher (heun)": ([1, 3], [70.0, 40.0])}
    (axes,) = plots.over_evaluations(lines, y="distance").axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    drawn = {line.get_label(): line for line in axes.get_lines()}
    for label, (spent, scores) in lines.items():
        assert (list(drawn[label].get_xdata()), list(drawn[label].get_ydata())) == (spent, scores)
        assert drawn[label].get_marker() not in ("None", "")
    grey = {label: len(set(to_rgb(line.get_color()))) == 1 for label, line in drawn.items()}
    assert grey == {"meanflow": False, "teacher (heun)": True}


def test_paths_in_the_plane_stand_over_the_exact_ones():
    exact, paths, data = torch.rand(5, 3, 2), 9 * torch.rand(5, 3, 2), torch.tensor([[1.0, 0.0], [0.0, -2.0]])
    (axes, other) = plots.plane({"one": paths, "two": exact}, exact, data).axes
    assert [axes.get_title(), other.get_title()] == ["one", "two"]
    assert axes.get_xlim() == other.get_ylim() == pytest.approx((-3, 3))  # of the data, however far the paths come from
    drawn = [torch.stack([torch.as_tensor(one) for one in line.get_data()], -1) for line in axes.get_lines()]
    for wanted in (data, exact[-1], paths[-1], *exact.unbind(1), *paths.unbind(1)):
        assert any(torch.equal(wanted, one) for one in drawn)
