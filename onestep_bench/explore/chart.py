"""The figure whose points show their samples: scores of a report, or of this notebook, over network evaluations."""

import base64
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from onestep_bench.errors import OnestepError
from onestep_bench.explore.choice import notebooks_of
from onestep_bench.explore.screen import Panel, strip
from onestep_bench.report import colours, figures, tables
from onestep_bench.report.comparisons import judge_order

_LARGE = 260  # square pixels of a point that is easily hit
_HINT = "<p>Click a point to see its samples; shift-click for several.</p>"


@dataclass(frozen=True)
class Scores:
    """Score rows of one judge against one split, and the sample strips that were recorded with them."""

    rows: pd.DataFrame
    strips: list[dict]


def read_scores(folder: Path | str, *, judge: str = "", split: str = "test") -> Scores:
    """Of a report's folder, or its folder of executed notebooks. judge: by default the first that knows classes.

    Raises OnestepError where there are none of that judge and split.
    """
    notebooks = notebooks_of(folder)
    return _of_one_judge(tables.read_rows(notebooks), tables.read_strips(notebooks), judge, split)


def scores_of(*bundles: dict, judge: str = "", split: str = "test") -> Scores:
    """Of score bundles, as `study.evaluate` returns them."""
    rows = pd.DataFrame([row for bundle in bundles for row in bundle["rows"]])
    return _of_one_judge(rows, [one for bundle in bundles for one in bundle["strips"]], judge, split)


def _of_one_judge(rows: pd.DataFrame, strips: list[dict], judge: str, split: str) -> Scores:
    chosen = judge or min(rows["features"], key=judge_order)
    own = rows[(rows["features"] == chosen) & (rows["split"] == split)].reset_index(drop=True)
    if own.empty:
        known = ", ".join(
            sorted(f"{name}, {part}" for name, part in set(zip(rows["features"], rows["split"], strict=True)))
        )
        raise OnestepError(f"there are no scores by {chosen!r} against the split {split!r}; there are: {known}")
    return Scores(own, strips)


def points(scores: Scores) -> pd.DataFrame:
    """A point of each model, sampler and number of steps; `point` names it, `look` has its label's colour."""
    lines = tables.drawable(scores.rows)
    columns = ["label", "size", "sampler", "steps", "nfe", "fid_mean", "runs", "kimg", "params"]
    return lines[columns].reset_index(drop=True).rename_axis("point").reset_index()


def samples_of(scores: Scores, point: dict) -> str:
    """The strip that was recorded with a point's scores, as HTML; of one without, a line that says so."""
    name = f"{point['label']}, {point['size']}, {point['sampler']}, {point['steps']} steps: {point['fid_mean']:.3g}"
    keys = ("label", "size", "steps", "sampler")
    found = next((one for one in scores.strips if all(one[key] == point[key] for key in keys)), None)
    if found is None:
        return f"<p>{name}; no samples were recorded</p>"
    return strip(name, found["png"], width=_images_in(found["png"]))


def _images_in(png: str) -> int:
    """How many square images stand side by side: a PNG tells its width and height in bytes 16 to 24."""
    header = base64.b64decode(png[:64])
    return int.from_bytes(header[16:20]) // int.from_bytes(header[20:24])


def figure(scores: Scores) -> Panel:
    """Distance over network evaluations; a click on a point shows the samples that were recorded with it."""
    return Panel(lambda: _clickable(scores), lambda: figures.fid_vs_steps(scores.rows))


def _clickable(scores: Scores):
    import altair as alt
    import ipywidgets as widgets

    alt.JupyterChart.enable_offline()
    drawn = points(scores)
    chart = alt.JupyterChart(specification(drawn))
    below = widgets.HTML(_HINT)

    def show(change) -> None:
        chosen = [mark["values"][0] for mark in change.new.store]
        below.value = "".join(samples_of(scores, drawn.loc[index].to_dict()) for index in chosen) or _HINT

    chart.selections.observe(show, "picked")
    return widgets.VBox([chart, below])


def specification(drawn: pd.DataFrame):
    """The Altair chart of `points`, with a selection `picked` of them by their number."""
    import altair as alt

    looks = colours.looks(drawn["label"])
    names = list(looks)
    picked = alt.selection_point("picked", fields=["point"], empty=False)
    by_label = {
        "color": alt.Color("label:N", scale=alt.Scale(domain=names, range=[look.colour for look in looks.values()])),
        "shape": alt.Shape("label:N", scale=alt.Scale(domain=names, range=[look.shape for look in looks.values()])),
    }
    log = alt.Scale(type="log", nice=False, padding=24)
    asked = sorted(set(drawn["nfe"]))
    axes = {
        "x": alt.X("nfe:Q", title="network evaluations a sample", scale=log, axis=alt.Axis(values=asked, format="~g")),
        "y": alt.Y("fid_mean:Q", title="Fréchet distance", scale=log, axis=alt.Axis(format="~g", tickCount=5)),
    }
    base = alt.Chart(drawn).encode(**axes)
    lines = base.mark_line(opacity=0.5).encode(color=by_label["color"], detail=["size:N", "sampler:N", "kimg:Q"])
    marks = base.mark_point(filled=True, size=_LARGE).encode(
        **by_label,
        opacity=alt.condition(picked, alt.value(1), alt.value(0.65)),
        tooltip=["label", "size", "sampler", "steps", alt.Tooltip("fid_mean", format=".3g"), "runs", "kimg"],
    )
    return (lines + marks.add_params(picked)).properties(width=560, height=320).interactive()
