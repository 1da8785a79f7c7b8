"""Figures that set one thing against another, and the page of a whole comparison."""

import matplotlib as mpl
import pandas as pd
import pytest
from synthetic import comparison, frame
from tiny import executed, page_data, row

from onestep_bench import report
from onestep_bench.errors import OnestepError
from onestep_bench.report import colours, comparisons, drawing, figures, recipes, statistics, tables
from onestep_bench.report.labels import name_ends


@pytest.fixture(scope="module")
def whole() -> pd.DataFrame:
    return frame(comparison(sizes=("0.05M", "0.2M"), train_seeds=3, seeds=2, copier=True))


def by(rows: pd.DataFrame, judge="classifier", split=None) -> pd.DataFrame:
    rows = rows[rows["features"] == judge]
    return rows if split is None else rows[rows["split"] == split]


def words(figure) -> str:
    return " ".join("\n".join(text.get_text() for text in figure.findobj(mpl.text.Text)).split())


def test_loss_by_data_is_drawn_for_methods_that_were_trained_on_both(whole):
    figure = comparisons.two_by_two(by(whole, split="test"))
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["GDD", "KD"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["data", "teacher images"]
    assert "95 % t intervals over training runs (n = 3, each the mean of 2 sampling seeds)" in words(figure)


def test_labels_that_do_not_say_so_are_one_method_by_a_mapping():
    rows = frame([row(label="A", saw="data"), row(label="B", saw="teacher images", model="m1")])
    with pytest.raises(OnestepError, match="no method was trained both on data and on teacher images"):
        comparisons.two_by_two(rows)
    axes = comparisons.two_by_two(rows, methods={"A": "loss", "B": "loss"}).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["loss"]


def test_held_out_shows_train_against_test_with_the_floors(whole):
    figure = comparisons.held_out(by(whole))
    axes = figure.axes[0]
    assert axes.get_xlim() == axes.get_ylim()
    assert {"Copier", "SFDDM", "GDD (data)"} <= {text.get_text() for text in axes.texts}
    floors = [line for line in axes.get_lines() if line.get_linestyle() == ":"]
    assert len(floors) == 2
    with pytest.raises(OnestepError, match="no model was scored against both splits"):
        comparisons.held_out(by(whole, split="test"))
    with pytest.raises(
        OnestepError, match=r"scores of 2 judges or data sets .* \(digits, classifier; digits, pixels\)"
    ):
        comparisons.held_out(whole)


def test_lines_of_judges_that_contradict_each_other_are_coloured_others_grey():
    values = {"classifier": {"A": 1.0, "B": 2.0, "C": 3.0}, "pixels": {"A": 0.2, "B": 0.1, "C": 0.3}}
    rows = [
        row(label=label, features=judge, protocol=judge, train_seed=seed, fid=fid * (1 + 0.01 * seed), model=f"{seed}")
        for judge, own in values.items()
        for label, fid in own.items()
        for seed in range(3)
    ]
    looks = colours.looks("ABC")
    figure = comparisons.judges(frame(rows), looks=looks)
    drawn = [mpl.colors.to_hex(line.get_color()) for line in figure.axes[0].get_lines()]
    assert drawn == [mpl.colors.to_hex(colour) for colour in (looks["A"][0], looks["B"][0], "0.72")]
    assert "Kendall's tau 0.33" in words(figure)
    with pytest.raises(OnestepError, match="the scores are of one judge"):
        comparisons.judges(by(frame(rows)))


def test_copying_puts_the_copier_at_zero_and_needs_the_ratio(whole):
    axes = comparisons.copying(by(whole)).axes[0]
    assert axes.get_yticklabels()[0].get_text() == "Copier, 1 step"
    assert axes.get_xlim()[0] == 0
    with pytest.raises(OnestepError, match="no score row has a nearest-neighbour ratio"):
        comparisons.copying(by(whole, split="train"))


def test_a_figure_of_many_series_draws_one_size_and_says_so(whole):
    figure = figures.fid_vs_steps(by(whole, split="test"))
    assert len(figure.axes[0].get_yticklabels()) == 17
    assert "Size 0.2M." in words(figure)


def test_rows_of_many_models_are_sorted_by_their_lowest_mean(whole):
    rows = by(whole, split="test")
    drawn = [tick.get_text() for tick in figures.fid_vs_steps(rows).axes[0].get_yticklabels()]
    lines = tables.summarise(statistics.largest_budget(recipes.results(rows[rows["size"] == "0.2M"])))
    assert drawn == lines.groupby("label")["fid_mean"].min().sort_values().index.tolist()


def boxes_of(figure) -> dict[str, mpl.transforms.Bbox]:
    """Where names stand: of one with a line to its point the text alone."""
    return {text.get_text(): _box(text) for text in figure.axes[0].texts if text.get_fontsize() >= 8}


def _box(text) -> mpl.transforms.Bbox:
    if not text.arrow_patch:
        return text.get_window_extent()
    left, middle = text.axes.transAxes.transform(text.xyann)
    size = mpl.text.Text.get_window_extent(text)
    return mpl.transforms.Bbox.from_bounds(left, middle - size.height / 2, size.width, size.height)


def test_names_of_twelve_methods_do_not_touch(whole):
    boxes = list(boxes_of(figures.fid_vs_params(by(whole, split="test"))).values())
    assert len(boxes) > 12
    assert [box.count_overlaps(boxes) for box in boxes] == [1] * len(boxes)


def test_where_names_would_crowd_they_stand_in_a_legend(whole):
    axes = figures.fid_vs_cost(by(whole, split="test")).axes[0]
    legend = {text.get_text() for text in axes.get_legend().get_texts()}
    assert {"GDD (data)", "GDD (teacher images)", "SlimFlow"} <= legend
    assert not legend & {text.get_text() for text in axes.texts}


def test_names_at_the_end_keep_the_order_of_their_points_and_the_height_of_the_axes():
    figure, axes = drawing.blank()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    heights = [0.02, 0.5, 0.51, 0.505, 0.98, 0.99]
    name_ends(axes, [(1, height, str(height), "black") for height in heights])
    boxes = {float(name): box for name, box in boxes_of(figure).items()}
    assert [box.count_overlaps(list(boxes.values())) for box in boxes.values()] == [1] * len(boxes)
    assert sorted(boxes, key=lambda height: boxes[height].y0) == sorted(heights)
    frame = axes.get_window_extent().padded(8)
    assert all(frame.y0 < box.y0 and box.y1 < frame.y1 for box in boxes.values())


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    rows = comparison(sizes=("0.2M",), train_seeds=2, seeds=2, copier=True)
    executed(folder / "a.ipynb", [one for one in rows if one["label"] not in ("SFDDM", "CD", "DMD", "Shortcut")])
    return folder, report.render(folder).read_text()


def test_the_page_begins_with_the_test_split_before_the_judge_that_knows_classes(rendered):
    _, page = rendered
    order = [("classifier", "test"), ("classifier", "train"), ("pixels", "test"), ("pixels", "train")]
    assert [(place["features"], place["split"]) for place in page_data(page)["scores"]["places"]] == order
    titles = ["Scores", "Differences", "Train against test", "Judges", "Copies", "Spread", "Provenance"]
    later = [page.index(f"<h2>{title}</h2>") for title in titles]
    assert later == sorted(later)


def test_the_first_protocol_has_all_figures_the_others_two(rendered):
    """And of one size none is drawn over parameters."""
    folder, _ = rendered
    drawn = {file.stem for file in folder.glob("*.png")}
    assert {file.stem for file in folder.glob("*.svg")} == drawn
    judged = [f"digits-{judge}-{split}" for judge in ("classifier", "pixels") for split in ("train", "test")]
    assert drawn == {
        *(f"fid_vs_{axis}-{ending}" for axis in ("steps", "cost") for ending in judged),
        "fid_vs_latency-digits-classifier-test",
        "two_by_two-digits-classifier-test",
        "held_out",
        "judges",
        "copying",
    }


def test_the_page_calls_copies_copies(rendered):
    _, page = rendered
    gaps = next(part for part in page_data(page)["parts"] if part["pair"] == ["train", "test"])["tables"][0]
    keys = [column["key"] for column in gaps["columns"]]
    notes = {row[keys.index("label")]: row[keys.index("copies")] for row in gaps["rows"]}
    assert notes["Copier"] == "copies"
    assert notes["SlimFlow"] == ""


def test_figures_that_rows_no_longer_suffice_for_go(rendered, tmp_path):
    executed(tmp_path / "a.ipynb", comparison(sizes=("0.05M",), train_seeds=1, seeds=1)[:8])
    (tmp_path / "held_out.png").touch()
    (tmp_path / "two_by_two-digits-x.svg").touch()
    report.render(tmp_path)
    assert not (tmp_path / "two_by_two-digits-x.svg").exists()
    assert (tmp_path / "held_out.png").stat().st_size > 0
