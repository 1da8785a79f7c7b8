import csv
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from synthetic import frame, scores
from tiny import executed, grid_file, notebook, page_data, row, strip

from onestep_bench import report
from onestep_bench.errors import OnestepError
from onestep_bench.grid.cells import STAMP, executed_path, failed_path
from onestep_bench.grid.plan import read_grid
from onestep_bench.report import figures, tables
from onestep_bench.scoring.rows import FIELDS, LATER, QUALITIES

# ---- reading


def test_rows_come_in_a_fixed_order_and_each_score_once(tmp_path):
    rows = scores()
    executed(tmp_path / "a.ipynb", rows[9:])
    executed(tmp_path / "b.ipynb", rows[::-1])
    executed(tmp_path / "c.failed.ipynb", [row(fid=-1)])
    executed(tmp_path / ".d.partial.ipynb", [row(fid=-1)])
    read = tables.read_rows(tmp_path)
    assert list(read.columns) == list(FIELDS)
    assert len(read) == len(rows)
    assert read["label"].tolist() == ["SlimFlow"] * 6 + ["teacher (euler)"] * 6 + ["teacher (heun)"] * 6
    assert read["seed"].tolist() == [0, 1, 2] * 6


def test_one_model_under_two_protocols_is_two_scores(tmp_path):
    executed(tmp_path / "a.ipynb", [row(), row(protocol="inception", features="inception")])
    assert len(tables.read_rows(tmp_path)) == 2


def test_two_notebooks_that_disagree_are_named(tmp_path):
    executed(tmp_path / "a.ipynb", [row(fid=1.0)])
    executed(tmp_path / "b.ipynb", [row(fid=2.0)])
    with pytest.raises(OnestepError, match=r"a.ipynb and b.ipynb score one model .* differently: 1.0 and 2.0"):
        tables.read_rows(tmp_path)


def test_rows_of_another_version_are_refused(tmp_path):
    old = row()
    del old["weights"]
    executed(tmp_path / "a.ipynb", [old])
    with pytest.raises(OnestepError, match=r"a.ipynb: a score row of another version \(differs in: weights\)"):
        tables.read_rows(tmp_path)


def test_strips_are_one_per_model_and_steps_teachers_with_many_steps_first(tmp_path):
    strips = [
        strip("SlimFlow", "15.7M", 1),
        strip("SlimFlow", "2.0M", 1, train_seed=1),
        strip("SlimFlow", "2.0M", 1),
        strip("teacher (heun)", "15.7M", 1),
        strip("teacher (heun)", "15.7M", 16),
    ]
    executed(tmp_path / "a.ipynb", [row()], strips)
    read = tables.read_strips(tmp_path)
    assert [(one["label"], one["size"], one["steps"]) for one in read] == [
        ("teacher (heun)", "15.7M", 16),
        ("teacher (heun)", "15.7M", 1),
        ("SlimFlow", "2.0M", 1),
        ("SlimFlow", "15.7M", 1),
    ]
    assert read[2]["train_seed"] == 0
    assert read[2]["dataset"] == "digits"


# ---- numbers


def test_a_summary_takes_means_over_sampling_seeds_first_and_intervals_over_training_runs():
    """Scores 1, 2 | 6: the runs' means are 1.5 and 6; t of one degree of freedom at 97.5 % is 12.706."""
    scored = [(0, 0, 1.0), (0, 1, 2.0), (1, 0, 6.0)]
    rows = frame([row(train_seed=a, seed=b, fid=f, model=f"m{a}") for a, b, f in scored])
    (line,) = tables.summarise(rows).itertuples(index=False)
    assert (line.fid_mean, line.fid_min, line.runs, line.seeds) == (3.75, 1.0, 2, 2)
    assert line.fid_std == pytest.approx(np.std([1.5, 6], ddof=1))
    assert line.fid_high - line.fid_mean == pytest.approx(12.706 * line.fid_std / 2**0.5, rel=1e-4)
    assert tables.table(rows).data.loc[0, ["FD", "min over seeds"]].tolist() == [3.75, 1.0]
    assert "min over seeds" not in tables.table(rows.iloc[:1]).data


def test_one_run_has_no_interval_but_a_spread_over_sampling_seeds():
    (line,) = tables.summarise(frame([row(seed=0, fid=1.0), row(seed=1, fid=2.0)])).itertuples(index=False)
    assert np.isnan([line.fid_std, line.fid_low, line.fid_high]).all()
    assert line.seed_std == pytest.approx(0.5**0.5)


