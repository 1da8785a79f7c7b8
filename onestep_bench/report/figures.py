"""Rows of one protocol to figures; rows of several protocols are refused."""

import textwrap
from collections.abc import Iterable
from functools import wraps
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from onestep_bench.errors import OnestepError
from onestep_bench.report.labels import HALO, label_points
from onestep_bench.report.tables import brief, drawable, is_teacher, millions, one_protocol, size_order

PUBLISHED = Path(__file__).with_name("published.csv")

_MARKERS = "oDs^vPX*"
_INK, MUTED, _CLAIMED = "0.15", "0.40", "0.55"
STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same glyphs, and bytes, on every machine
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "0.7",
    "grid.color": "0.92",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.fontsize": 8,
    "figure.dpi": 160,
    "svg.hashsalt": "onestep_bench",  # otherwise element ids are random
}


def styled(draw):
    """Decorate a function that draws: it draws in the style of all figures of a report."""

    @wraps(draw)
    def in_style(*args, **kwargs) -> Figure:
        with sns.axes_style("whitegrid"), mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return in_style


def palette(labels: Iterable[str]) -> dict[str, tuple]:
    """One (colour, marker) per label: teachers in greys, students in seaborn's colour-blind palette."""
    labels = sorted(set(labels))
    teachers = [label for label in labels if is_teacher(label)]
    students = [label for label in labels if not is_teacher(label)]
    greys = [str(level) for level in np.linspace(0.1, 0.5, max(len(teachers), 2)).round(2)]
    colours = sns.color_palette("colorblind")
    colours.pop(7)  # its grey: teachers are grey here
    looks = {label: (greys[i], _MARKERS[i % len(_MARKERS)]) for i, label in enumerate(teachers)}
    return looks | {label: (colours[i % len(colours)], _MARKERS[i % len(_MARKERS)]) for i, label in enumerate(students)}


@styled
def fid_vs_steps(rows: pd.DataFrame, *, published: bool = True, looks: dict[str, tuple] | None = None) -> Figure:
    """FID against network evaluations, one line per model; of several budgets the largest.

    published: draw the papers' claims too, where rows and claims speak of the same thing (Inception features and the
    same data set). looks: `palette(labels)` of a larger set of rows, so that colours agree between figures.
    Raises OnestepError for no rows, or rows of more than one protocol.
    """
    one_protocol(rows)
    looks = looks or palette(rows["label"])
    lines = _largest_budgets(drawable(rows))
    if lines.empty:
        raise OnestepError("nothing to draw: no score is a positive number")
    claims = _claims(rows) if published else _no_claims()
    figure, axes = _axes(roomy=len(claims) > 0)
    dashes = _size_dashes(lines)
    # The legend reads from top to bottom as the lines begin at the left.
    curves = [curve.sort_values("nfe") for _, curve in lines.groupby(["label", "size", "kimg"], dropna=False)]
    for curve in sorted(curves, key=lambda curve: -curve["fid_mean"].iloc[0]):
        label, size, kimg = curve[["label", "size", "kimg"]].iloc[0]
        name = _name(lines, label, size, kimg)
        _curve(axes, curve, "nfe", looks[label], label=name, linestyle=dashes[size])
    if len(claims):
        axes.plot(claims["nfe"], claims["fid"], label="published", **_claim_look())
    _log_ticks(axes, sorted({*lines["steps"], lines["nfe"].max(), *claims["nfe"]}))
    axes.set_xlabel("network evaluations (NFE)")
    axes.set_ylabel(f"{_fid_label(rows)}, lower is better")
    handles, names = axes.get_legend_handles_labels()
    handles = [handle[0] if isinstance(handle, ErrorbarContainer) else handle for handle in handles]
    axes.legend(handles, names, loc="upper left", bbox_to_anchor=(1.01, 1.015), frameon=False, handlelength=2.6)
    several = claims[claims["nfe"] > 1]
    label_points(axes, [(*claim, _CLAIMED, 6) for claim in several[["nfe", "fid", "name"]].itertuples(index=False)])
    _caption(
        axes, rows, lines, claims, " One-step ones are named in the plot against parameters." if len(claims) else ""
    )
    return figure


@styled
def fid_vs_params(
    rows: pd.DataFrame, *, steps: int = 1, published: bool = True, looks: dict[str, tuple] | None = None
) -> Figure:
    """FID against network size at one number of steps, one marker per (label, size); dashed: the best teacher.

    Of several budgets the largest is drawn.
    Raises OnestepError when no row has that number of steps, or for rows of more than one protocol.
    """
    one_protocol(rows)
    claims = _claims(rows) if published else _no_claims()
    claims = claims[claims["nfe"] == steps]
    return _against(rows, "params", steps, claims, looks or palette(rows["label"]))


@styled
def fid_vs_cost(rows: pd.DataFrame, *, steps: int = 1, looks: dict[str, tuple] | None = None) -> Figure:
    """FID at one number of steps against training cost: thousands of images over the model's whole lineage.

    Raises OnestepError when no row has that number of steps, or for rows of more than one protocol.
    """
    one_protocol(rows)
    return _against(rows, "kimg", steps, _no_claims(), looks or palette(rows["label"]))


