"""The figures that a page draws: Vega-Lite specifications by Altair, into which the page's script puts rows.

What a figure draws of the rows that the page's filters leave is in its description, what it looks like in its
specification: none of them holds data. Colours and markers are columns, made of `colours.looks`.
"""

from functools import cache

import altair as alt
import vl_convert

HEIGHT = 300
# Of a logarithmic axis, which has a tick at every digit, grid lines at 1, 2 and 5.
_ROUND = {
    "condition": {
        "test": "indexof([1, 2, 5], round(datum.value / pow(10, floor(log(datum.value) / LN10 + 1e-9)))) >= 0",
        "value": 1,
    },
    "value": 0,
}
# The page scrolls by the wheel; with Ctrl it zooms.
_ZOOM = "wheel![event.ctrlKey || event.metaKey]"


def figures() -> list[dict]:
    """One dict per figure: title, x (a column), rows, ..., and its specification on a logarithmic and a linear y.

    rows: 'last' for each label's largest budget, or 'all'. steps: 'one' for the fewest of those chosen, or 'all'.
    sizes: 'chosen' or 'all'. series: the columns that a line's points have in common. order: the column along which it
    joins them.
    """
    model = ["label", "size", "sampler", "saw", "recipe"]
    over = [
        ("network evaluations", "nfe", "network evaluations (NFE)", "last", "all", model, 2),
        ("parameters", "params", "parameters", "last", "one", ["label", "sampler", "saw", "steps"], 10),
        ("training cost", "passes", "network passes over the whole lineage (thousands)", "all", "one", model, 10),
        ("time to draw an image", "latency_ms", "milliseconds at batch 1", "last", "all", model, 10),
    ]
    return [
        {
            "title": f"over {name}",
            "x": x,
            "rows": rows,
            "steps": steps,
            "sizes": "all" if x == "params" else "chosen",
            "series": series,
            # A measured time may put two numbers of steps the wrong way round.
            "order": "steps" if x == "latency_ms" else x,
            "log": _scatter(x, title, base, "log"),
            "linear": _scatter(x, title, base, "linear"),
        }
        for name, x, title, rows, steps, series, base in over
    ]


def against(*, equal: bool) -> dict:
    """The specification of one distance against another, columns x and y. equal: with the line of equal distances."""
    place = [_axis(alt.X, "x", None, "log"), _axis(alt.Y, "y", None, "log")]
    dots = _dots(alt.Chart(alt.NamedData("points")).encode(*place))
    line = alt.Chart(alt.NamedData("equal")).mark_line(strokeDash=[4, 3], strokeWidth=1, color="#888").encode(*place)
    return _whole(line, dots) if equal else _whole(dots)


def scripts() -> str:
    """Vega, Vega-Lite and vega-embed as one script without any module: what draws the figures, offline."""
    return _bundle().replace("</script", r"<\/script").replace("<!--", r"<\!--")


@cache
def _bundle() -> str:
    return vl_convert.javascript_bundle(vl_version=".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2]))


def _scatter(x: str, title: str, base: int, scale: str) -> dict:
    chart = alt.Chart(alt.NamedData("points"))
    place = [_axis(alt.X, x, title, "log", base), _axis(alt.Y, "y", None, scale)]
    floor = alt.Chart(alt.NamedData("floor")).mark_rule(strokeDash=[2, 3], color="#888", aria=False)
    floor = floor.encode(alt.Y("y:Q"))
    lines = chart.mark_line(strokeWidth=1.4, aria=False)
    lines = lines.encode(*place, color=_own("colour"), detail="series:N", order="order:Q")
    bars = chart.mark_rule(aria=False).encode(place[0], alt.Y("low:Q"), alt.Y2("high"), color=_own("colour"))
    bars = bars.encode(strokeWidth=alt.StrokeWidth("width:Q", scale=None))
    return _whole(floor, lines, bars, _dots(chart.encode(*place)))


def _dots(chart: alt.Chart) -> alt.Chart:
    """Markers, by which a figure is dragged and zoomed; screen readers tell their column `about`."""
    shape = alt.Shape("shape:N", scale=None, legend=None)
    dots = chart.mark_point(filled=True, size=64, opacity=1, cursor="pointer")
    dots = dots.encode(color=_own("colour"), shape=shape, description="about:N")
    return dots.add_params(alt.selection_interval(name="window", bind="scales", zoom=_ZOOM))


def _whole(*layers: alt.Chart) -> dict:
    chart = alt.layer(*layers).properties(width="container", height=HEIGHT)
    return chart.properties(autosize=alt.AutoSizeParams(type="fit-x", contains="padding")).to_dict()


def _axis(channel: type, field: str, title: str | None, scale: str, base: int = 10):
    kind = alt.Scale(type="log", base=base, nice=False, padding=14) if scale == "log" else alt.Scale(zero=False)
    words = ".3~s" if field in ("params", "passes") else "~g"
    axis = alt.Axis(format=words, tickCount=6, labelOverlap="greedy", gridOpacity=_ROUND if scale == "log" else 1)
    return channel(f"{field}:Q", scale=kind, axis=axis, title=title)


def _own(field: str) -> alt.Color:
    """A colour that stands in the row."""
    return alt.Color(f"{field}:N", scale=None, legend=None)
