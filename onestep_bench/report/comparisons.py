"""Rows to figures that set one thing against another: data against loss, train against test, judge against judge."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from onestep_bench.errors import OnestepError
from onestep_bench.report.colours import looks as looks_of
from onestep_bench.report.drawing import (
    FAR_BELOW,
    MUTED,
    Looks,
    bars,
    blank,
    caption,
    curve,
    distance,
    floor_line,
    log_labels,
    log_scale,
    near_floor,
    protocol_words,
    score_name,
    spread_words,
    styled,
)
from onestep_bench.report.labels import label_points, name_column, name_ends
from onestep_bench.report.recipes import results
from onestep_bench.report.statistics import (
    COPY,
    Disagreement,
    by_judge,
    generalisation_gap,
    interval,
    largest_budget,
    rank_disagreement,
    run_means,
)
from onestep_bench.report.tables import brief, drawable, is_teacher, one_protocol, size_order

_GREY = "0.72"


def fewest_steps(rows: pd.DataFrame) -> int:
    """The number of steps at which models are compared: 1, or the fewest there are."""
    return int(rows["steps"].min())


def at_one_place(rows: pd.DataFrame, size: str | None = None, steps: int | None = None) -> pd.DataFrame:
    """Rows of one size and number of steps, each model's largest budget.

    By default of the fewest steps, and of the size which most labels have, the largest of equals.
    """
    own = rows[rows["steps"] == (fewest_steps(rows) if steps is None else steps)]
    often = own.groupby("size")["label"].nunique()
    size = size or max(often.index, key=lambda name: (often[name], size_order(name)), default=None)
    return largest_budget(own[own["size"] == size])


@styled
def two_by_two(
    rows: pd.DataFrame, *, methods: dict[str, str] | None = None, size: str | None = None, steps: int | None = None
) -> Figure:
    """FID of methods that were trained both on data and on teacher images: loss by data, with intervals.

    methods: which labels are one method but for what they saw; by default labels equal but for that word.
    size, steps: as `at_one_place`.
    Raises OnestepError when no method saw both, or for rows of more than one protocol.
    """
    rows = results(rows)
    one_protocol(rows)
    rows = at_one_place(rows, size, steps)
    lines = drawable(rows)
    family = dict(zip(rows["label"], rows["family"], strict=True)) | (methods or {})
    lines = lines.assign(family=lines["label"].map(family), saw=lines["saw"].fillna(""))
    lines = lines[~_of_teachers(lines)]
    sides = lines.groupby("family")["saw"].agg(set)
    both = sorted(name for name, saws in sides.items() if {"data", "teacher images"} <= saws)
    if not both:
        raise OnestepError("nothing to draw: no method was trained both on data and on teacher images")
    lines = lines[lines["family"].isin(both)]
    colours = sns.color_palette("colorblind")
    looks = {"data": (colours[0], "o"), "teacher images": (colours[3], "s"), "both": (colours[2], "D")}
    figure, axes = blank(wide=max(4.8, 1.6 + 1.3 * len(both)), high=4.2)
    points = []
    for i, (saw, look) in enumerate(looks.items()):
        own = lines[lines["saw"] == saw]
        if own.empty:
            continue
        where = own["family"].map(both.index) + 0.16 * (i - 0.5 * (len(set(lines["saw"])) - 1))
        curve(axes, own, where, look, linestyle="none", label=saw)
        points += [(x, fid, brief(fid), look[0], 8) for x, fid in zip(where.to_numpy(), own["fid_mean"], strict=True)]
    log_scale(axes, [*lines["fid_mean"], *(lines["fid_mean"] + bars(lines)[1]), *near_floor(rows, lines["fid_mean"])])
    axes.set_xticks(range(len(both)), both)
    axes.set_xlim(-0.6, len(both) - 0.4)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel(f"{distance(rows)},\nlower is better")
    axes.legend(title="trained on", loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False)
    label_points(axes, points, taken=floor_line(axes, rows))
    caption(axes, f"{_place(rows)}. {spread_words(lines)}", protocol_words(rows), down=26)
    return figure


@styled
def held_out(
    rows: pd.DataFrame, *, size: str | None = None, steps: int | None = None, looks: Looks | None = None
) -> Figure:
    """FID against the training split (x) and against the test split (y), by one judge: one point a method.

    On the diagonal a model is as near to images that nobody trained on; above it, nearer to its training set. Dotted:
    the floors. size, steps: as `at_one_place`, but of teachers the best number of steps.
    Raises OnestepError when no model was scored against both splits, or for rows of several judges.
    """
    rows = results(rows)
    looks = looks or looks_of(rows["label"])
    _one_judge(rows)
    students = rows[~_of_teachers(rows)]
    chosen = at_one_place(students if len(students) else rows, size, steps)
    gaps = generalisation_gap(pd.concat([chosen, _best_teachers(rows, chosen)]))
    gaps = gaps[(gaps["train"] > 0) & (gaps["test"] > 0)]
    if gaps.empty:
        raise OnestepError("nothing to draw: no model was scored against both splits")
    figure, axes = blank(wide=6.6, high=5.2)
    means = run_means(rows, ["split", "label", "size", "sampler", "steps", "kimg"])
    for gap in gaps.itertuples():
        bounds = [_reach(means, gap, split) for split in ("train", "test")]
        look = looks[gap.label]
        axes.errorbar(
            gap.train,
            gap.test,
            xerr=bounds[0],
            yerr=bounds[1],
            color=look[0],
            marker=look[1],
            markersize=5.5,
            markeredgecolor="white",
            markeredgewidth=0.6,
            elinewidth=0.9,
            linestyle="none",
        )
    floors = gaps[["floor_train", "floor_test"]].mean()
    values = [*gaps["train"], *gaps["test"]]
    log_scale(axes, values + [floor for floor in floors if floor > min(values) / FAR_BELOW])
    axes.set_xscale("log")
    axes.set_xlim(axes.get_ylim())
    log_labels(axes.xaxis, *axes.get_xlim())
    axes.plot(axes.get_ylim(), axes.get_ylim(), color=MUTED, linewidth=0.8, zorder=1)
    for draw, floor in ((axes.axvline, floors["floor_train"]), (axes.axhline, floors["floor_test"])):
        if floor > 0:
            draw(floor, color=MUTED, linewidth=1, linestyle=":", zorder=1)
    score = score_name(rows["features"].iloc[0])
    axes.set_xlabel(f"{score} to the training split")
    axes.set_ylabel(f"{score} to the test split")
    name_ends(axes, [(gap.train, gap.test, _with_steps(gap), looks[gap.label][0]) for gap in gaps.itertuples()])
    caption(
        axes,
        f"{rows['dataset'].iloc[0]}, {chosen['size'].iloc[0]}. Solid: equal distances. Dotted, or below the figure: "
        f"what real images of the other split score ({brief(floors['floor_train'])} and "
        f"{brief(floors['floor_test'])}). {_runs_in_words('Error bars', gaps['runs'])}",
    )
    return figure


@styled
def judges(
    rows: pd.DataFrame, *, size: str | None = None, steps: int | None = None, looks: Looks | None = None
) -> Figure:
    """Two judges' orders of the methods, side by side, best on top; in colour where they contradict each other.

    A line is coloured if it crosses one from which it differs by more than the interval before both judges.
    rows: of one data set and split, by two judges or more, of which the first two by name are drawn.
    Raises OnestepError when there are not two judges, or they have fewer than two models in common.
    """
    rows = results(rows)
    looks = looks or looks_of(rows["label"])
    found = compared(rows, size, steps)
    scores, (left, right) = found.scores.copy(), found.judges
    if len(scores) < 2:
        raise OnestepError(f"nothing to draw: judges {left} and {right} have fewer than two models in common")
    contradicted = set(found.pairs["first"]) | set(found.pairs["second"])
    ranks = scores[[left, right]].rank(method="first")
    figure, axes = blank(wide=5.2, high=max(2.6, 0.9 + 0.27 * len(scores)))
    for name, ours, theirs in zip(scores["name"], ranks[left], ranks[right], strict=True):
        hot = name in contradicted
        look = looks.get(name, ("0.3", "o"))
        style = {"color": look[0] if hot else _GREY, "linewidth": 1.8 if hot else 1.1, "zorder": 3 if hot else 2}
        axes.plot([0, 1], [ours, theirs], marker=look[1], markersize=5, **style)
    axes.set(xlim=(-0.04, 1.04), ylim=(len(scores) + 0.6, 0.4), yticks=[])
    axes.set_xticks([0, 1], [left, right], fontsize=9, color="0.15")
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", length=0, pad=4)
    axes.grid(visible=False)
    sns.despine(ax=axes, left=True, bottom=True)
    for side, judge in ((0, left), (1, right)):
        column = [(ranks[judge][i], name, scores[judge][i]) for i, name in scores["name"].items()]
        name_column(axes, side, column, contradicted)
    words = (
        "Pairs of methods that are ordered differently by differences larger than their 95 % intervals before both "
        f"judges: {len(found.pairs)}, coloured."
        if len(found.pairs)
        else "No pair of methods is ordered differently by differences larger than their 95 % intervals before both."
    )
    place = f"{_place(rows.assign(**scores.iloc[0][['size', 'steps']]))}, {rows['split'].iloc[0]} split"
    caption(axes, f"{place}; best on top, mean FD beside it. Kendall's tau {found.tau:.2f}. {words}", down=10)
    return figure


def compared(rows: pd.DataFrame, size: str | None = None, steps: int | None = None) -> Disagreement:
    """The first two judges' disagreement at one size and number of steps (see `at_one_place`).

    Raises OnestepError when there are not two judges.
    """
    own = {key[2]: judged for key, judged in by_judge(rows)}
    names = sorted(own, key=judge_order)[:2]
    if len(names) < 2:
        raise OnestepError("nothing to draw: the scores are of one judge")
    return rank_disagreement({name: at_one_place(own[name], size, steps) for name in names})[0]


def judge_order(features: str) -> tuple[bool, str]:
    """Sort key of judges: those that know classes first, then pixels and random features."""
    return features.startswith(("pixels", "random")), features


@styled
def copying(
    rows: pd.DataFrame, *, size: str | None = None, steps: int | None = None, looks: Looks | None = None
) -> Figure:
    """Nearest-neighbour ratio of each method: 1 is as new as held-out images, 0 a copy of the training set.

    rows: by one judge; those of split test are drawn. size, steps: as `at_one_place`, of teachers the best steps.
    Raises OnestepError when no row has the ratio, or for rows of several judges.
    """
    rows = results(rows)
    looks = looks or looks_of(rows["label"])
    rows = rows[rows["nn_ratio"].notna()]
    if rows.empty:
        raise OnestepError("nothing to draw: no score row has a nearest-neighbour ratio")
    _one_judge(rows)
    students = rows[~_of_teachers(rows)]
    chosen = at_one_place(students if len(students) else rows, size, steps)
    chosen = pd.concat([chosen, _best_teachers(rows, chosen)])
    keys = ["label", "steps", "teacher_seed", "train_seed"]
    runs = chosen.groupby(keys, dropna=False)["nn_ratio"].mean().reset_index()
    names = runs.groupby(["label", "steps"])["nn_ratio"].agg(["mean", "size", interval]).sort_values("mean")
    figure, axes = blank(wide=6.4, high=max(2.2, 0.8 + 0.27 * len(names)))
    for i, ((label, _), line) in enumerate(names.iterrows()):
        low, high = line["interval"]
        if np.isfinite(low):
            axes.plot([low, high], [i, i], color=looks[label][0], linewidth=1.1)
        axes.plot(line["mean"], i, color=looks[label][0], marker=looks[label][1], markersize=6, linestyle="none")
    axes.axvline(1, color=MUTED, linewidth=1)
    axes.axvline(COPY, color=MUTED, linewidth=1, linestyle=":")
    reach = max([1.1, *names["mean"], *(high for _, high in names["interval"] if np.isfinite(high))])
    axes.set_xlim(0, min(1.05 * reach, max(2, 1.05 * names["mean"].max())))
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.set_yticks(range(len(names)), [f"{label}, {steps} step{'s' * (steps > 1)}" for label, steps in names.index])
    axes.tick_params(axis="y", labelcolor="0.15")
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("nearest-neighbour ratio: 0 copies, 1 as new as held-out images")
    caption(
        axes,
        f"{rows['dataset'].iloc[0]}, {chosen['size'].iloc[0]}, {rows['features'].iloc[0]} features. Distance of a "
        "sample to the nearest training image over that to the nearest held-out one, median, over the same of held-out "
        "images. "
        f"Left of the dotted line ({COPY:g}) a method is called copying. {_runs_in_words('Lines', names['size'])}",
    )
    return figure


def _runs_in_words(drawn: str, runs: pd.Series) -> str:
    """What the bars of a figure are; of single runs there are none."""
    low, high = int(runs.min()), int(runs.max())
    if high < 2:
        return "Single training runs: no intervals."
    return f"{drawn}: 95 % t intervals over training runs (n = {low if low == high else f'{low} to {high}'})."


def _place(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    steps = int(first["steps"])
    return f"{first['dataset']}, {first['size']}, {steps} step{'s' * (steps > 1)}"


def _one_judge(rows: pd.DataFrame) -> None:
    found = sorted(set(rows["dataset"] + ", " + rows["features"]))
    if len(found) > 1:
        raise OnestepError(f"scores of {len(found)} judges or data sets cannot share this figure ({'; '.join(found)})")


def _of_teachers(rows: pd.DataFrame) -> pd.Series:
    return rows["label"].map(is_teacher).astype(bool)


def _best_teachers(rows: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """Of the teachers among rows, of the chosen size, the one with the lowest score at any steps."""
    teachers = rows[_of_teachers(rows) & rows["size"].isin(chosen["size"])]
    teachers = teachers[~teachers["label"].isin(chosen["label"])]
    if teachers.empty:
        return teachers
    means = largest_budget(teachers).groupby(["label", "steps"])["fid"].mean()
    label, steps = means.idxmin()
    return teachers[(teachers["label"] == label) & (teachers["steps"] == steps)]


def _reach(means: pd.DataFrame, gap, split: str) -> list[list[float]] | None:
    """Lengths of the error bar of one point: to its t interval over runs; none of a single run."""
    same = (means["split"] == split) & (means["label"] == gap.label) & (means["size"] == gap.size)
    same &= (means["sampler"] == gap.sampler) & (means["steps"] == gap.steps)
    same &= (means["kimg"] == gap.kimg) | means["kimg"].isna()
    low, high = interval(means.loc[same, "fid"])
    if not np.isfinite(low):
        return None
    middle = getattr(gap, split)
    return [[min(middle - low, 0.9 * middle)], [high - middle]]


def _with_steps(gap) -> str:
    return f"{gap.label}, {gap.steps} steps" if is_teacher(gap.label) else gap.label
