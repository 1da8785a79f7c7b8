"""What all figures of a report share: style, colours, axes, error bars, the floor, captions."""

import textwrap
from collections.abc import Iterable
from functools import wraps

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from onestep_bench.report.colours import Look
from onestep_bench.report.labels import BACK
from onestep_bench.report.tables import brief

FAR_BELOW = 3  # times: a floor farther below the best score would take the axis from the scores
INK, MUTED = "0.15", "0.40"
# A figure is at most 9 inches wide with its names: on a page 900 pixels wide its smallest letters have 10.
STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same glyphs, and bytes, on every machine
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": "0.7",
    "grid.color": "0.92",
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.fontsize": 8.5,
    "figure.dpi": 160,
    "svg.hashsalt": "onestep_bench",  # otherwise element ids are random
}
Looks = dict[str, Look]


def styled(draw):
    """Decorate a function that draws: it draws in the style of all figures of a report."""

    @wraps(draw)
    def in_style(*args, **kwargs) -> Figure:
        with sns.axes_style("whitegrid"), mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return in_style


def blank(*, wide: float = 7.2, high: float = 4.6) -> tuple[Figure, Axes]:
    """A figure of so many inches with one pair of axes."""
    # Through pyplot, because only its figures show themselves in a notebook; closed, so that they show once.
    figure, axes = plt.subplots(figsize=(wide, high))
    plt.close(figure)
    sns.despine(ax=axes)
    return figure, axes


def bars(lines: pd.DataFrame) -> np.ndarray:
    """Lengths (2, n) of error bars below and above fid_mean: to the t interval over runs, or what stands for it.

    Of a single run it is the standard deviation over its sampling seeds. They stop above zero: axes are logarithmic.
    """
    single = lines["seed_std"].fillna(0)
    below = (lines["fid_mean"] - lines["fid_low"]).fillna(single)
    above = (lines["fid_high"] - lines["fid_mean"]).fillna(single)
    return np.stack([np.minimum(below, 0.9 * lines["fid_mean"]), above])


def curve(axes: Axes, lines: pd.DataFrame, x, look: tuple, **options):
    """One series with its error bars; those of single runs are thin and have no caps. Returns its line."""
    colour, marker = look
    xs, lengths = (lines[x] if isinstance(x, str) else x), bars(lines)
    whole = (lines["runs"] > 1).to_numpy()
    for chosen, width, cap in ((whole, 1.1, 2.2), (~whole, 0.5, 0)):
        if chosen.any():
            where = np.asarray(xs, dtype=float)[chosen], lines["fid_mean"].to_numpy()[chosen]
            axes.errorbar(*where, yerr=lengths[:, chosen], fmt="none", ecolor=colour, elinewidth=width, capsize=cap)
    options |= {"linestyle": "none"} if len(lines) == 1 else {}
    drawn = {"markersize": 5.5, "markeredgecolor": "white", "markeredgewidth": 0.6, "linewidth": 1.4, **options}
    return axes.plot(xs, lines["fid_mean"], color=colour, marker=marker, **drawn)[0]


def floor_line(axes: Axes, rows: pd.DataFrame) -> list:
    """A dotted line at what real images score, unless that is far below: captions tell it too. The texts drawn."""
    floor = rows["floor"].mean()
    if not floor > 0 or floor < axes.get_ylim()[0]:
        return []
    axes.axhline(floor, color=MUTED, linewidth=1, linestyle=":", zorder=1)
    words = axes.annotate(
        f"real against real: {brief(floor)}",
        (0, floor),
        xycoords=("axes fraction", "data"),
        xytext=(4, -3),
        textcoords="offset points",
        va="top",
        color=MUTED,
        fontsize=8.5,
        bbox=BACK,
    )
    return [words]


def near_floor(rows: pd.DataFrame, values: Iterable[float]) -> list[float]:
    """The floor, if it is so near to the least of these values that an axis should reach down to it; else nothing."""
    floor = rows["floor"].mean()
    return [floor] if floor > min(values) / FAR_BELOW else []


