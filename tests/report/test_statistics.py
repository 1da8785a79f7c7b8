"""What may be concluded: intervals, components, differences, judges and splits, against cases whose answer is known."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic import frame
from tiny import row

from onestep_bench.report import statistics


def runs(label: str, means: list[float], seeds=(0, 1), first_seed=0, **given) -> list[dict]:
    """Rows of training runs: each mean, and a sampling seed's own deviation that all labels share."""
    return [
        row(label=label, train_seed=first_seed + i, teacher_seed=first_seed + i, seed=seed, fid=mean + seed, **given)
        for i, mean in enumerate(means)
        for seed in seeds
    ]


# ---- intervals


def test_the_interval_is_students():
    values = [1.14, 0.77, 0.93]
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert statistics.interval(values) == pytest.approx(expected)


def test_an_interval_covers_the_mean_as_often_as_it_says():
    """Of 2,000 sets of 5 normal values: 1,900 within three standard deviations of the binomial, 29."""
    draws = np.random.default_rng(0).normal(3.0, 2.0, (2000, 5))
    bounds = np.array([statistics.interval(values) for values in draws])
    covered = ((bounds[:, 0] < 3) & (bounds[:, 1] > 3)).sum()
    assert abs(covered - 1900) < 29


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")]])
def test_there_is_no_interval_of_one_run_or_a_diverged_one(values):
    assert np.isnan(statistics.interval(values)).all()


# ---- components


def simulated(teachers: int, trainings, samplings, spread: tuple[float, float, float], rng) -> tuple:
    """Values of a nested design, with the names of their levels; numbers of members may vary."""
    values, outer, inner = [], [], []
    for a in range(teachers):
        of_a = rng.normal(0, spread[0])
        for b in range(trainings(a)):
            of_b = of_a + rng.normal(0, spread[1])
            for _ in range(samplings(a, b)):
                values.append(5 + of_b + rng.normal(0, spread[2]))
                outer.append(a)
                inner.append(b)
    return np.array(values), np.array(outer), np.array(inner)


@pytest.mark.parametrize("balanced", [True, False])
def test_components_of_a_simulated_case_are_found(balanced):
    """400 teachers, 1 to 5 trainings, 1 to 4 samplings: each within four standard errors, in units of the variance.

    Those of the teachers' mean square (399 degrees of freedom) are at most sqrt(2 / 399) of it, and so on downwards.
    """
    rng = np.random.default_rng(0)
    trainings = (lambda a: 3) if balanced else (lambda a: 1 + a % 5)
    samplings = (lambda a, b: 3) if balanced else (lambda a, b: 1 + (a + b) % 4)
    found = statistics.nested(*simulated(400, trainings, samplings, (0.4, 0.3, 0.1), rng))
    total = 0.4**2 + 0.3**2 + 0.1**2
    assert found["outer"] == pytest.approx(0.4**2, abs=4 * total * (2 / 399) ** 0.5)
    assert found["inner"] == pytest.approx(0.3**2, abs=4 * (0.3**2 + 0.1**2) * (2 / 800) ** 0.5)
    assert found["repeats"] == pytest.approx(0.1**2, abs=4 * 0.1**2 * (2 / 1500) ** 0.5)


def test_the_estimates_are_unbiased_in_an_unequal_design_of_few_members():
    """Means over 200 simulated studies, where the components are too large to be clipped: within four errors."""
    rng = np.random.default_rng(1)
    shape = (lambda a: (4, 2, 3)[a], lambda a, b: 1 + (a + b) % 3)
    found = [statistics.nested(*simulated(3, *shape, (0.0, 0.3, 0.1), rng)) for _ in range(200)]
    inner = np.array([one["inner"] for one in found])
    repeats = np.array([one["repeats"] for one in found])
    assert inner.mean() == pytest.approx(0.09, abs=4 * inner.std() / 200**0.5)
    assert repeats.mean() == pytest.approx(0.01, abs=4 * repeats.std() / 200**0.5)