def test_seconds_are_medians_over_runs_and_the_busiest_one_is_told():
    runs = [(428.0, 1.2), (174.0, 0.0), (175.0, 0.0)]
    rows = frame([row(train_seed=i, model=f"m{i}", train_seconds=s, busy=b) for i, (s, b) in enumerate(runs)])
    (line,) = tables.summarise(rows).itertuples(index=False)
    assert (line.train_seconds, line.busy) == (175.0, 1.2)
    assert ">175*<" in tables.table(rows).to_html()
    assert "175*" not in tables.table(rows.assign(busy=0.0)).to_html()


def test_a_diverged_seed_does_not_vanish_from_the_mean():
    (line,) = tables.summarise(frame([row(seed=0, fid=1.0), row(seed=1, fid=float("nan"))])).itertuples(index=False)
    assert np.isnan(line.fid_mean)
    assert (line.runs, line.seeds) == (1, 2)


def test_the_best_snapshot_of_each_run_stands_beside_its_last():
    """Two runs of one recipe, three snapshots: the best are 2 and 3; a training of its own recipe is no snapshot."""
    scored = {0: {100: 4.0, 200: 2.0, 300: 5.0}, 1: {100: 6.0, 200: 7.0, 300: 3.0}}
    rows = [row(train_seed=a, kimg=k, fid=f, model=f"m{a}@{k}") for a, own in scored.items() for k, f in own.items()]
    lines = tables.summarise(frame([*rows, row(kimg=50, fid=1.0, recipe="r1", model="m9")])).set_index("kimg")
    assert lines.loc[300, "fid_snapshot"] == 2.5
    assert lines.drop(index=300)["fid_snapshot"].isna().all()


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": "other"},
        {"kimg": 1.0},
        {"weights": "last"},
        {"sampler": "heun"},
        {"recipe": "r1"},
        {"split": "test"},
        {"saw": "data"},
    ],
)
def test_what_is_not_a_seed_is_never_averaged(change):
    assert len(tables.summarise(frame([row(fid=1.0), row(fid=2.0, model="m1", **change)]))) == 2


def test_the_table_bolds_the_best_of_each_column():
    rows = scores()
    html = tables.table(frame([rows[0] | {"recall": None}, *rows[1:]])).to_html()
    bold = html[html.index("<style") : html.index("font-weight")]
    assert "#T_scores_row0_col7" in bold  # best FID is the first line's
    assert "SlimFlow" in html[html.index("scores_row0_col0") :][:200]
    assert "–" in html  # not measured


# ---- rendering


def test_two_renderings_are_equal_byte_for_byte(tmp_path):
    executed(tmp_path / "in" / "a.ipynb", scores(), [strip("SlimFlow", "0.05M", 1)])
    prints = []
    for out in (tmp_path / "one", tmp_path / "two"):
        report.render(tmp_path / "in", out)
        files = [file for file in out.rglob("*") if file.is_file()]
        prints.append({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files})
    assert prints[0] == prints[1]
    assert set(prints[0]) == {
        *(f"fid_vs_{name}.{kind}" for name in ("steps", "params", "cost", "latency") for kind in ("png", "svg")),
        "samples.png",
        "a.html",
        "results.csv",
        "summary.csv",
        "report.html",
    }


def test_results_keep_every_digit(tmp_path):
    executed(tmp_path / "a.ipynb", [row(fid=0.1 + 0.2)])
    report.render(tmp_path)
    (line,) = csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text()))
    assert float(line["fid"]) == 0.1 + 0.2


def test_every_protocol_has_figures_of_its_own_and_stale_ones_go(tmp_path):
    executed(tmp_path / "a.ipynb", scores())
    report.render(tmp_path)
    assert (tmp_path / "fid_vs_steps.png").exists()
    executed(tmp_path / "b.ipynb", scores(features="inception", protocol="clean"))
    report.render(tmp_path)
    assert sorted(file.name for file in tmp_path.glob("fid_vs_steps*.png")) == [
        "fid_vs_steps-digits-digits.png",
        "fid_vs_steps-digits-inception.png",
    ]


