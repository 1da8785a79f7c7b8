"""Figures of one protocol: what they draw, refuse and say, and where names stand."""

import base64
import io

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from synthetic import MODELS, frame, scores
from tiny import row, strip

from onestep_bench.errors import OnestepError
from onestep_bench.report import colours, drawing, figures, labels, samples, tables


def test_a_name_stands_beside_an_error_bar_not_on_it():
    _, axes = drawing.blank()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.plot([0.5, 0.56], [0.5, 0.9], "o", linestyle="none")
    axes.errorbar([0.56], [0.5], yerr=0.4, fmt="none")
    labels.label_points(axes, [(0.5, 0.5, "4.48", "k", 8)])
    box = axes.texts[0].get_window_extent()
    bar = axes.transData.transform((0.56, 0.5))[0]
    assert not box.x0 < bar < box.x1


def test_numbers_of_steps_are_joined_in_their_order_whatever_their_times_are():
    times = {1: 2.0, 2: 9.0, 4: 8.0}
    rows = [row(steps=steps, latency_ms=ms, fid=10.0 / steps) for steps, ms in times.items()]
    axes = figures.fid_vs_latency(frame(rows)).axes[0]
    (line,) = [line for line in axes.get_lines() if line.get_marker() == colours.marker("SlimFlow")]
    assert line.get_xdata().tolist() == [2.0, 9.0, 8.0]


def text_of(figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(mpl.text.Text))


@pytest.mark.parametrize("draw", [figures.fid_vs_steps, figures.fid_vs_params, figures.fid_vs_cost, tables.table])
@pytest.mark.parametrize("change", [{"protocol": "other"}, {"dataset": "cifar10"}, {"split": "test"}])
def test_two_protocols_never_share_a_plot_or_table(draw, change):
    with pytest.raises(OnestepError, match="2 protocols cannot be compared"):
        draw(frame([row(), row(**change)]))


@pytest.mark.parametrize("draw", [figures.fid_vs_steps, figures.fid_vs_params, figures.fid_vs_cost, tables.table])
def test_no_rows_is_nothing_to_draw(draw):
    with pytest.raises(OnestepError, match="nothing to draw"):
        draw(frame([]))


def test_no_rows_at_the_steps_asked_for_is_nothing_to_draw():
    with pytest.raises(OnestepError, match=r"nothing to draw: no scores at 3 steps, only at \[1, 4\]"):
        figures.fid_vs_params(frame(scores()), steps=3)


def test_fid_vs_steps_has_a_line_per_model_over_counted_evaluations():
    rows = [{**one, "nfe": 2 * one["steps"] - 1} if "heun" in one["label"] else one for one in scores()]
    figure = figures.fid_vs_steps(frame(rows))
    axes = figure.axes[0]
    assert axes.get_xlabel() == "network evaluations (NFE)"
    assert axes.get_ylabel() == "Fréchet distance (digits judge, train split)\nlower is better"
    assert [tick for tick in axes.get_xticks() if tick in (1, 4, 7)] == [1, 4, 7]
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {
        f"{label}, {size}" for label, size, _ in MODELS
    }
    assert "over the 3 sampling seeds of a single training run" in text_of(figure).replace("\n", " ")
    assert row()["protocol"] in text_of(figure).replace("\n", " ")


def test_fid_vs_params_shows_one_step_models_and_the_best_teacher_as_a_line():
    figure = figures.fid_vs_params(frame(scores()))
    words = text_of(figure).replace("\n", " ")
    assert "SlimFlow" in words
    assert "Dashed: the teacher of the lowest mean (teacher (heun), 0.2M, 4 steps: 376)" in words
    # Far above its students, where it would only flatten their differences, a teacher is named below the figure.
    assert "Above the figure: teacher (euler) 2001, teacher (heun) 1501." in words


def test_fid_vs_params_draws_the_pareto_front_of_the_students():
    models = [("A", "0.05M", 5, 8.0), ("A", "0.2M", 20, 6.0), ("B", "0.2M", 20, 7.0), ("B", "0.8M", 80, 4.0)]
    rows = [row(label=label, size=s, params=p, fid=f, model=label + s, recipe=label + s) for label, s, p, f in models]
    figure = figures.fid_vs_params(frame(rows))
    assert "Pareto front of the students (A 0.05M, A 0.2M, B 0.8M)" in text_of(figure).replace("\n", " ")
    front = [line for line in figure.axes[0].get_lines() if line.get_drawstyle() == "steps-post"]
    assert front[0].get_xydata().tolist() == [[5, 8], [20, 6], [80, 4]]