def test_a_balanced_case_by_hand():
    """Two teachers, two trainings each, two samplings: mean squares 32, 4.5 and .5; so (32 - 4.5) / 4 and so on."""
    values = [0, 1, 3, 4, 5, 6, 6, 7]
    found = statistics.nested(values, [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 1, 1])
    assert found == pytest.approx({"outer": (32 - 5) / 4, "inner": (5 - 0.5) / 2, "repeats": 0.5})


def test_a_negative_component_is_zero():
    found = statistics.nested([0, 9, 9, 0, 0, 9, 9, 0], [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 1, 1])
    assert (found["outer"], found["inner"]) == (0, 0)


def test_a_level_of_one_member_has_no_component():
    assert statistics.nested([1, 2, 4, 5], [0] * 4, [0, 0, 1, 1])["outer"] is None
    assert statistics.nested([1, 2, 4, 5], [0, 0, 1, 1], [0, 0, 1, 1])["inner"] is None
    assert statistics.nested([1, 2, 4, 5], [0, 0, 1, 1], [0, 1, 0, 1])["repeats"] is None


def test_components_of_rows_are_standard_deviations_a_line_a_model():
    rows = [row(teacher_seed=None, train_seed=a, seed=b, fid=f) for a, b, f in [(0, 0, 1), (0, 1, 3), (1, 0, 8)]]
    (line,) = statistics.components(frame([*rows, row(fid=float("nan"))])).itertuples()
    assert np.isnan(line.teacher)
    assert line.sampling == pytest.approx(2**0.5)
    assert line.scores == 3


# ---- differences


def test_a_difference_is_paired_over_runs_that_share_their_seeds():
    """Runs that rise and fall together: unpaired, the difference of .5 would drown."""
    ours, theirs = [1.0, 5.0, 9.0], [1.4, 5.5, 9.6]
    (line,) = statistics.differences(frame(runs("A", ours) + runs("B", theirs))).itertuples()
    assert (line.first, line.second, line.paired, line.runs) == ("A", "B", True, "3")
    assert line.difference == pytest.approx(-0.5)
    assert (line.low, line.high) == pytest.approx(tuple(statistics.interval(np.subtract(ours, theirs))))
    assert line.verdict == "larger"


def test_a_difference_within_its_interval_is_called_so():
    (line,) = statistics.differences(frame(runs("A", [1, 2, 3]) + runs("B", [2, 1, 3.5]))).itertuples()
    assert line.verdict == "within"


def test_only_sampling_seeds_that_both_have_are_compared():
    """A run's mean would differ by the seeds it has: seed 9 adds 9 to a score."""
    rows = runs("A", [1, 2, 3], seeds=(0, 1)) + runs("B", [2, 3, 4.1], seeds=(0, 1, 9))
    (line,) = statistics.differences(frame(rows)).itertuples()
    assert line.difference == pytest.approx(-(1 + 1 + 1.1) / 3)


def test_without_shared_seeds_the_interval_is_welchs():
    ours, theirs = [1.0, 2.0, 4.0, 3.0], [7.0, 9.0, 8.5]
    rows = runs("A", ours, seeds=(0,)) + runs("B", theirs, seeds=(0,), first_seed=10)
    (line,) = statistics.differences(frame(rows)).itertuples()
    expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    assert (line.low, line.high) == pytest.approx((expected.low, expected.high))
    assert (line.paired, line.runs, line.verdict) == (False, "4, 3", "larger")