def test_the_page_of_a_half_finished_grid_says_what_is_missing(tmp_path):
    grid = three_cells(tmp_path)
    done, failed, _ = grid.cells
    finish(executed_path(done, grid.executed), done.digest, scores())
    finish(failed_path(failed, grid.executed), failed.digest, [], "ValueError: <no luck>")
    old = [row(fid=7777.0, size="0.8M", model="m1"), scores()[0] | {"fid": 8888.0}]
    finish(executed_path(grid.cells[2], grid.executed), "older", old)
    executed(grid.executed / "nobodys.ipynb", [row(fid=9999.0)])
    page = report.render(grid).read_text()
    assert "1 failed and 0 missing of 3 cells" in page
    assert 'href="executed/model-seed%3D0.html"' in page
    assert "1 cell is outdated" in page
    assert '<span class="outdated">outdated</span>' in page
    assert "the code of model.ipynb changed since" in page
    assert "SlimFlow (outdated)" in page
    assert 7777 in distances(page)
    assert 8888 not in distances(page)  # of the same score, that of the cell which is done
    assert "1 executed notebook in the folder belongs to" in page
    assert 9999 not in distances(page)
    assert 'href="executed/model-seed%3D1.failed.html"' in page
    assert "ValueError: &lt;no luck&gt;" in page
    assert 23.5 in distances(page)  # the mean over three seeds
    assert row()["protocol"] in page
    assert row()["device"] in page
    assert row()["versions"] in page
    for axis in ("steps", "params", "cost", "latency"):
        assert f'href="fid_vs_{axis}.svg"' in page


def test_a_grid_with_nothing_done_still_has_a_page(tmp_path):
    page = report.render(three_cells(tmp_path)).read_text()
    assert "No scores are recorded yet" in page
    assert "0 failed and 3 missing of 3 cells" in page


def test_the_page_warns_of_settings_that_pass_for_seeds_and_of_diverged_runs(tmp_path):
    executed(tmp_path / "a.ipynb", [row(model="m0", fid=1.0), row(model="m1", fid=float("nan")), row(steps=4)])
    page = report.render(tmp_path).read_text()
    assert "2 different models are called SlimFlow, 0.2M and share training seed 0" in page
    assert "1 of 3 scores of SlimFlow, 0.2M are no Fréchet distance (nan; steps 1; training seeds 0)" in page


def three_cells(folder: Path):
    notebook(folder / "notebooks" / "model.ipynb", "seed = 0")
    return read_grid(grid_file(folder, "name: tiny\nstages: {model: {notebook: model.ipynb, over: {seed: [0, 1, 2]}}}"))


def finish(path: Path, digest: str, rows: list[dict], why: str = "") -> None:
    executed(path, rows, stamp={STAMP: {"digest": digest, "seconds": 1.0, "why": why}})


def test_a_grid_whose_runs_all_diverged_has_a_page_without_figures(tmp_path):
    executed(tmp_path / "a.ipynb", [row(fid="nan")])
    page = report.render(tmp_path).read_text()
    assert "1 of 1 scores of SlimFlow, 0.2M are no Fréchet distance (nan;" in page
    assert "no score of a student" in page
    assert not list(tmp_path.glob("fid_vs_*"))
    with pytest.raises(OnestepError, match="nothing to draw: no score is a positive number"):
        figures.fid_vs_steps(tables.read_rows(tmp_path))


def scores_of(page: str) -> list[dict]:
    """The rows of the page's table of scores."""
    table = page_data(page)["scores"]
    keys = [column["key"] for column in table["columns"]]
    return [dict(zip(keys, row, strict=True)) for row in table["rows"]]


def distances(page: str) -> list[float]:
    return [score["fid"] for score in scores_of(page)]


# ---- what was added to rows later


def test_rows_that_lack_later_fields_are_read_with_nothing_in_their_place(tmp_path):
    old = {key: value for key, value in row().items() if key not in LATER}
    executed(tmp_path / "a.ipynb", [old])
    read = tables.read_rows(tmp_path)
    assert list(read.columns) == list(FIELDS)
    assert read[list(QUALITIES)].isna().all(axis=None)
    assert set(read["split"]) == {"train"}
    assert set(read["purpose"]) == {"result"}
    assert "precision" not in tables.table(read).to_html()


def test_summary_and_table_show_mean_precision_and_recall(tmp_path):
    executed(tmp_path / "a.ipynb", [row(seed=0, precision=0.5), row(seed=1, precision=0.7)])
    report.render(tmp_path)
    (line,) = csv.DictReader(io.StringIO((tmp_path / "summary.csv").read_text()))
    assert (float(line["precision"]), float(line["recall"])) == pytest.approx((0.6, 0.4))
    (score,) = scores_of((tmp_path / "report.html").read_text())
    assert (score["precision"], score["recall"]) == (0.6, 0.4)


def test_the_page_repeats_warnings_once(tmp_path):
    executed(tmp_path / "a.ipynb", [row(seed=seed, warning="9 samples are few" if seed else "") for seed in range(3)])
    assert report.render(tmp_path).read_text().count("2 of 3 scores: 9 samples are few.") == 1
