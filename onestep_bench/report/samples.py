"""Sample strips to one sheet: the same noise through every model."""

import base64
import io
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from onestep_bench.errors import OnestepError
from onestep_bench.report.drawing import MUTED, styled
from onestep_bench.report.tables import is_teacher, strip_order

COLUMNS = 16  # images of a strip that are shown


def named(strips: list[dict], labels: dict[str, dict[tuple[str, str], str]]) -> list[dict]:
    """Strips under the labels of `recipes.extended(rows)`: what tables and figures call their models.

    Those of searches, of which no result tells, are left out; one whose notebook does not tell its recipe keeps its
    label.
    """
    found = []
    for strip in strips:
        own = labels.get(strip["label"], {})
        key = (strip.get("saw") or "", strip.get("recipe") or "")
        label = own.get(key, strip["label"] if key == ("", "") else None)
        if label and strip["label"] in labels:
            found.append(strip | {"label": label})
    return sorted(found, key=lambda strip: (*strip_order(strip), strip.get("kimg") or 0))


def one_a_name(strips: list[dict]) -> list[dict]:
    """Of strips of one (dataset, label, size, steps) that of the largest budget: what a sheet on paper has room for."""
    best: dict[tuple, dict] = {}
    for strip in sorted(strips, key=lambda strip: -(strip.get("kimg") or 0)):
        best.setdefault((strip["dataset"], strip["label"], strip["size"], strip["steps"]), strip)
    return sorted(best.values(), key=strip_order)


def on_page(strips: list[dict]) -> list[dict]:
    """Strips as the page's script takes them, each with its number of images and the pixels of their side.

    name: what tells a strip from the others, its budget or sampler where these alone do. nearest: {png, index}, of the
    training image nearest to each, in pixels; None of records without it.
    Raises OnestepError for a picture that is damaged, or more than that: it stands in the page's styles as it is.
    """
    keys = ("dataset", "label", "size", "steps", "sampler", "train_seed", "png")
    return [
        {key: strip.get(key) for key in keys}
        | {"name": _told_apart(strip, strips), "nearest": _nearest(strip), **_measure(strip["png"])}
        for strip in strips
    ]


def _told_apart(strip: dict, strips: list[dict]) -> str:
    name = f"{strip['label']}, {strip['size']}, {strip['steps']} step{'s' * (strip['steps'] > 1)}"
    alike = [one for one in strips if all(one[key] == strip[key] for key in ("dataset", "label", "size", "steps"))]
    several = {key: len({str(one.get(key)) for one in alike}) > 1 for key in ("sampler", "kimg")}
    name += f", {strip['sampler']}" if several["sampler"] else ""
    return name + (f", {strip['kimg'] or 0:g} kimg" if several["kimg"] else "")


def _nearest(strip: dict) -> dict | None:
    found = strip.get("nearest")
    if found is None:
        return None
    _measure(found["png"])
    return {"png": found["png"], "index": found["index"]}


def _measure(png: str) -> dict:
    wide, high = _opened(png).size
    return {"count": max(1, wide // high), "side": high}


def _opened(png: str) -> Image.Image:
    """The picture of a strip. Raises OnestepError unless it is base64 of a whole PNG, and nothing else."""
    try:
        return Image.open(io.BytesIO(base64.b64decode(png, validate=True)), formats=["PNG"]).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OnestepError(f"a sample strip is damaged ({error}); run again the cell that drew it") from error


@styled
def sample_sheet(strips: list[dict]) -> Figure:
    """Samples of every model from the same noise: one row per (label, size, steps), teachers with many steps first.

    strips: as `read_strips` returns them. Every sample pixel is a whole square of figure pixels.
    Raises OnestepError for no strips, or strips of more than one data set.
    """
    if not strips:
        raise OnestepError("nothing to draw: no sample strips")
    datasets = sorted({strip["dataset"] for strip in strips})
    if len(datasets) > 1:
        raise OnestepError(
            f"sample strips of {len(datasets)} data sets do not share their noise ({', '.join(datasets)})"
        )
    strips = sorted(strips, key=strip_order)
    images = [_enlarged(strip["png"]) for strip in strips]
    names = [
        f"{strip['label']}, {strip['size']}\n{strip['steps']} step{'s' * (strip['steps'] > 1)}" for strip in strips
    ]
    dpi, foot = 200, 50
    text = 12 * max(len(line) for name in names for line in name.split("\n")) + 24  # 7 point letters
    gaps = [8 if _same_model(*pair) else 22 for pair in pairwise(strips)] + [8]
    width = text + max(image.shape[1] for image in images)
    height = sum(image.shape[0] for image in images) + sum(gaps) + foot
    figure = plt.figure(figsize=(width / dpi, height / dpi), dpi=dpi)
    plt.close(figure)
    top = 0
    for name, image, gap in zip(names, images, gaps, strict=True):
        rows, columns = image.shape[:2]
        axes = figure.add_axes((text / width, 1 - (top + rows) / height, columns / width, rows / height))
        axes.imshow(image, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        figure.text((text - 16) / width, 1 - (top + rows / 2) / height, name, ha="right", va="center", fontsize=7)
        top += rows + gap
    figure.text(text / width, 0.3 * foot / height, "One column, one noise.", fontsize=6.5, color=MUTED)
    return figure


def _same_model(one: dict, other: dict) -> bool:
    if is_teacher(one["label"]) and is_teacher(other["label"]):
        return one["steps"] == other["steps"]
    return (one["label"], one["size"]) == (other["label"], other["size"])


def _enlarged(png: str, target: int = 80) -> np.ndarray:
    """The images of a strip, at most `COLUMNS`, enlarged by a whole factor and set apart by white."""
    strip = _opened(png)
    side = strip.height
    factor = max(1, round(target / side))
    count = min(COLUMNS, max(1, strip.width // side))
    gap = 6
    sheet = Image.new("RGB", (count * (side * factor + gap) - gap, side * factor), "white")
    for i in range(count):
        image = strip.crop((i * side, 0, (i + 1) * side, side))
        sheet.paste(
            image.resize((side * factor, side * factor), Image.Resampling.NEAREST), (i * (side * factor + gap), 0)
        )
    return np.asarray(sheet)