@pytest.mark.parametrize("level", [0.5, 0.95])
@pytest.mark.parametrize("paired", [True, False])
def test_a_difference_has_the_p_value_and_the_interval_of_its_t_test_at_any_level(paired, level):
    ours, theirs = [1.0, 2.0, 4.0, 3.0], [2.5, 2.0, 5.5, 4.5]
    tables = [
        pd.DataFrame({0: values}, index=pd.Index(range(start, start + 4)))
        for values, start in ((ours, 0), (theirs, 0 if paired else 10))
    ]
    found = statistics.difference(*tables, level)
    test = stats.ttest_rel(ours, theirs) if paired else stats.ttest_ind(ours, theirs, equal_var=False)
    bounds = test.confidence_interval(level)
    assert (found["low"], found["high"]) == pytest.approx((bounds.low, bounds.high))
    assert (found["p"], found["freedom"]) == pytest.approx((test.pvalue, test.df))
    assert found["difference"] / found["error"] == pytest.approx(test.statistic)
    assert found["verdict"] == ("larger" if test.pvalue < 1 - level else "within")


def test_a_level_is_that_of_every_interval():
    values = [1.14, 0.77, 0.93]
    assert statistics.interval(values, 0.5) == pytest.approx(
        stats.t.interval(0.5, 2, loc=np.mean(values), scale=stats.sem(values))
    )
    (line,) = statistics.differences(frame(runs("A", [1, 2, 4]) + runs("B", [2, 2.5, 3])), 0.5).itertuples()
    assert (line.low, line.high) == pytest.approx(tuple(statistics.interval([-1, -0.5, 1], 0.5)))
    (line,) = statistics.generalisation_gap(frame(both_splits("A", [1, 2], [1.5, 3.1], 1.0)), 0.5).itertuples()
    assert (line.low, line.high) == pytest.approx(tuple(statistics.interval([0.5, 1.1], 0.5)))


def test_runs_that_differ_by_nothing_but_their_means_differ_for_sure_or_not_at_all():
    still = [pd.DataFrame({0: [value, value]}, index=pd.Index([start, start + 1])) for value, start in ((1, 0), (2, 5))]
    assert statistics.difference(*still)["p"] == 0
    assert statistics.difference(still[0], still[0] + 0)["p"] == 1
    assert statistics.difference(*still)["verdict"] == "larger"


def test_pairs_with_one_model_alone_are_those_of_all_pairs():
    rows = frame(runs("A", [1, 2]) + runs("B", [2, 4]) + runs("C", [3, 5]))
    every, some = statistics.differences(rows), statistics.differences(rows, of="B")
    assert some[["first", "second"]].values.tolist() == [["A", "B"], ["B", "C"]]
    assert some["low"].tolist() == [line.low for line in every.itertuples() if "B" in (line.first, line.second)]


def test_one_run_each_says_nothing():
    (line,) = statistics.differences(frame(runs("A", [1]) + runs("B", [100]))).itertuples()
    assert line.verdict == "unknown"
    assert np.isnan(line.low)


def test_models_are_compared_at_one_size_and_steps_only_and_by_their_largest_budget():
    rows = runs("A", [1, 2]) + runs("B", [1, 2], size="0.8M") + runs("C", [1, 2], steps=4)
    rows += runs("D", [7, 8], kimg=900, passes=3000) + runs("D", [1, 2], kimg=100, passes=300)
    found = statistics.differences(frame(rows))
    assert found[["first", "second"]].values.tolist() == [["A", "D"]]
    assert found["difference"].tolist() == pytest.approx([-6])


# ---- judges


def judge(**means: list[float]) -> pd.DataFrame:
    return frame([one for label, own in means.items() for one in runs(label, own)])


def test_judges_that_disagree_beyond_their_intervals_are_named():
    ours = judge(A=[1.0, 1.1, 1.2], B=[2.0, 2.1, 2.25], C=[3.0, 3.1, 3.2])
    theirs = judge(A=[0.5, 0.6, 0.7], B=[0.1, 0.2, 0.31], C=[0.9, 1.0, 1.05])
    (found,) = statistics.rank_disagreement({"ours": ours, "theirs": theirs})
    assert found.tau == pytest.approx(1 / 3)  # of three pairs one is reversed
    assert found.pairs[["first", "second"]].values.tolist() == [["A", "B"]]


