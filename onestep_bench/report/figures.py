"""Rows of one protocol to figures of FID against steps, parameters, training cost and latency."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from onestep_bench.errors import OnestepError
from onestep_bench.report.colours import looks as looks_of
from onestep_bench.report.drawing import (
    MUTED,
    Looks,
    bars,
    blank,
    caption,
    curve,
    distance,
    floor_line,
    log_labels,
    log_numbers,
    log_scale,
    log_ticks,
    near_floor,
    protocol_words,
    spread_words,
    styled,
)
from onestep_bench.report.labels import label_points, name_ends
from onestep_bench.report.recipes import results
from onestep_bench.report.statistics import largest_budget
from onestep_bench.report.tables import brief, drawable, is_teacher, large, millions, one_protocol, size_order

PUBLISHED = Path(__file__).with_name("published.csv")

_CLAIMED = "0.55"
_NAMED = 6  # series that one figure has room to name at their points, between error bars
_CURVES = 12  # curves over steps that the eye can follow; of more, each model has a row of its own
_MANY = 14  # series that one figure can hold; of more, one size of each label is drawn
_APART = (0.0, 0.03, -0.03, 0.06, -0.06)  # by which shares of the axis points at one place step aside
_TOO_BAD = 5  # times the median student, from which on a model is named under a figure instead
COSTS = {
    "passes": "network passes over the whole lineage (thousands of images; a backward pass counts as two)",
    "kimg": "training images over the whole lineage (thousands)",
    "train_macs": "multiply-accumulates of training over the whole lineage",
    "train_seconds": "seconds of training over the whole lineage (median over runs)",
}


@styled
def fid_vs_steps(rows: pd.DataFrame, *, published: bool = True, looks: Looks | None = None) -> Figure:
    """FID against network evaluations, one line per model, a point where it has one number; of budgets the largest.

    Of many sizes one is drawn, as the caption says. published: draw the papers' claims too, where rows and claims speak
    of the same thing (Inception features and the same data set). looks: `colours.looks` of a larger set of labels, so
    that colours agree between figures.
    Raises OnestepError for no rows, or rows of more than one protocol.
    """
    rows, looks = _ready(rows, looks)
    lines = largest_budget(drawable(rows))
    if lines.empty:
        raise OnestepError("nothing to draw: no score is a positive number")
    lines, words = _one_size(lines)
    claims = claims_beside(rows) if published else _no_claims()
    if lines.groupby(["label", "size", "kimg"], dropna=False).ngroups > _CURVES:
        return _steps_in_rows(rows, lines, claims, words, looks)
    figure, axes = blank(high=5.4 if len(claims) else 4.6)
    curves = [own.sort_values("nfe") for _, own in lines.groupby(["label", "size", "kimg"], dropna=False)]
    # The legend reads from top to bottom as the lines begin at the left.
    curves.sort(key=lambda own: -own["fid_mean"].iloc[0])
    dashes, handles = _size_dashes(lines), {}
    span = np.log(max(2, lines["nfe"].max() / lines["nfe"].min()))
    singles = 0
    for own in curves:
        label, size = own[["label", "size"]].iloc[0]
        shift = np.exp(span * _APART[singles % len(_APART)]) if len(own) == 1 else 1.0
        singles += len(own) == 1
        handles[_name(lines, label, size)] = curve(axes, own, own["nfe"] * shift, looks[label], linestyle=dashes[size])
    if len(claims):
        handles["published"] = axes.plot(claims["nfe"], claims["fid"], **_claim_look())[0]
    log_scale(axes, [*lines["fid_mean"], *claims["fid"], *near_floor(rows, lines["fid_mean"])])
    log_ticks(axes, {*lines["steps"], lines["nfe"].max(), *claims["nfe"]})
    axes.set_xlabel("network evaluations (NFE)")
    _at_steps(axes, rows, None)
    _legend(axes, handles)
    floor = floor_line(axes, rows)
    several = claims[claims["nfe"] > 1]
    points = [(*claim, _CLAIMED, 7) for claim in several[["nfe", "fid", "name"]].itertuples(index=False)]
    label_points(axes, points, taken=floor)
    aside = " Points of one number of evaluations stand a little apart." if singles > 1 else ""
    more = " One-step ones are named in the plot against parameters." if len(claims) else ""
    _caption(axes, rows, lines, words + aside, claims, more)
    return figure


def _steps_in_rows(rows, lines: pd.DataFrame, claims: pd.DataFrame, words: str, looks: Looks) -> Figure:
    """A row a model, the best on top, and on it a point a number of evaluations, the darker the more of them."""
    groups = [own.sort_values("nfe") for _, own in lines.groupby(["label", "size", "kimg"], dropna=False)]
    groups.sort(key=lambda own: own["fid_mean"].min())
    figure, axes = blank(high=1.2 + 0.24 * len(groups))
    spent = sorted(set(lines["nfe"]))
    shades = mpl.colormaps["viridis_r"](0.1 + 0.9 * np.log(spent) / max(np.log(max(spent)), 1))
    shade = dict(zip(spent, shades, strict=True))
    for place, own in enumerate(groups):
        look = looks[own["label"].iloc[0]]
        axes.plot(own["fid_mean"], [place] * len(own), color=look.colour, linewidth=1, zorder=1)
        ends = np.stack([own["fid_mean"] - bars(own)[0], own["fid_mean"] + bars(own)[1]])
        # Below the row's line, which would hide them.
        axes.hlines([place + 0.28] * len(own), *ends, colors=[shade[nfe] for nfe in own["nfe"]], linewidth=1.2)
        style = {"s": 34, "edgecolors": "white", "linewidths": 0.6, "zorder": 3}
        axes.scatter(own["fid_mean"], [place] * len(own), c=[shade[nfe] for nfe in own["nfe"]], **style)
    axes.set_xscale("log")
    values = [*lines["fid_mean"], *near_floor(rows, lines["fid_mean"])]
    axes.set_xlim(min(values) / 1.25, max(values) * 1.15)
    log_labels(axes.xaxis, *axes.get_xlim())
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_yticks(range(len(groups)), [_name(lines, *own[["label", "size"]].iloc[0]) for own in groups])
    for tick, own in zip(axes.get_yticklabels(), groups, strict=True):
        tick.set_color(looks[own["label"].iloc[0]].colour)
    axes.set_xlabel(f"{distance(rows)}, lower is better")
    if (floor := rows["floor"].mean()) > 0:
        axes.axvline(floor, color=MUTED, linewidth=1, linestyle=":", zorder=1)
        words += " Dotted: real images." if values[-1] == floor else ""
    dots = {f"{brief(nfe)} NFE": axes.scatter([], [], color=[shade[nfe]], s=34) for nfe in spent}
    _legend(axes, dots)
    if len(claims):
        words += " Published figures are in the plot against parameters."
    _caption(axes, rows, lines, f"{words} Rows by their lowest mean.", _no_claims())
    return figure


@styled
def fid_vs_params(rows: pd.DataFrame, *, steps: int = 1, published: bool = True, looks: Looks | None = None) -> Figure:
    """FID against network size at one number of steps, one marker per (label, size), and the students' Pareto front.

    Lines join the sizes of one label and budget; of several budgets the largest is drawn. Dashed: the best teacher.
    Raises OnestepError when no row has that number of steps, or for rows of more than one protocol.
    """
    rows, looks = _ready(rows, looks)
    every, lines, high = _at(rows, steps)
    lines = largest_budget(lines)
    claims = claims_beside(rows) if published else _no_claims()
    claims = claims[claims["nfe"] == steps]
    figure, axes = blank(high=5.6 if len(claims) else 4.6)
    for (label, _), own in lines.groupby(["label", "kimg"], dropna=False):
        curve(axes, own.sort_values("params"), "params", looks[label], linewidth=0.9, alpha=0.9)
    if len(claims):
        axes.plot(claims["params"], claims["fid"], **_claim_look())
    front = _pareto(lines[~lines["label"].map(is_teacher)])
    if len(front) > 1:
        axes.step(front["params"], front["fid_mean"], where="post", color="0.85", linewidth=4, zorder=1)
    log_scale(
        axes,
        [*lines["fid_mean"], *claims["fid"], *near_floor(rows, lines["fid_mean"]), _best_of_teachers(every, steps)],
    )
    log_ticks(axes, {*lines["params"], *claims["params"]}, text=millions)
    axes.margins(x=0.08)
    axes.set_xlabel("parameters")
    _at_steps(axes, rows, steps)
    teacher, target = _teacher_line(axes, every, steps), floor_line(axes, rows)
    points = [(*claim, _CLAIMED, 7) for claim in claims[["params", "fid", "name"]].itertuples(index=False)]
    # A name stands at the label's largest size: right of the plot, if that is the largest of all.
    last = lines.sort_values("params").groupby("label").tail(1)
    right = last["params"] == lines["params"].max()
    points += [(line.params, line.fid_mean, line.label, looks[line.label][0], 8) for line in last[~right].itertuples()]
    label_points(axes, points, taken=target)
    ends = last[right].itertuples()
    name_ends(axes, [(line.params, line.fid_mean, line.label, looks[line.label][0]) for line in ends])
    names = ", ".join(f"{line.label} {line.size}" for line in front.itertuples())
    words = f"Grey band: Pareto front of the students ({names})." if len(front) > 1 else ""
    _caption(axes, rows, lines, f"{words} {teacher} {high}".strip(), claims)
    return figure


@styled
def fid_vs_cost(rows: pd.DataFrame, *, steps: int = 1, axis: str | None = None, looks: Looks | None = None) -> Figure:
    """FID at one number of steps against training cost over a model's whole lineage; budgets of one model are joined.

    axis: passes, kimg, train_macs or train_seconds; by default passes, or kimg where rows do not know them.
    Raises OnestepError for another axis or one of which the rows know nothing, when no row has that number of steps,
    or for rows of more than one protocol.
    """
    if axis not in (None, *COSTS):
        raise OnestepError(f"no cost is called {axis}; choose one of {', '.join(COSTS)}")
    rows, looks = _ready(rows, looks)
    axis = axis or ("passes" if rows["passes"].notna().any() else "kimg")
    every, lines, high = _at(rows, steps)
    lines = lines[lines[axis] > 0]
    if lines.empty:
        raise OnestepError(f"nothing to draw: no score row says its {axis}; choose another axis")
    text = large if axis == "train_macs" else brief
    return _against(rows, every, lines, axis, COSTS[axis], steps, looks, text, high)


@styled
def fid_vs_latency(rows: pd.DataFrame, *, looks: Looks | None = None) -> Figure:
    """FID against the measured time to draw one image at batch 1; numbers of steps of one model are joined.

    Raises OnestepError where no latency was measured, or for rows of more than one protocol.
    """
    rows, looks = _ready(rows, looks)
    every = drawable(rows)
    lines = largest_budget(every[every["latency_ms"] > 0])
    if lines.empty:
        raise OnestepError("nothing to draw: no score row says its latency")
    return _against(
        rows, every, lines, "latency_ms", "milliseconds to draw one image (batch 1)", None, looks, brief, ""
    )


def _against(rows, every, lines, x: str, words: str, steps: int | None, looks: Looks, text, more: str) -> Figure:
    """Curves over x, one per (label, size), each named once: at its end, or of all steps in a legend."""
    lines, sizes = _one_size(lines)
    figure, axes = blank()
    # Of budgets in their order, of steps in theirs: a measured time may put two of them the wrong way round.
    curves = [own.sort_values("steps" if steps is None else x) for _, own in lines.groupby(["label", "size"])]
    curves.sort(key=lambda own: -own["fid_mean"].iloc[0 if steps is None else -1])
    drawn = [curve(axes, own, x, looks[own["label"].iloc[0]], linewidth=0.9, alpha=0.9) for own in curves]
    # A line of budgets or steps may come from above.
    shown = lines["fid_mean"].clip(upper=_cap(lines[lines["steps"] == lines["steps"].min()]))
    log_scale(axes, [*shown, *near_floor(rows, shown), _best_of_teachers(every, steps)])
    log_numbers(axes, lines[x], text=text)
    axes.margins(x=0.12)
    axes.set_xlabel(words)
    _at_steps(axes, rows, steps)
    teacher, target = _teacher_line(axes, every, steps), floor_line(axes, rows)
    names = [_name(lines, *own[["label", "size"]].iloc[0]) for own in curves]
    # Models of one step take about as long, and of many models no name finds room between the others.
    if steps is None or len(curves) > _NAMED:
        _legend(axes, dict(zip(names, drawn, strict=True)))
    else:
        ends = [(own.iloc[-1], name) for own, name in zip(curves, names, strict=True)]
        points = [(end[x], end["fid_mean"], name, looks[end["label"]][0], 8) for end, name in ends]
        label_points(axes, points, taken=target)
    _caption(axes, rows, lines, f"{sizes} {teacher} {more}".strip(), _no_claims())
    return figure


def _ready(rows: pd.DataFrame, looks: Looks | None) -> tuple[pd.DataFrame, Looks]:
    rows = results(rows)
    one_protocol(rows)
    return rows, looks or looks_of(rows["label"])


def _at(rows: pd.DataFrame, steps: int) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """All lines, those at a number of steps that are to be drawn, and words for those that are too bad to be.

    A teacher in one step, or a student that failed, may score fifty times worse than the others, whose differences
    would drown in that.
    """
    every = drawable(rows)
    lines = every[every["steps"] == steps]
    if lines.empty:
        raise OnestepError(f"nothing to draw: no scores at {steps} steps, only at {sorted(set(every['steps']))}")
    above = lines["fid_mean"].groupby(lines["label"]).transform("min") > _cap(lines)
    found = lines[above].groupby("label")["fid_mean"].agg(["min", "max"])
    ranges = [
        f"{name} {brief(low)}" + (f" to {brief(high)}" if high > low else "") for name, low, high in found.itertuples()
    ]
    return every, lines[~above], f"Above the figure: {', '.join(ranges)}." if ranges else ""


def _cap(lines: pd.DataFrame) -> float:
    """The score from which on a model is too bad to be drawn beside the others."""
    students = lines.loc[~lines["label"].map(is_teacher), "fid_mean"]
    return _TOO_BAD * students.median() if len(students) else np.inf


def _at_steps(axes: Axes, rows: pd.DataFrame, steps: int | None) -> None:
    where = f"at {steps} step{'s' * (steps > 1)}, " if steps else ""
    axes.set_ylabel(f"{distance(rows)}\n{where}lower is better")


def _legend(axes: Axes, handles: dict[str, object]) -> None:
    place = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.015)}
    axes.legend(handles.values(), handles.keys(), **place, frameon=False, handlelength=2.6)


def _one_size(lines: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Of many series one size of each label, that of most of them, and words that say so."""
    if len(lines[["label", "size"]].drop_duplicates()) <= _MANY:
        return lines, ""
    often = lines.groupby("size")["label"].size()
    common = max(often.index, key=lambda size: (often[size], size_order(size)))
    other = {
        label: common if common in sizes else max(sizes, key=size_order)
        for label, sizes in lines.groupby("label")["size"].agg(set).items()
    }
    words = f"Size {common}" + ("; models without it at their largest." if set(other.values()) - {common} else ".")
    return lines[lines["size"] == lines["label"].map(other)], words