def _against(rows: pd.DataFrame, x: str, steps: int, claims: pd.DataFrame, looks: dict[str, tuple]) -> Figure:
    every = drawable(rows)
    lines = every[every["steps"] == steps]
    lines = _largest_budgets(lines) if x == "params" else lines
    if lines.empty:
        raise OnestepError(f"nothing to draw: no scores at {steps} steps, only at {sorted(set(every['steps']))}")
    figure, axes = _axes(roomy=len(claims) > 0)
    fixed = "size" if x == "kimg" else "kimg"  # what stays the same along a connecting line
    for (label, _), curve in lines.groupby(["label", fixed], dropna=False):
        _curve(axes, curve.sort_values(x), x, looks[label], linewidth=0.8, alpha=0.9)
    # A curve over budgets is named once, at its end.
    points = [
        (
            getattr(line, x),
            line.fid_mean,
            line.label if x == "params" else f"{line.label}, {line.size}",
            looks[line.label][0],
            8,
        )
        for line in _largest_budgets(lines).itertuples(index=False)
    ]
    if len(claims):
        axes.plot(claims[x], claims["fid"], **_claim_look())
        points += [(*claim, _CLAIMED, 6) for claim in claims[[x, "fid", "name"]].itertuples(index=False)]
    teachers = every[every["label"].map(is_teacher) & (every["steps"] > steps)]
    target = [_teacher_line(axes, teachers.loc[teachers["fid_mean"].idxmin()])] if len(teachers) else []
    axes.margins(x=0.16, y=0.1)
    if x == "params":
        _log_ticks(axes, sorted({*lines[x], *claims["params"]}), text=millions)
        axes.set_xlabel("parameters")
    else:
        _log_ticks(axes, sorted(set(lines[x])))
        axes.set_xlabel("training images over the whole lineage (thousands)")
    axes.set_ylabel(f"{_fid_label(rows)}\nat {steps} step{'s' * (steps > 1)}, lower is better")
    label_points(axes, points, taken=target)
    _caption(axes, rows, lines, claims)
    return figure


def _axes(*, roomy: bool) -> tuple[Figure, Axes]:
    # Through pyplot, because only its figures show themselves in a notebook; closed, so that they show once.
    figure, axes = plt.subplots(figsize=(8.0, 5.6) if roomy else (6.4, 4.2))
    plt.close(figure)
    sns.despine(ax=axes)
    return figure, axes


def _curve(axes: Axes, curve: pd.DataFrame, x: str, look: tuple, **options) -> None:
    """One series with its error bars, which stop above zero: the axis is logarithmic."""
    colour, marker = look
    spread = curve["fid_std"].fillna(0)
    below = np.minimum(spread, 0.9 * curve["fid_mean"])
    axes.errorbar(
        curve[x],
        curve["fid_mean"],
        yerr=[below, spread],
        color=colour,
        marker=marker,
        markersize=5.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        elinewidth=0.9,
        capsize=2,
        **{"linewidth": 1.4, **options},
    )


def _teacher_line(axes: Axes, best: pd.Series) -> Text:
    axes.axhline(best["fid_mean"], color=MUTED, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    return axes.annotate(
        f"{best['label']}, {best['size']}, {best['steps']} steps: {brief(best['fid_mean'])}",
        (0, best["fid_mean"]),
        xycoords=("axes fraction", "data"),
        xytext=(4, 3),
        textcoords="offset points",
        color=MUTED,
        fontsize=7.5,
        path_effects=HALO,
    )


def _size_dashes(lines: pd.DataFrame) -> dict[str, object]:
    """A line style per size, the largest one solid."""
    styles = ["-", (0, (4, 1.6)), (0, (1.2, 1.4)), (0, (5, 1.5, 1.2, 1.5))]
    sizes = sorted(set(lines["size"]), key=size_order, reverse=True)
    return {size: styles[i % len(styles)] for i, size in enumerate(sizes)}


def _largest_budgets(lines: pd.DataFrame) -> pd.DataFrame:
    """Of the lines that differ in their budget alone, the one with the largest."""
    largest = lines.groupby(["label", "size", "steps", "sampler"])["kimg"].transform("max")
    return lines[lines["kimg"].isna() | (lines["kimg"] == largest)]


def _name(lines: pd.DataFrame, label: str, size: str, kimg: float) -> str:
    """How a figure calls a model: with its budget only where one model has several."""
    budgets = lines[(lines["label"] == label) & (lines["size"] == size)]["kimg"].nunique()
    return f"{label}, {size}" + (f", {brief(kimg)} kimg" if budgets > 1 else "")


def _log_ticks(axes: Axes, values: list[float], text=brief) -> None:
    """Logarithmic axes whose x ticks are the values that occur (of two that would touch, the first)."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    span = np.log(max(values) / min(values)) or 1.0
    ticks: list[float] = []
    for value in values:
        if not ticks or np.log(value / ticks[-1]) > 0.055 * span:
            ticks.append(value)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high / low < 3000 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _fid_label(rows: pd.DataFrame) -> str:
    return f"Fréchet distance ({rows['features'].iloc[0]} features)"


def _caption(axes: Axes, rows: pd.DataFrame, lines: pd.DataFrame, claims: pd.DataFrame, more: str = "") -> None:
    """What was measured and how, small and under the plot."""
    fewest, most = lines["count"].min(), lines["count"].max()
    runs = f"n = {most}" if fewest == most else f"n = {fewest} to {most}"
    text = f"{rows['dataset'].iloc[0]}. Error bars: standard deviation over sampling and training seeds ({runs})."
    if len(claims):
        text += f" Hollow grey: published figures, as their papers report them, not measured here.{more}"
    wide = int(axes.figure.get_figwidth() * 19)
    notes = [*textwrap.wrap(text, wide), *textwrap.wrap(f"Protocol: {rows['protocol'].iloc[0]}", wide)]
    axes.annotate(
        "\n".join(notes),
        (0, 0),
        xycoords="axes fraction",
        xytext=(-32, -38),
        textcoords="offset points",
        fontsize=6.5,
        color=MUTED,
        va="top",
        linespacing=1.4,
        annotation_clip=False,
    )


def _claims(rows: pd.DataFrame) -> pd.DataFrame:
    """Published figures that the rows may be set beside: same data set, Inception features."""
    if not rows["features"].iloc[0].startswith("inception"):
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