def test_fid_vs_params_joins_the_sizes_of_one_budget_only_and_takes_the_largest_of_several():
    given = [("0.05M", 5, 100, 9.0), ("0.05M", 5, 200, 8.0), ("0.2M", 20, 200, 6.0), ("0.8M", 80, 500, 3.0)]
    rows = [row(size=s, params=p, kimg=k, passes=3 * k, fid=f, model=f"{s}{k}") for s, p, k, f in given]
    figure = figures.fid_vs_params(frame(rows))
    drawn = [
        line.get_xydata().tolist()
        for line in figure.axes[0].get_lines()
        if line.get_marker() == colours.marker("SlimFlow")
    ]
    assert [[5, 8], [20, 6]] in drawn
    assert [[80, 3]] in drawn


def test_figures_show_what_real_images_score():
    rows = frame(scores(floor=0.5))
    for draw in (figures.fid_vs_steps, figures.fid_vs_params, figures.fid_vs_cost, figures.fid_vs_latency):
        assert "real against real: 0.5" in text_of(draw(rows)).replace("\n", " ")
        assert "real against real" not in text_of(draw(rows.assign(floor=None))).replace("\n", " ")


@pytest.mark.parametrize(
    ("axis", "words"), [(None, "network passes"), *((a, w[:14]) for a, w in figures.COSTS.items())]
)
def test_fid_vs_cost_has_a_chosen_axis_and_joins_budgets(axis, words):
    budgets = [1, 2, 4]
    cost = {"kimg": 10, "passes": 30, "train_macs": 1e9, "train_seconds": 7}
    rows = [row(model=f"m{b}", fid=9.0 / b, **{name: value * b for name, value in cost.items()}) for b in budgets]
    axes = figures.fid_vs_cost(frame(rows), axis=axis).axes[0]
    assert axes.get_xlabel().startswith(words)
    assert [cost[axis or "passes"] * b for b in budgets] in [list(line.get_xdata()) for line in axes.get_lines()]


def test_older_rows_have_their_cost_in_images_and_say_so_when_asked_for_another():
    rows = frame(scores(passes=None))
    assert figures.fid_vs_cost(rows).axes[0].get_xlabel().startswith("training images")
    with pytest.raises(OnestepError, match="no score row says its passes; choose another axis"):
        figures.fid_vs_cost(rows, axis="passes")
    with pytest.raises(OnestepError, match="no cost is called hours; choose one of passes"):
        figures.fid_vs_cost(rows, axis="hours")


def test_a_label_keeps_its_colour_in_every_figure():
    looks = colours.looks(label for label, _, _ in MODELS)
    drawn = [draw(frame(scores()), looks=looks) for draw in (figures.fid_vs_steps, figures.fid_vs_cost)]
    wanted = mpl.colors.to_hex(looks["SlimFlow"][0])
    for figure in drawn:
        assert wanted in {mpl.colors.to_hex(line.get_color()) for line in figure.axes[0].get_lines()}


def test_published_figures_appear_only_beside_inception_rows_of_their_data_set():
    real = {"dataset": "cifar10", "features": "inception", "protocol": "clean"}
    claims = frame(scores(**real))
    assert "GDD-I" in text_of(figures.fid_vs_params(claims))
    assert "GDD-I" in text_of(figures.fid_vs_params(frame(scores(**{**real, "features": "inception-legacy"}))))
    assert "1-Rectified Flow" in text_of(figures.fid_vs_steps(claims))
    assert "not measured here" in text_of(figures.fid_vs_steps(claims)).replace("\n", " ")
    assert "GDD-I" not in text_of(figures.fid_vs_params(claims, published=False))
    assert "GDD-I" not in text_of(figures.fid_vs_params(frame(scores(**{**real, "features": "digits"}))))
    assert "GDD-I" not in text_of(figures.fid_vs_params(frame(scores(**{**real, "dataset": "digits"}))))


def named(places):
    """Axes with short names at these places, the boxes of the names, and the lines that tie far ones to points."""
    figure, axes = plt.subplots()
    plt.close(figure)
    axes.plot(*zip(*places, strict=True), "o")
    axes.set(xlim=(0.9, 1.3), ylim=(0.9, 1.1))
    labels.label_points(axes, [(*place, f"m{i}", "black", 8) for i, place in enumerate(places)])
    leaders = [axes.transData.transform_path(line.get_path()) for line in axes.get_lines()[1:]]
    return axes, [text.get_window_extent() for text in axes.texts], leaders