def _name(lines: pd.DataFrame, label: str, size: str) -> str:
    """How a figure calls a model: with its size only where sizes differ."""
    return f"{label}, {size}" if lines["size"].nunique() > 1 else label


def _size_dashes(lines: pd.DataFrame) -> dict[str, object]:
    """A line style per size, the largest one solid."""
    styles = ["-", (0, (4, 1.6)), (0, (1.2, 1.4)), (0, (5, 1.5, 1.2, 1.5))]
    sizes = sorted(set(lines["size"]), key=size_order, reverse=True)
    return {size: styles[i % len(styles)] for i, size in enumerate(sizes)}


def _pareto(lines: pd.DataFrame) -> pd.DataFrame:
    """Lines that no other one equals with as few parameters or fewer."""
    lines = lines.sort_values(["params", "fid_mean"])
    return lines[lines["fid_mean"] < lines["fid_mean"].cummin().shift(fill_value=np.inf)]


def _best_teacher(every: pd.DataFrame, steps: int | None) -> pd.DataFrame:
    if steps is None:
        return every[:0]
    return every[every["label"].map(is_teacher) & (every["steps"] > steps)].nsmallest(1, "fid_mean")


def _best_of_teachers(every: pd.DataFrame, steps: int | None) -> float:
    return _best_teacher(every, steps)["fid_mean"].min()


