"""What may be concluded from score rows: intervals, spreads kept apart, differences, judges and splits compared.

The unit is the training run (teacher seed, training seed): sampling seeds of one run are repeated readings of one
model, and are averaged before anything is said of a method. Pure functions of arrays and of rows.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from onestep_bench.errors import OnestepError

RUN = ["teacher_seed", "train_seed"]
_JUDGE = ["dataset", "features"]
_MODEL = ["label", "size", "sampler", "steps", "kimg"]
_PLACE = ["size", "steps"]
COPY = 0.5  # nearest-neighbour ratio below which samples pass for copies


class Interval(NamedTuple):
    """Bounds of an interval; NaN where there is none."""

    low: float
    high: float


def interval(values, level: float = 0.95) -> Interval:
    """Student's t interval for the mean of independent values (n,); NaN for fewer than two, or where one is NaN."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2 or not np.isfinite(values).all():
        return Interval(np.nan, np.nan)
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Interval(values.mean() - half, values.mean() + half)


def run_means(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean FID of each training run over its sampling seeds: one line per (by, teacher seed, training seed).

    A diverged seed (NaN) makes the mean NaN.
    """
    grouped = rows.groupby([*by, *RUN], dropna=False)["fid"]
    return grouped.mean().where(grouped.count() == grouped.size()).reset_index()


def _equal_recipes(rows: pd.DataFrame) -> None:
    """Raise OnestepError where rows of one model would be averaged over unequal recipes."""
    told = rows.fillna({"recipe": "", "saw": ""})
    for key, own in told.groupby(["dataset", *_MODEL], dropna=False):
        if len(own[["recipe", "saw"]].drop_duplicates()) > 1:
            raise OnestepError(
                f"models of unequal recipes are all called {key[1]}, {key[2]}: a mean over them says nothing; take "
                "report.results(rows), which gives them names of their own"
            )


# ---- spread ----------------------------------------------------------------------------------------------------------


def nested(values, outer, inner) -> dict[str, float | None]:
    """Variance components of a nested design: outer level, inner level within it, repeats within that.

    values, outer, inner: arrays (n,), the latter of names; inner ones are told apart within their outer one only. By
    the method of moments for unequal numbers (Searle, Casella and McCulloch 1992, section 5.2: Henderson's first
    method), clipped at 0. A level of which every member of the one above has only one is None: its variance is in
    that of the level above, or nowhere.
    """
    frame = pd.DataFrame({"y": np.asarray(values, dtype=float), "a": np.asarray(outer), "b": np.asarray(inner)})
    total, of_a = len(frame), frame.groupby("a")["y"].agg(["mean", "size"])
    of_b = frame.groupby(["a", "b"])["y"].agg(["mean", "size"]).reset_index()
    mean_of_a, size_of_a = (of_b["a"].map(of_a[name]) for name in ("mean", "size"))
    within = float(((frame["y"] - frame.groupby(["a", "b"])["y"].transform("mean")) ** 2).sum())
    between_b = float((of_b["size"] * (of_b["mean"] - mean_of_a) ** 2).sum())
    between_a = float((of_a["size"] * (of_a["mean"] - frame["y"].mean()) ** 2).sum())
    # Expected sums of squares are linear in the components; solved from the lowest level upwards.
    share = float((of_b["size"] ** 2 / size_of_a).sum())
    repeats = within / (total - len(of_b)) if total > len(of_b) else None
    inner_variance = outer_variance = None
    if len(of_b) > len(of_a):
        freedom = len(of_b) - len(of_a)
        inner_variance = max(0.0, (between_b - freedom * (repeats or 0.0)) / (total - share))
    if len(of_a) > 1:
        below = (share - float((of_b["size"] ** 2).sum()) / total) * (inner_variance or 0.0)
        below += (len(of_a) - 1) * (repeats or 0.0)
        outer_variance = max(0.0, (between_a - below) / (total - float((of_a["size"] ** 2).sum()) / total))
    return {"outer": outer_variance, "inner": inner_variance, "repeats": repeats}


def components(rows: pd.DataFrame) -> pd.DataFrame:
    """Spread of the FID of each model by its causes, as standard deviations: teacher, training, sampling seeds.

    One line per (label, size, sampler, steps, kimg); a level with one member only is NaN. Diverged rows are left out.
    Raises OnestepError for unequal recipes under one label, as all comparisons here do: see `recipes.results`.
    """
    _equal_recipes(rows)
    sound = rows[np.isfinite(rows["fid"])]
    lines = []
    for key, own in sound.groupby(_MODEL, dropna=False, sort=True):
        # Of rows without teacher seeds (nobody's, or old ones) all have the same one.
        found = nested(own["fid"], own["teacher_seed"].fillna(-1), own["train_seed"].fillna(-1))
        spread = {level: np.nan if variance is None else variance**0.5 for level, variance in found.items()}
        lines.append(
            dict(zip(_MODEL, key, strict=True))
            | {"mean": own["fid"].mean(), "teacher": spread["outer"], "training": spread["inner"]}
            | {"sampling": spread["repeats"], "scores": len(own)}
        )
    columns = [*_MODEL, "mean", "teacher", "training", "sampling", "scores"]
    return pd.DataFrame(lines, columns=columns)


# ---- differences -----------------------------------------------------------------------------------------------------


def differences(rows: pd.DataFrame, level: float = 0.95, *, of: str | None = None) -> pd.DataFrame:
    """Differences of mean FID between all pairs of models of one size and number of steps, with their t intervals.

    of: one model's name, to take pairs with it alone.

    Paired where two or more training runs share their seeds: over runs, of means over the sampling seeds both have.
    Otherwise unpaired (Welch 1947). verdict: 'larger' than its interval, i.e. 0 lies outside; 'within'; or 'unknown'
    with a single run. The intervals are not corrected for the number of comparisons.
    Of several budgets of one label the largest is compared. rows: of one protocol.
    """
    _equal_recipes(rows)
    rows = largest_budget(rows)
    rows = rows.assign(**{name: rows[name].fillna(-1) for name in RUN}, name=_names(rows))
    lines = []
    for (size, steps), place in rows.groupby(_PLACE, sort=True):
        tables = {name: own.groupby([*RUN, "seed"])["fid"].mean().unstack() for name, own in place.groupby("name")}
        for first, second in combinations(sorted(tables), 2):
            if of not in (None, first, second):
                continue
            found = difference(tables[first], tables[second], level)
            lines.append({"size": size, "steps": steps, "first": first, "second": second} | found)
    columns = ["size", "steps", "first", "second", "difference", "low", "high", "paired", "runs", "verdict"]
    return pd.DataFrame(lines, columns=columns)


def difference(first: pd.DataFrame, second: pd.DataFrame, level: float = 0.95) -> dict:
    """Of two tables of scores, a line per training run and a column per sampling seed: mean of first less second.

    Keys: difference, low, high, p (two-sided), error (its standard error) and freedom (degrees of it), paired, runs,
    verdict; see `differences`. All of noise is NaN where a table has one run, or a score that is NaN.
    """
    runs, seeds = first.index.intersection(second.index), first.columns.intersection(second.columns)
    if len(runs) > 1 and len(seeds):
        gaps = (first.loc[runs, seeds].to_numpy() - second.loc[runs, seeds].to_numpy()).mean(axis=1)
        error = gaps.std(ddof=1) / len(gaps) ** 0.5 if np.isfinite(gaps).all() else np.nan
        return _verdict(gaps.mean(), error, len(gaps) - 1, level, paired=True, runs=str(len(runs)))
    ours, theirs = (table.mean(axis=1, skipna=False).to_numpy() for table in (first, second))
    words = {"paired": False, "runs": f"{len(ours)}, {len(theirs)}"}
    return _verdict(ours.mean() - theirs.mean(), *_welch(ours, theirs), level, **words)


def _welch(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Standard error of a difference of two means, and its degrees of freedom."""
    if min(len(first), len(second)) < 2 or not np.isfinite([*first, *second]).all():
        return np.nan, np.nan
    errors = [values.var(ddof=1) / len(values) for values in (first, second)]
    if not sum(errors):
        return 0.0, 1.0
    freedom = sum(errors) ** 2 / sum(e**2 / (len(v) - 1) for e, v in zip(errors, (first, second), strict=True))
    return sum(errors) ** 0.5, freedom


def _verdict(gap: float, error: float, freedom: float, level: float, **more) -> dict:
    half = stats.t.ppf((1 + level) / 2, freedom) * error
    p = 2 * stats.t.sf(abs(gap) / error, freedom) if error else float(gap == 0)
    words = "unknown" if np.isnan(half) else "larger" if abs(gap) > half else "within"
    bounds = {"low": gap - half, "high": gap + half, "p": p, "error": error, "freedom": freedom}
    return {"difference": gap, **bounds, **more, "verdict": words}


def largest_budget(rows: pd.DataFrame) -> pd.DataFrame:
    """Of rows that differ in their budget alone, those with the largest: in passes where known, else in images."""
    known = rows["passes"].notna().all() and len(rows)
    budget = rows["passes" if known else "kimg"]
    # Passes differ in a hair between seeds (the same images, but a teacher of other steps): kimg names the budget.
    place = [name for name in ("dataset", "split", "protocol", "label", "size", "sampler", "steps") if name in rows]
    keys = [rows[name] for name in place]
    top = budget.groupby(keys, dropna=False).transform("max")
    chosen = rows["kimg"].where(budget == top).groupby(keys, dropna=False).transform("max")
    return rows[rows["kimg"].isna() | (rows["kimg"] == chosen)]


def _names(rows: pd.DataFrame) -> pd.Series:
    """Labels; with the sampler where a label has several at one place."""
    samplers = rows.groupby(["label", *_PLACE])["sampler"].transform("nunique")
    return rows["label"].where(samplers == 1, rows["label"] + ", " + rows["sampler"].astype(str))


# ---- judges ----------------------------------------------------------------------------------------------------------


class Disagreement(NamedTuple):
    """Two judges' orders: Kendall's tau (1 the same order, -1 its reverse), and the pairs they order differently.

    scores: a line per model, a column of mean FID per judge. pairs: size, steps, first, second, and the difference by
    each judge; only pairs of which both differences are larger than their intervals.
    """

    judges: tuple[str, str]
    tau: float
    scores: pd.DataFrame
    pairs: pd.DataFrame


def rank_disagreement(rows_by_judge: Mapping[str, pd.DataFrame]) -> list[Disagreement]:
    """Compare the orders in which every two judges put the models that both scored."""
    pairs = combinations(rows_by_judge.items(), 2)
    return [_disagreement((one, other), (ours, theirs)) for (one, ours), (other, theirs) in pairs]


def _disagreement(judges: tuple[str, str], rows: tuple[pd.DataFrame, pd.DataFrame]) -> Disagreement:
    key = [*_PLACE, "name"]
    means, gaps = [], []
    for judge, own in zip(judges, rows, strict=True):
        own = largest_budget(own)
        runs = run_means(own.assign(name=_names(own)), key)
        means.append(runs.groupby(key)["fid"].agg(lambda values: values.mean(skipna=False)).rename(judge))
        found = differences(own)
        found = found[found["verdict"] == "larger"].rename(columns={"difference": judge})
        gaps.append(found[[*_PLACE, "first", "second", judge]])
    scores = pd.concat(means, axis=1, join="inner").dropna().reset_index()
    both = gaps[0].merge(gaps[1], on=[*_PLACE, "first", "second"])
    tau = stats.kendalltau(scores[judges[0]], scores[judges[1]]).statistic if len(scores) > 1 else np.nan
    return Disagreement(judges, float(tau), scores, both[both[judges[0]] * both[judges[1]] < 0].reset_index(drop=True))


# ---- splits ----------------------------------------------------------------------------------------------------------


def generalisation_gap(rows: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """FID against the test split less that against the training split: a line per judge and model that has both.

    Columns: train and test (means over runs), gap with its t interval over runs, the floors (what real images of the
    other split score), nn_ratio, and `copies`: 'copies' where the ratio is below `COPY`; 'nearer than real' where the
    samples are nearer to the training set than held-out images are, i.e. below its floor; else empty.
    """
    _equal_recipes(rows)
    lines = []
    for key, own in rows.groupby([*_JUDGE, *_MODEL], dropna=False, sort=True):
        splits = {split: own[own["split"] == split] for split in ("train", "test")}
        if any(part.empty for part in splits.values()):
            continue
        runs = [run_means(part, []).set_index(RUN)["fid"] for part in splits.values()]
        both = pd.concat(runs, axis=1, keys=splits, join="inner")
        bounds = interval(both["test"] - both["train"], level)
        means = {split: both[split].mean(skipna=False) for split in splits}
        floors = {f"floor_{split}": part["floor"].mean() for split, part in splits.items()}
        line = dict(zip([*_JUDGE, *_MODEL], key, strict=True)) | means | {"gap": means["test"] - means["train"]}
        line |= {**bounds._asdict(), "runs": len(both), **floors, "nn_ratio": splits["test"]["nn_ratio"].mean()}
        lines.append(line | {"copies": _copies(line)})
    columns = [*_JUDGE, *_MODEL, "train", "test", "gap", "low", "high", "runs", "floor_train", "floor_test"]
    return pd.DataFrame(lines, columns=[*columns, "nn_ratio", "copies"])


def _copies(line: dict) -> str:
    if line["nn_ratio"] < COPY:
        return "copies"
    return "nearer than real" if line["train"] < line["floor_train"] else ""


def by_judge(rows: pd.DataFrame) -> Iterator[tuple[tuple[str, str, str], pd.DataFrame]]:
    """The rows of each (dataset, split, features); of several protocols among these, of the one with most rows."""
    for key, own in rows.groupby(["dataset", "split", "features"], sort=True):
        yield key, own[own["protocol"] == own["protocol"].value_counts(sort=True).index[0]]
