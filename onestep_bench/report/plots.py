"""Pictures for notebooks: image sheets and curves. Figures of whole reports are made by `report`."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from onestep_bench.data.pixels import to_uint8
from onestep_bench.errors import OnestepError
from onestep_bench.report.colours import looks as looks_of
from onestep_bench.store.files import replacing

SIDE = 64  # pixels of an image that a person can make out


def sheet(rows: Mapping[str, Tensor], *, title: str = "", pixels: float = 0.55) -> Figure:
    """A sheet of images, one labelled row each: uint8 or float in [-1, 1], (n, c, h, w). pixels: inches an image."""
    columns = max(len(images) for images in rows.values())
    size = (pixels * columns + 1.6, pixels * len(rows) + 0.35 * bool(title))
    figure, axes = plt.subplots(len(rows), 1, figsize=size, squeeze=False, layout="constrained")
    for axis, (label, images) in zip(axes[:, 0], rows.items(), strict=True):
        images = images if images.dtype == torch.uint8 else to_uint8(images)
        gap = max(1, images.shape[-1] // 16)
        strip = torch.cat(list(F.pad(images, (0, gap), value=255)), dim=-1)[..., :-gap].permute(1, 2, 0).cpu().numpy()
        axis.imshow(strip.squeeze(-1) if strip.shape[-1] == 1 else strip, cmap="gray", vmin=0, vmax=255)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel(label, rotation=0, ha="right", va="center")
        axis.set_anchor("W")
        sns.despine(ax=axis, left=True, bottom=True)
    if title:
        figure.suptitle(title, fontsize="medium")
    plt.close(figure)  # the notebook shows the value of its cell; without this it would show the figure twice
    return figure


def save_grid(images: Tensor, file: Path) -> None:
    """Write images (n, c, h, w), uint8 or float in [-1, 1], as one picture, about as many to a row as rows.

    Small images are enlarged by a whole factor, so that no pixel is invented, to `SIDE` or a little more. Raises
    OnestepError for a file name of no picture format.
    """
    images = images if images.dtype == torch.uint8 else to_uint8(images)
    columns = math.isqrt(len(images) - 1) + 1
    blank = images.new_full((-len(images) % columns, *images.shape[1:]), 255)
    rows = torch.cat([images, blank]).unflatten(0, (-1, columns))
    picture = rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    factor = -(-SIDE // images.shape[-1])
    picture = picture.repeat_interleave(factor, 0).repeat_interleave(factor, 1).cpu().numpy()
    if file.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise OnestepError(f"{file}: a picture is a .png, .jpg or .webp")
    with replacing(file) as temporary:
        Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(temporary)


def curves(
    lines: Mapping[str, tuple[Iterable[float], Iterable[float]]], *, x: str, y: str, log_y: bool = False
) -> Figure:
    """One labelled line per item, (xs, ys), on one pair of axes."""
    figure, axes = _axes()
    for (label, (xs, ys)), colour in zip(lines.items(), _colours(lines), strict=True):
        axes.plot(list(xs), list(ys), label=label, color=colour)
    axes.set(xlabel=x, ylabel=y, yscale="log" if log_y else "linear")
    return _finished(figure, axes)


def over_evaluations(lines: Mapping[str, tuple[Iterable[float], Iterable[float]]], *, y: str) -> Figure:
    """One labelled line per item, (network evaluations a sample, scores), both logarithmic; teachers in greys."""
    figure, axes = _axes()
    looks = looks_of(lines)
    for label, (spent, scores) in lines.items():
        colour, marker = looks[label]
        axes.plot(list(spent), list(scores), f"{marker}-", label=label, color=colour)
    axes.set(xlabel="network evaluations a sample", ylabel=y, yscale="log")
    axes.set_xscale("log", base=2)
    for of_axis in (axes.xaxis.set_major_formatter, axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        of_axis("{x:g}")
    return _finished(figure, axes)


def losses(models: Mapping[str, object], *, log_y: bool = False) -> Figure:
    """Training loss over images seen, of models by label."""
    lines = {
        label: ([row.kimg for row in model.history], [row.loss for row in model.history])
        for label, model in models.items()
    }
    return curves(lines, x="images seen (thousands)", y="training loss", log_y=log_y)


def heatmap(rows: Mapping[str, Iterable[float]], *, columns: list[str], x: str, value: str) -> Figure:
    """Numbers as colours: one labelled row per item, one column per entry of `columns`."""
    figure, axes = plt.subplots(figsize=(0.6 * len(columns) + 3, 0.24 * len(rows) + 1.2))
    table = [list(row) for row in rows.values()]
    sns.heatmap(table, ax=axes, xticklabels=columns, yticklabels=list(rows), cmap="viridis", cbar_kws={"label": value})
    axes.set_xlabel(x)
    figure.tight_layout()
    plt.close(figure)
    return figure


def bars(groups: Mapping[str, Iterable[float]], *, x: str, y: str) -> Figure:
    """Groups of bars over 0, 1, 2, ..., one colour per labelled group."""
    figure, axes = _axes()
    width = 0.8 / len(groups)
    for place, ((label, heights), colour) in enumerate(zip(groups.items(), _colours(groups), strict=True)):
        heights = list(heights)
        axes.bar(
            [k + (place + 0.5) * width - 0.4 for k in range(len(heights))], heights, width, label=label, color=colour
        )
    axes.set(xlabel=x, ylabel=y, xticks=range(len(heights)))
    return _finished(figure, axes)


def points(places: Mapping[str, tuple[float, float]], *, x: str, y: str, log_y: bool = False) -> Figure:
    """One labelled point per item, (x, y)."""
    figure, axes = _axes()
    for (label, (across, up)), colour in zip(places.items(), _colours(places), strict=True):
        axes.plot([across], [up], "o", label=label, color=colour)
    axes.set(xlabel=x, ylabel=y, yscale="log" if log_y else "linear")
    return _finished(figure, axes)


def plane(panels: Mapping[str, Tensor], exact: Tensor | None, data: Tensor) -> Figure:
    """Paths in the plane, one pair of axes per item: (levels, n, 2), over the exact ones, (levels, n, 2), in grey.

    Open circles are the ends of the exact paths, dots those of the others, and crosses the data (m, 2), which the axes
    reach a little beyond. exact: None where there are none. Paths of one level are points.
    """
    with sns.axes_style("white"):
        figure, row = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.4), squeeze=False, sharey=True)
    reach = 1.5 * data.abs().max().item()
    for axes, (label, paths), colour in zip(row[0], panels.items(), _colours(panels), strict=True):
        axes.plot(*data.T, "x", color="0.8", markersize=3, zorder=0)
        if exact is not None:
            axes.plot(*exact.movedim(-1, 0), color="0.6", linewidth=0.9)
            axes.plot(*exact[-1].T, "o", color="0.3", markersize=7, fillstyle="none")
        axes.plot(*paths.movedim(-1, 0), color=colour, linewidth=0.9)
        axes.plot(*paths[-1].T, "o", color=colour, markersize=4)
        axes.set(title=label, aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[])
    sns.despine(figure, left=True, bottom=True)
    figure.tight_layout()
    plt.close(figure)
    return figure


def _axes() -> tuple[Figure, plt.Axes]:
    with sns.axes_style("whitegrid"):
        return plt.subplots(figsize=(7, 3.2))


def _colours(items: Mapping[str, object]) -> list:
    return sns.color_palette("colorblind", len(items))


def _finished(figure: Figure, axes: plt.Axes) -> Figure:
    """With a legend beside the axes where it hides nothing."""
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    sns.despine(figure)
    figure.tight_layout()
    plt.close(figure)
    return figure
