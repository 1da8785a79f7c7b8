"""Unequal recipes are never one mean under one label, and searches stay out of results."""

import pandas as pd
import pytest
from tiny import executed, page_data, row

from onestep_bench import report
from onestep_bench.errors import OnestepError
from onestep_bench.report import figures, recipes, statistics, tables
from onestep_bench.scoring.rows import FIELDS

RECIPES = {
    "aaaaaaaaaaaa": {"kd.lr": 0.001, "kd.batch_size": 64, "kd.kimg": 100, "edm.kimg": 200},
    "bbbbbbbbbbbb": {"kd.lr": 0.0003, "kd.batch_size": 64, "kd.kimg": 100, "edm.kimg": 200},
    "cccccccccccc": {"kd.lr": 0.001, "kd.batch_size": 64, "kd.kimg": 200, "edm.kimg": 200},
}
A, B, C = RECIPES


def kd(recipe=A, **given) -> dict:
    return row(**{"label": "KD", "method": "kd", "recipe": recipe, "model": f"m-{recipe}-{given}"} | given)


def frame(rows: list[dict], known: dict | None = None) -> pd.DataFrame:
    rows = pd.DataFrame(rows, columns=list(FIELDS))
    rows.attrs["recipes"] = RECIPES if known is None else known
    return rows


def labels(*rows: dict, known: dict | None = None) -> list[str]:
    return recipes.results(frame(list(rows), known))["label"].tolist()


def test_rows_of_unequal_recipes_refuse_to_be_one_mean():
    rows = frame([kd(A, fid=1.0), kd(B, fid=3.0)])
    lines = tables.summarise(rows).set_index("label")
    assert lines["fid_mean"].to_dict() == {"KD (lr 0.001)": 1.0, "KD (lr 0.0003)": 3.0}
    assert ">KD (lr 0.0003)<" in tables.table(rows).to_html()
    drawn = {text.get_text() for text in figures.fid_vs_steps(rows).axes[0].get_legend().get_texts()}
    assert drawn == {"KD (lr 0.001)", "KD (lr 0.0003)"}


@pytest.mark.parametrize("draw", [statistics.components, statistics.differences, statistics.generalisation_gap])
def test_statistics_refuse_a_mean_over_unequal_recipes(draw):
    rows = frame([kd(A), kd(B)])
    with pytest.raises(OnestepError, match=r"models of unequal recipes are all called KD, 0.2M.*report.results"):
        draw(rows)
    draw(recipes.results(rows))


def test_recipes_scored_on_different_splits_are_told_apart_too():
    assert labels(kd(A, split="train"), kd(B, split="test")) == ["KD (lr 0.001)", "KD (lr 0.0003)"]


def test_what_nobody_wrote_down_is_told_apart_by_its_hash():
    assert labels(kd(A), kd(B), known={}) == ["KD (recipe aaaaaaaa)", "KD (recipe bbbbbbbb)"]


def test_recipes_that_differ_in_nothing_that_is_named_are_told_apart_by_their_hash():
    same = {A: {"kd.lr": 1, "x.a": 1}, B: {"kd.lr": 1, "x.a": 1}}
    assert labels(kd(A), kd(B), known=same) == ["KD (recipe aaaaaaaa)", "KD (recipe bbbbbbbb)"]


def test_a_budget_is_no_recipe_of_its_own():
    assert labels(kd(A, kimg=300), kd(C, kimg=400)) == ["KD", "KD"]


def test_a_label_that_is_extended_is_so_at_every_budget_and_size():
    found = labels(kd(A, kimg=300), kd(B, kimg=300), kd(C, kimg=400), kd(C, kimg=400, size="0.8M"))
    assert found == ["KD (lr 0.001)", "KD (lr 0.0003)", "KD (lr 0.001)", "KD (lr 0.001)"]


def test_sizes_may_have_recipes_of_their_own_under_one_label():
    assert labels(kd(A), kd(B, size="0.8M")) == ["KD", "KD"]


def test_a_label_names_three_settings_those_of_the_method_first_and_then_dots():
    names = ["kd.b", "kd.c", "edm.kimg", "pairs.n", "pairs.steps"]
    known = {A: dict.fromkeys(names, 1), B: dict.fromkeys(names, 2)}
    assert labels(kd(A), kd(B), known=known) == ["KD (b 1, c 1, kimg 1...)", "KD (b 2, c 2, kimg 2...)"]


def test_settings_of_one_name_in_two_places_are_named_in_full():
    known = {A: {"kd.lr": 1, "edm.lr": 2}, B: {"kd.lr": 2, "edm.lr": 1}}
    assert labels(kd(A), kd(B), known=known) == ["KD (kd.lr 1, edm.lr 2)", "KD (kd.lr 2, edm.lr 1)"]


def test_what_was_seen_is_told_where_one_label_saw_both_and_they_stay_a_family():
    rows = recipes.results(frame([kd(A, saw="data"), kd(B, saw="teacher images"), row(label="CD", saw="data")]))
    assert rows["label"].tolist() == ["KD (data)", "KD (teacher images)", "CD"]
    assert rows["family"].tolist() == ["KD", "KD", "CD"]


@pytest.mark.parametrize("label", ["GDD, teacher images", "GDD (teacher images)", "GDD on teacher images", "GDD"])
def test_a_family_is_a_label_without_what_was_seen(label):
    assert recipes.results(frame([row(label=label)]))["family"].tolist() == ["GDD"]


def test_results_of_results_are_the_same():
    once = recipes.results(frame([kd(A), kd(B)]))
    assert recipes.results(once) is once


# ---- searches


def searched() -> list[dict]:
    scored = [(A, 0, 3.0), (A, 1, 5.0), (B, 0, 2.0), (B, 1, 3.0)]
    rows = [kd(r, fid=f, train_seed=s, purpose="search", model=f"{r}{s}") for r, s, f in scored]
    return [*rows, *(one | {"split": "test", "fid": 0.001} for one in rows)]


def test_a_search_names_what_was_tried_and_the_best_on_train_as_chosen():
    found = recipes.search_table(frame(searched()))
    assert found[["setting", "fid", "runs", "chosen"]].values.tolist() == [
        ["lr 0.0003", 2.5, 2, True],
        ["lr 0.001", 4.0, 2, False],
    ]


def test_searches_are_in_no_figure_and_no_main_table_but_on_the_page(tmp_path):
    executed(tmp_path / "a.ipynb", [*searched(), kd(C, fid=7.77)], recipes=RECIPES)
    page = report.render(tmp_path).read_text()
    summary = pd.read_csv(tmp_path / "summary.csv")
    assert summary[["label", "fid_mean"]].values.tolist() == [["KD", 7.77]]
    assert len(pd.read_csv(tmp_path / "results.csv")) == 9
    assert "<h2>Search</h2>" in page
    (search,) = page_data(page)["parts"][-1]["tables"]
    assert [row[-4:] for row in search["rows"] if row[-1]] == [["lr 0.0003", 2.5, 2, "chosen"]]
    assert len(page_data(page)["scores"]["rows"]) == 1


def test_recipes_are_read_from_every_bundle(tmp_path):
    executed(tmp_path / "a.ipynb", [kd(A)], recipes={A: RECIPES[A]})
    executed(tmp_path / "b.ipynb", [kd(B)], recipes={B: RECIPES[B]})
    assert recipes.results(tables.read_rows(tmp_path))["label"].tolist() == ["KD (lr 0.001)", "KD (lr 0.0003)"]