def _teacher_line(axes: Axes, every: pd.DataFrame, steps: int | None) -> str:
    """A dashed line at the best teacher of more steps, if there is one; words for the caption."""
    words = ""
    for best in _best_teacher(every, steps).itertuples():
        axes.axhline(best.fid_mean, color=MUTED, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
        name = f"{best.label}, {best.size}, {best.steps} steps"
        words = f"Dashed: the teacher of the lowest mean ({name}: {brief(best.fid_mean)})."
    return words


def _caption(axes: Axes, rows, lines, words: str, claims: pd.DataFrame, more: str = "") -> None:
    words = " ".join(words.split())
    parts = [f"{rows['dataset'].iloc[0]}.", words, spread_words(lines)]
    if len(claims):
        parts.append("Hollow grey: published figures, as their papers report them, not measured here." + more)
    caption(axes, " ".join(filter(None, parts)), protocol_words(rows))


def claims_beside(rows: pd.DataFrame) -> pd.DataFrame:
    """Published figures that the rows may be set beside: same data set, Inception features, training images.

    The papers' FIDs are against the training images (or against all of those there are).
    """
    if not rows["features"].iloc[0].startswith("inception") or rows["split"].iloc[0] == "test":
        return _no_claims()
    claims = pd.read_csv(PUBLISHED)
    claims = claims[claims["dataset"] == rows["dataset"].iloc[0]]
    return pd.DataFrame(
        {"name": claims["method"], "params": claims["params_m"] * 1e6, "nfe": claims["nfe"], "fid": claims["fid"]}
    )


def _no_claims() -> pd.DataFrame:
    return pd.DataFrame(columns=["name", "params", "nfe", "fid"])


def _claim_look() -> dict:
    return {
        "linestyle": "none",
        "marker": "o",
        "markersize": 4,
        "markerfacecolor": "none",
        "color": _CLAIMED,
        "zorder": 2,
    }