@pytest.mark.parametrize("apart", [0, 0.001, 0.004])
def test_names_in_a_crowd_stand_clear_of_names_markers_and_leaders(apart):
    places = [(1 + apart * i, 1.0) for i in range(7)]
    axes, boxes, leaders = named(places)
    assert [box.count_overlaps(boxes) for box in boxes] == [1] * 7  # itself
    assert not any(box.count_contains(axes.transData.transform(places)) for box in boxes)
    assert leaders
    assert all(sum(leader.intersects_bbox(box, filled=False) for box in boxes) <= 1 for leader in leaders)


def test_a_line_to_a_name_passes_no_other_point():
    """Points in a column can be named sideways only."""
    places = [(1.1, 0.94 + 0.01 * i) for i in range(13)]
    axes, _, leaders = named(places)
    dots = axes.transData.transform(places)
    for leader in leaders:
        others = dots[np.linalg.norm(dots - leader.vertices[0], axis=1) > 8]
        assert not labels._passed(leader, others)


def test_names_at_the_edges_stay_inside():
    axes, boxes, _ = named([(0.9, 0.9), (1.3, 0.9), (0.9, 1.1), (1.3, 1.1)])
    assert all(axes.get_window_extent().count_contains(box.corners()) == 4 for box in boxes)


def test_a_sample_pixel_is_a_square_of_figure_pixels():
    one = {**strip("SlimFlow", "0.2M", 1), "dataset": "digits"}
    file = io.BytesIO()
    samples.sample_sheet([one]).savefig(file, format="png", dpi="figure")
    sheet = np.asarray(Image.open(file).convert("L"))
    original = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["png"]))).convert("L"))
    left = sheet.shape[1] - (4 * 80 + 3 * 6)
    assert (sheet[:80, left : left + 80] == np.kron(original[:, :8], np.ones((10, 10), np.uint8))).all()


def test_sample_sheets_refuse_nothing_and_two_data_sets():
    with pytest.raises(OnestepError, match="nothing to draw"):
        samples.sample_sheet([])
    with pytest.raises(OnestepError, match="2 data sets"):
        samples.sample_sheet([{**strip("a", "1M", 1), "dataset": name} for name in ("digits", "cifar10")])


def test_of_many_models_each_has_a_row_with_its_name_the_best_on_top():
    rows = [row(label=f"m{i:02}", steps=n, fid=(20.0 + i) / n, model=f"{i}") for i in range(15) for n in (1, 2)]
    axes = figures.fid_vs_steps(frame(rows)).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [f"m{i:02}" for i in range(15)]
    assert axes.yaxis_inverted()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["1 NFE", "2 NFE"]


@pytest.mark.parametrize(
    ("features", "words"), [("inception", "FID (inception, "), ("digits", "Fréchet distance (digits judge, ")]
)
def test_a_score_is_called_fid_of_inceptions_features_alone(features, words):
    rows = frame(scores(features=features))
    assert figures.fid_vs_steps(rows).axes[0].get_ylabel().startswith(words)
    assert ("FID" in tables.table(rows).data) == (features == "inception")


def test_no_two_lines_of_a_table_have_one_name():
    same = {"label": "A", "recipe": "r"}
    rows = frame([row(**same, model="a", kimg=1.0), row(**same, model="b", kimg=2.0), row(**same, weights="last")])
    shown = tables.table(rows).data
    names = shown[["model", "saw", "size", "sampler", "steps", "kimg"]]
    assert not names.duplicated().any()
    rows = frame([row(**same), row(**same, weights="last")])
    assert list(tables.table(rows).data["weights"]) == ["ema", "last"]


def test_a_floor_far_below_the_scores_is_told_in_the_caption_and_takes_no_room():
    axes = figures.fid_vs_cost(frame(scores(floor=0.5))).axes[0]
    assert axes.get_ylim()[0] > 0.5
    assert not [line for line in axes.get_lines() if line.get_linestyle() == ":"]


def test_numbers_of_an_axis_never_touch():
    figure, axes = drawing.blank()
    values = [443, 444, 460, 477, 480, 543, 559, 561]
    axes.plot(values, values)
    drawing.log_ticks(axes, values)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.get_xticklabels()]
    assert all(box.count_overlaps(boxes) == 1 for box in boxes)
