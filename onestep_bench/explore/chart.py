"""The figure whose points show their samples: scores of a report, or of this notebook, over network evaluations."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from onestep_bench.errors import OnestepError
from onestep_bench.explore.choice import notebooks_of
from onestep_bench.explore.screen import Panel, strip, told
from onestep_bench.report import colours, figures, tables
from onestep_bench.report.drawing import distance, protocol_words
from onestep_bench.report.judged import judged_by
from onestep_bench.report.recipes import extended, results
from onestep_bench.report.samples import named

_LARGE = 260  # square pixels of a point that is easily hit
_HINT = "<p>Click a point to see its samples; shift-click for several. A double click undoes zoom.</p>"
_POINT = ["label", "size", "sampler", "steps", "kimg"]  # what a point and its strip agree in


@dataclass(frozen=True)
class Scores:
    """Score rows of one data set, judge and split, and the sample strips that were recorded with them."""

    rows: pd.DataFrame
    strips: list[dict]


def read_scores(folder: Path | str, **which: str) -> Scores:
    """Of a report's folder, or its folder of executed notebooks. which: judge, split and dataset, see `judged_by`.

    Raises OnestepError where there are none such.
    """
    notebooks = notebooks_of(folder)
    return _scores(tables.read_rows(notebooks), tables.read_strips(notebooks), **which)


def scores_of(*bundles: dict, **which: str) -> Scores:
    """Of score bundles, as `study.evaluate` returns them. which: as `read_scores` takes it."""
    rows = pd.DataFrame([row for bundle in bundles for row in bundle["rows"]])
    recipes = {name: recipe for bundle in bundles for name, recipe in bundle.get("recipes", {}).items()}
    rows.attrs["recipes"] = recipes
    strips = [one | {"dataset": bundle["rows"][0]["dataset"]} for bundle in bundles for one in bundle["strips"]]
    return _scores(rows, strips, **which)


def _scores(rows: pd.DataFrame, strips: list[dict], **which: str) -> Scores:
    """Under the labels of reports, where two recipes of one label have two."""
    own = judged_by(rows, **which).reset_index(drop=True)
    strips = [one for one in strips if one["dataset"] == own["dataset"].iloc[0]]
    return Scores(results(own), named(strips, extended(own)))


def points(scores: Scores) -> pd.DataFrame:
    """A point of each model, sampler, steps and budget; `point` numbers them. Raises OnestepError if there is none."""
    lines = tables.drawable(scores.rows)
    if lines.empty:
        raise OnestepError("nothing to draw: no score is a positive number")
    columns = [*_POINT, "nfe", "fid_mean", "runs", "params"]
    return lines[columns].reset_index(drop=True).rename_axis("point").reset_index()


def samples_of(scores: Scores, point: dict) -> str:
    """The strip that was recorded with a point's scores, as HTML; of one without, a line that says so."""
    steps = f"{point['steps']} step{'s' * (point['steps'] > 1)}"
    name = f"{point['label']}, {point['size']}, {point['sampler']}, {steps}: {point['fid_mean']:.3g}"
    found = next((one for one in scores.strips if _shows(one, point)), None)
    return f"<p>{escape(name)}; no samples were recorded</p>" if found is None else strip(name, found["png"])


def _shows(strip: dict, point: dict) -> bool:
    """Whether a strip is of this point; what older records do not tell, a budget, is no difference."""
    return all(strip[name] == point[name] for name in _POINT if strip.get(name) is not None)


def figure(scores: Scores) -> Panel:
    """Distance over network evaluations; a click on a point shows the samples that were recorded with it."""
    return Panel(lambda: _clickable(scores), lambda: figures.fid_vs_steps(scores.rows))


def _clickable(scores: Scores):
    import altair as alt
    import ipywidgets as widgets

    alt.JupyterChart.enable_offline()
    drawn = points(scores)
    chart = alt.JupyterChart(specification(scores))
    below = widgets.HTML(_HINT)

    def show(change) -> None:
        with told(below):
            chosen = [mark["values"][0] for mark in change.new.store]
            below.value = "".join(samples_of(scores, drawn.loc[index].to_dict()) for index in chosen) or _HINT

    chart.selections.observe(show, "picked")
    return widgets.VBox([chart, below])


def specification(scores: Scores):
    """The Altair chart of `points`, with a selection `picked` of them by their number."""
    import altair as alt

    drawn = points(scores)
    looks = colours.looks(drawn["label"])
    names = list(looks)
    picked = alt.selection_point("picked", fields=["point"], empty=False)
    by_label = {
        "color": alt.Color("label:N", scale=alt.Scale(domain=names, range=[look.colour for look in looks.values()])),
        "shape": alt.Shape("label:N", scale=alt.Scale(domain=names, range=[look.shape for look in looks.values()])),
    }
    log = alt.Scale(type="log", nice=False, padding=24)
    asked = sorted(set(drawn["nfe"]))
    words = protocol_words(scores.rows)
    title = alt.TitleParams(scores.rows["dataset"].iloc[0], subtitle=words, anchor="start", subtitleColor="gray")
    axes = {
        "x": alt.X("nfe:Q", title="network evaluations a sample", scale=log, axis=alt.Axis(values=asked, format="~g")),
        "y": alt.Y("fid_mean:Q", title=distance(scores.rows), scale=log, axis=alt.Axis(format="~g", tickCount=5)),
    }
    base = alt.Chart(drawn).encode(**axes)
    lines = base.mark_line(opacity=0.5).encode(color=by_label["color"], detail=["size:N", "sampler:N", "kimg:Q"])
    marks = base.mark_point(filled=True, size=_LARGE).encode(
        **by_label,
        opacity=alt.condition(picked, alt.value(1), alt.value(0.65)),
        tooltip=["label", "size", "sampler", "steps", alt.Tooltip("fid_mean", format=".3g"), "runs", "kimg"],
    )
    return (lines + marks.add_params(picked)).properties(width=560, height=320, title=title).interactive()