def log_scale(axes: Axes, values: Iterable[float]) -> None:
    """A logarithmic y axis that holds these values, whatever error bars do."""
    values = [value for value in values if np.isfinite(value) and value > 0]
    low, high = min(values), max(values)
    pad = max((high / low) ** 0.09, 1.12)
    axes.set_yscale("log")
    axes.set_ylim(low / pad, high * pad)
    log_labels(axes.yaxis, low / pad, high * pad)


def log_labels(axis, low: float, high: float) -> None:
    """Round numbers on a logarithmic axis, as many as its range has room for."""
    choices = [(4, tuple(range(1, 10))), (30, (1, 2, 3, 5)), (3000, (1, 2, 5))]
    subs = next((subs for ratio, subs in choices if high / low < ratio), (1,))
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def log_ticks(axes: Axes, values: Iterable[float], text=brief) -> None:
    """A logarithmic x axis whose ticks are the values that occur; of those whose numbers would touch, the first."""
    values = sorted(set(values))
    axes.set_xscale("log")
    # Names of ticks are as wide as their letters, about 0.65 of their height each, and stand half a letter apart.
    letter = 0.65 * STYLE["xtick.labelsize"] / (72 * axes.get_window_extent().width / axes.figure.dpi)
    span = 1.25 * np.log(max(values) / min(values)) or 1.0  # with the margins
    ticks: list[float] = []
    for value in values:
        room = letter * (1.5 + (len(text(value)) + len(text(ticks[-1]))) / 2) if ticks else 0
        if not ticks or np.log(value / ticks[-1]) / span > room:
            ticks.append(value)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def log_numbers(axes: Axes, values: Iterable[float], text=brief) -> None:
    """A logarithmic x axis with round numbers, for values of which each occurs once."""
    values = [value for value in values if value > 0]
    low, high = min(values), max(values)
    axes.set_xscale("log")
    rounds = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    log = LogLocator(subs=(1, 2, 5)).tick_values(low, high)
    ticks = log if high / low > 6 else rounds
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low / 1.3 <= tick <= 1.3 * high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def score_name(features: str) -> str:
    """What the score of a judge is called: FID is a name for Inception's features alone."""
    return f"FID ({features})" if features.startswith("inception") else f"Fréchet distance ({features} judge)"


def distance(rows: pd.DataFrame) -> str:
    """What the score of rows is a distance between, for an axis."""
    split = {"all": "all images"}.get(rows["split"].iloc[0], f"{rows['split'].iloc[0]} split")
    return score_name(f"{rows['features'].iloc[0]}")[:-1] + f", {split})"


def spread_words(lines: pd.DataFrame) -> str:
    """What the error bars of lines are, and over how many runs and seeds."""
    several, single = lines[lines["runs"] > 1], lines[lines["runs"] == 1]
    words = []
    if len(several):
        words.append(
            f"Error bars: 95 % t intervals over training runs (n = {_range(several['runs'])}, each the mean of "
            f"{_range(several['seeds'])} sampling seeds)."
        )
    if len(single):
        words.append(
            f"{'Thin bars' if len(several) else 'Error bars'}: standard deviation over the {_range(single['seeds'])} "
            "sampling seeds of a single training run; no interval for the method."
        )
    return " ".join(words)


def _range(numbers: pd.Series) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    return str(low) if low == high else f"{low} to {high}"


def caption(axes: Axes, *paragraphs: str, down: float = 38) -> None:
    """What was measured and how, small and under the plot."""
    wide = int(axes.figure.get_figwidth() * 14)
    axes.annotate(
        "\n".join(line for words in paragraphs for line in textwrap.wrap(words, wide)),
        (0, 0),
        xycoords="axes fraction",
        xytext=(-32, -down),
        textcoords="offset points",
        fontsize=8.5,
        color=MUTED,
        va="top",
        linespacing=1.4,
        annotation_clip=False,
    )


def protocol_words(rows: pd.DataFrame) -> str:
    """The protocol of rows, and what real images score by it, for a caption."""
    floor = rows["floor"].mean()
    real = f"; real against real: {brief(floor)}" if floor > 0 else ""
    return f"Protocol: {rows['protocol'].iloc[0]}{real}"
