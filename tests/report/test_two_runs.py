"""Two runs of a grid against each other: what is found, what is noise, what cannot be compared."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from synthetic import frame
from tiny import row

from onestep_bench.errors import OnestepError
from onestep_bench.report.changes import _holm, changes
from onestep_bench.report.statistics import difference


def run(rng, labels="ABCDEF", runs=4, spread=0.05, change=None, first=0, **given):
    """Rows of a small grid: of each label its FD in each training run, of two sampling seeds."""
    change = change or {}
    rows = []
    for i, label in enumerate(labels):
        for seed in range(first, first + runs):
            of_run = 5 * (i + 1) * np.exp(rng.normal(0, spread)) * change.get(label, 1)
            for draw in range(2):
                fid = of_run * np.exp(rng.normal(0, 0.01))
                place = {"label": label, "method": label, "train_seed": seed, "teacher_seed": seed, "seed": draw}
                rows.append(row(**place | {"fid": fid, "model": f"{label}{seed}"} | given))
    return frame(rows)


def verdicts(found) -> dict[str, str]:
    return dict(zip(found.cells["label"], found.cells["verdict"], strict=True))


@pytest.mark.parametrize("first", [0, 10])  # the same seeds, and others
def test_a_planted_change_is_found_and_nothing_else(first):
    rng = np.random.default_rng(0)
    found = changes(run(rng), run(rng, change={"C": 1.6, "D": 0.6}, first=first))
    assert found.cells["paired"].all() == (first == 0)
    assert {label: word for label, word in verdicts(found).items() if word != "within"} == {"C": "worse", "D": "better"}
    line = found.cells.set_index("label").loc["C"]
    assert line["low"] > 0
    assert line["change"] == pytest.approx(line["after"] - line["before"])


def test_equal_runs_are_the_same_and_are_not_tested():
    rows = run(np.random.default_rng(0))
    found = changes(rows, rows)
    assert set(found.cells["verdict"]) == {"same"}
    assert found.tested == 0


@pytest.mark.parametrize("paired", [True, False])
def test_false_alarms_come_no_oftener_than_stated(paired):
    """Of 200 pairs of equal runs, of three cells each, in about 5 % some cell is called changed."""
    rng = np.random.default_rng(1)
    names = [pd.Index([0, 1, 2]), pd.Index([0, 1, 2]) if paired else pd.Index([7, 8, 9])]
    tables = (pd.DataFrame(rng.normal(5, 0.3, (3, 1)), index=name) for _ in range(600) for name in names)
    p = np.array([difference(new, old)["p"] for old, new in zip(tables, tables, strict=True)])
    alarms = sum((_holm(pd.Series(own)) < 0.05).any() for own in p.reshape(200, 3))
    low, high = stats.binom.interval(0.999, 200, 0.05)
    # Welch's test errs on the safe side for three runs.
    assert (low if paired else 0) <= alarms <= high


def test_a_single_run_has_no_noise_to_compare_with():
    rng = np.random.default_rng(0)
    assert set(verdicts(changes(run(rng, runs=1), run(rng, runs=1))).values()) == {"unknown"}


def test_a_model_that_diverges_now_is_worse_without_a_test():
    rng = np.random.default_rng(0)
    before = run(rng, "AB")
    after = before.assign(fid=before["fid"].where(before["label"] == "A"))
    assert verdicts(changes(before, after)) == {"A": "same", "B": "worse"}
    assert verdicts(changes(after, before)) == {"A": "same", "B": "better"}
    assert changes(before, after).tested == 0


def test_cells_of_one_run_only_are_told():
    rng = np.random.default_rng(0)
    found = changes(run(rng, "ABC"), run(rng, "BCD"))
    assert (list(found.only_before["label"]), list(found.only_after["label"])) == (["A"], ["D"])
    assert set(verdicts(found)) == {"B", "C"}


def test_scores_of_two_protocols_are_refused_others_compared():
    rng = np.random.default_rng(0)
    before = run(rng, "AB")
    pixels = {"features": "pixels", "protocol": "pixels@1"}
    found = changes(
        frame([*before.to_dict("records"), *run(rng, "AB", **pixels).to_dict("records")]),
        frame([*before.to_dict("records"), *run(rng, "AB", **pixels | {"protocol": "pixels@2"}).to_dict("records")]),
    )
    assert found.refused == ["digits, pixels, train: of two protocols, not compared (A: pixels@1; B: pixels@2)"]
    assert set(found.cells["features"]) == {"digits"}
    assert found.only_before.empty
    with pytest.raises(OnestepError, match="nothing to compare: digits, digits, train: of two protocols"):
        changes(before, before.assign(protocol="other"))


def test_runs_without_a_cell_in_common_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(OnestepError, match="nothing to compare: they have no cell in common"):
        changes(run(rng, "A"), run(rng, "B"))


def test_a_changed_recipe_or_budget_is_the_same_cell_where_there_is_one():
    rng = np.random.default_rng(0)
    found = changes(run(rng, recipe="r1", kimg=10.0, passes=30.0), run(rng, recipe="r2", kimg=20.0, passes=60.0))
    assert len(found.cells) == 6
    assert list(found.cells[["passes", "passes_after"]].iloc[0]) == [30, 60]


def test_of_several_budgets_equal_ones_are_compared():
    rng = np.random.default_rng(0)
    both = [run(rng, "A", kimg=kimg, recipe=f"{kimg}") for kimg in (10.0, 20.0, 40.0)]
    before, after = (frame([line for rows in own for line in rows.to_dict("records")]) for own in (both[:2], both[1:]))
    found = changes(before, after)
    assert list(found.cells["kimg"]) == [20]
    assert (list(found.only_before["kimg"]), list(found.only_after["kimg"])) == ([10], [40])


def test_recipes_of_one_label_within_a_run_are_cells_of_their_own():
    rng = np.random.default_rng(0)
    rows = [line for recipe in "rs" for line in run(rng, "A", recipe=recipe).to_dict("records")]
    found = changes(frame(rows), frame(rows))
    assert list(found.cells["variant"]) == ["A (recipe r)", "A (recipe s)"]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_rejects_no_more_than_single_tests_and_no_less_than_bonferroni(values):
    p = pd.Series(values)
    adjusted = _holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= (p * len(p)).clip(upper=1) + 1e-12).all()
    order = p.argsort(kind="stable")
    assert adjusted.iloc[order].is_monotonic_increasing


def test_holms_p_values_by_hand():
    """The smallest of three counts three times, the next twice; none falls below the one before it, nor above 1."""
    nan = float("nan")
    found = _holm(pd.Series([0.04, nan, 0.01, 0.03, 0.8]))
    assert found.tolist() == pytest.approx([0.09, nan, 0.04, 0.09, 0.8], nan_ok=True)
    assert _holm(pd.Series([0.9, 0.8])).tolist() == [1, 1]