def test_an_order_that_changes_within_the_intervals_is_no_contradiction():
    ours, theirs = judge(A=[1.0, 2.0, 3.0], B=[1.5, 2.0, 3.1]), judge(A=[0.5, 0.6, 0.7], B=[0.4, 0.7, 0.5])
    (found,) = statistics.rank_disagreement({"ours": ours, "theirs": theirs})
    assert found.tau == -1
    assert found.pairs.empty


def test_every_two_of_three_judges_are_compared():
    found = statistics.rank_disagreement({name: judge(A=[1, 2], B=[2, 4]) for name in "abc"})
    assert [one.judges for one in found] == [("a", "b"), ("a", "c"), ("b", "c")]


# ---- splits


def both_splits(label: str, train: list[float], test: list[float], ratio: float) -> list[dict]:
    given = {"floor": 0.45, "seeds": (0,)}
    rows = runs(label, train, split="train", protocol="train", **given)
    return rows + runs(label, test, split="test", protocol="test", nn_ratio=ratio, **given)


def test_a_memoriser_is_caught_by_the_gap_and_by_the_ratio():
    """It returns training images: next to nothing against them, the floor against the test split."""
    rows = both_splits("copier", [0.01, 0.011, 0.012], [0.45, 0.44, 0.46], ratio=0.02)
    rows += both_splits("honest", [1.10, 1.00, 1.05], [1.15, 1.02, 1.11], ratio=0.97)
    rows += both_splits("near", [0.30, 0.31, 0.32], [0.60, 0.61, 0.62], ratio=0.8)
    found = statistics.generalisation_gap(frame(rows)).set_index("label")
    assert found["copies"].to_dict() == {"copier": "copies", "honest": "", "near": "nearer than real"}
    copier = found.loc["copier"]
    assert copier["low"] > 0.9 * (copier["floor_test"] - copier["train"]) > 0
    assert copier["train"] < copier["floor_train"]
    assert found.loc["honest", "gap"] == pytest.approx(0.13 / 3)


def test_floor_and_ratio_are_means_over_runs_and_the_smaller_train_score_is_held_to_its_floor():
    rows = frame(both_splits("A", [1.0, 2.0], [2.0, 3.0], 0.6))
    rows.loc[rows["split"] == "train", "floor"] = [1.4, 1.8]
    rows.loc[rows["split"] == "test", "floor"] = [0.2, 0.6]
    rows.loc[rows["split"] == "test", "nn_ratio"] = [0.4, 0.8]
    (line,) = statistics.generalisation_gap(rows).itertuples()
    assert (line.floor_train, line.floor_test, line.nn_ratio) == pytest.approx((1.6, 0.4, 0.6))
    assert (line.train, line.test, line.copies) == (1.5, 2.5, "nearer than real")


def test_a_gap_is_paired_over_runs_and_needs_both_splits():
    rows = both_splits("A", [1.0, 5.0], [1.1, 5.2], 1.0) + runs("B", [1, 2], split="test")
    (line,) = statistics.generalisation_gap(frame(rows)).itertuples()
    assert (line.label, line.runs) == ("A", 2)
    assert (line.low, line.high) == pytest.approx(tuple(statistics.interval([0.1, 0.2])))


def test_a_run_with_a_diverged_sampling_seed_has_no_mean():
    rows = frame(runs("A", [1.0, 2.0], seeds=(0, 1, 2)))
    rows.loc[0, "fid"] = np.nan
    assert np.isnan(statistics.run_means(rows, ["label"])["fid"]).tolist() == [True, False]
    (line,) = statistics.differences(pd.concat([rows, frame(runs("B", [5.0, 6.0], seeds=(0, 1, 2)))])).itertuples()
    assert line.verdict == "unknown"


def test_of_several_protocols_the_one_with_most_rows_is_shown():
    rows = frame(runs("A", [1.0]) + runs("B", [2.0], seeds=(0, 1, 2), protocol="more"))
    ((key, own),) = statistics.by_judge(rows)
    assert key[0] == "digits"
    assert set(own["protocol"]) == {"more"}
    assert len(own) == 3
