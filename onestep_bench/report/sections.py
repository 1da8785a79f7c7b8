"""The parts of a report's page after its scores: differences, splits, judges, spread, search; and figures for print."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from onestep_bench.errors import OnestepError
from onestep_bench.report import comparisons, figures
from onestep_bench.report.colours import looks as looks_of
from onestep_bench.report.drawing import STYLE
from onestep_bench.report.points import column, judged, plain, weight
from onestep_bench.report.recipes import search_table
from onestep_bench.report.statistics import COPY, by_judge, components, differences, generalisation_gap
from onestep_bench.report.tables import PROTOCOL, drawable, is_teacher, split_words
from onestep_bench.store.files import replacing

# Beginnings of the names of the files drawn here.
FILES = (
    "fid_vs_steps", "fid_vs_params", "fid_vs_cost", "fid_vs_latency", "two_by_two", "held_out", "judges", "copying",
)  # fmt: skip


_ONE_SIZE = 1.2  # times the parameters: an embedding of a second time adds less


def protocols(rows: pd.DataFrame, out: Path, kinds: tuple[str, ...]) -> list[dict]:
    """Draw the figures of each protocol into `out`, of each data set first that which counts most: {words, files}.

    That is the test split, judged by a judge that knows classes. It has all figures, the others three at most.
    kinds: of the files of each figure, 'png' and 'svg'.
    """
    looks = looks_of(rows["label"])
    groups = sorted((group for _, group in rows.groupby(PROTOCOL)), key=weight)
    split = rows["split"].nunique() > 1
    names = [f"{one.dataset}-{one.features}" + f"-{one.split}" * split for one in (own.iloc[0] for own in groups)]
    sections, seen = [], set()
    for group, ending in zip(groups, endings(names), strict=True):
        first = group["dataset"].iloc[0] not in seen
        seen.add(group["dataset"].iloc[0])
        files = _drawn(_figures(group, looks, first=first), ending, out, kinds)
        sections.append({"words": _in_words(group), "files": files})
    return sections


def _figures(rows: pd.DataFrame, looks: dict, *, first: bool) -> dict[str, Callable[[], Figure]]:
    """What draws the figures of one protocol, at one step or else at the fewest there are."""
    lines = drawable(rows)
    if lines.empty:
        return {}
    steps = int(lines["steps"].min())
    draw = {
        "fid_vs_steps": partial(figures.fid_vs_steps, rows, looks=looks),
        "fid_vs_cost": partial(figures.fid_vs_cost, rows, steps=steps, looks=looks),
    }
    if sizes_differ(lines[lines["steps"] == steps]) or len(figures.claims_beside(rows)):
        draw["fid_vs_params"] = partial(figures.fid_vs_params, rows, steps=steps, looks=looks)
    more = {
        "fid_vs_latency": partial(figures.fid_vs_latency, rows, looks=looks),
        "two_by_two": partial(comparisons.two_by_two, rows),
    }
    return draw | more if first else draw


def sizes_differ(rows: pd.DataFrame) -> bool:
    """Whether models can be told apart over their parameters; those of one size would stand on each other."""
    return bool(rows["params"].max() > _ONE_SIZE * rows["params"].min())


def _drawn(draw: dict[str, Callable[[], Figure]], ending: str, out: Path, kinds: tuple[str, ...]) -> list[str]:
    """Write the figures for which the rows suffice; their file names."""
    files = []
    for name, figure in draw.items():
        try:
            made = figure()
        except OnestepError:  # rows of a small study, or of an older version, have nothing for it
            continue
        files += [save(made, out / f"{name}{ending}.{kind}") for kind in kinds]
    return files


def save(figure: Figure, path: Path) -> str:
    """Write a figure as PNG or SVG; its file name."""
    kind = path.suffix[1:]
    # Neither date nor library version: equal rows give equal bytes.
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    tight = {} if path.name.startswith("samples") else {"bbox_inches": "tight", "pad_inches": 0.08}
    with replacing(path) as temporary, mpl.rc_context(STYLE):
        figure.savefig(temporary, format=kind, metadata=metadata, dpi="figure", **tight)
        if kind == "png":
            _fewer_colours(temporary)
    return path.name


def _fewer_colours(path: Path) -> None:
    """Store a PNG with a palette of 256 colours: a third of the bytes, and no eye sees which."""
    with Image.open(path) as picture:
        flat = picture.convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    flat.save(path, format="png", optimize=True)


def endings(names: list[str]) -> list[str]:
    """File name endings that tell several protocols or data sets apart; none where there is but one."""
    if len(names) == 1:
        return [""]
    safe = [re.sub(r"[^A-Za-z0-9_.-]+", "-", name) for name in names]
    return [f"-{name}" if safe.count(name) == 1 else f"-{name}-{i + 1}" for i, name in enumerate(safe)]


def _in_words(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    split = split_words(first["split"])
    return f"{first['dataset']}, {first['features']}, {split}"


# ---- across protocols ------------------------------------------------------------------------------------------------


def across(rows: pd.DataFrame, searched: pd.DataFrame, out: Path, kinds: tuple[str, ...]) -> list[dict]:
    """Parts of the page, only those there are: title, words, data set, files drawn, and tables, each with a caption.

    rows: results. searched: all rows, with those of searches. A part with `pair` has a figure of its table's two
    columns of these names, one against the other. kinds: as for `protocols`.
    """
    looks = looks_of(rows["label"])
    groups = list(rows.groupby("dataset", sort=True))
    parts = []
    for (dataset, own), ending in zip(groups, endings([name for name, _ in groups]), strict=True):
        draw = partial(_drawn, ending=ending, out=out, kinds=kinds)
        found = [_differences, _splits, _judges, _copies, _spread]
        parts += [_titled(part, dataset, len(groups)) for make in found if (part := make(own, looks, draw))]
    search = search_table(searched)
    if len(search):
        parts.append(_part("Search", _SEARCH, [], (f"{len(search)} settings", _search_lines(search))))
    return parts


_SEARCH = (
    "Settings that were tried, on seeds of their own and scored on the training split only, and the one chosen: the "
    "lowest mean. These scores are in no figure and no other table."
)


def _part(title: str, words: str, files: list[str], *tables: tuple[str, dict], pair: tuple[str, str] | None = None):
    named = [{"caption": caption, **table} for caption, table in tables if table["rows"]]
    return {"title": title, "words": words, "files": files, "tables": named, "pair": pair, "dataset": None}


def _titled(part: dict, dataset: str, count: int) -> dict:
    return part | {"title": f"{part['title']}: {dataset}" if count > 1 else part["title"], "dataset": dataset}


_Draw = Callable[[dict[str, Callable[[], Figure]]], list[str]]  # what draws figures, by name; their files
_OF_MODEL = [column("label", "method"), column("size", "size", "text", 1), column("steps", "steps", "number")]
_INTERVAL = column("interval", "95 % interval", "interval", 1, "t interval over training runs")
_RUNS = column("runs", "runs", "number", 3)
_HOW = [column("sampler", "sampler", "text", 4), column("kimg", "kimg", "number", 4)]
_OF_GAPS = [
    *_OF_MODEL,
    column("features", "judge", "text", 1),
    column("train", "to training images", "measured", 2),
    column("test", "to held-out images", "measured", 2),
    column("gap", "gap", "measured"),
    _INTERVAL,
    _RUNS,
    *_HOW,
    column("floor_train", "floor, train", "measured", 5, "what held-out images score against the training images"),
    column("floor_test", "floor, test", "measured", 5, "what training images score against held-out ones"),
    column("nn_ratio", "NN ratio", "measured", 3),
    column("copies", "note", "text", 3),
]
_OF_PAIRS = [
    column("first", "method"),
    column("second", "less"),
    column("size", "size", "text", 2),
    column("steps", "steps", "number", 1),
    column("difference", "difference", "measured"),
    _INTERVAL,
    column("verdict", "verdict", "text", 2, "larger than its interval, within it, or unknown: a single run"),
    column("runs", "runs", "text", 3),
    column("paired", "paired", "text", 4, "whether runs share their seeds"),
]


def _splits(rows: pd.DataFrame, looks: dict, draw: _Draw) -> dict | None:
    gaps = generalisation_gap(pd.concat([own for _, own in by_judge(rows)]))
    if gaps.empty:
        return None
    files = draw({"held_out": partial(comparisons.held_out, _primary(rows), looks=looks)})
    gaps = gaps.sort_values(["features", "steps", "gap"], ascending=[True, True, False]).assign(interval=_bounds)
    words = (
        "Gap: distance to the held-out images less that to the training images. A model with a gap like that of its "
        "teacher has learned no more of the training set by heart than that. A floor is what real images of the other "
        "split score: a training distance below it is nearer than held-out images are. NN ratio: 1 as new as held-out "
        "images, 0 copies."
    )
    table = plain(gaps, _OF_GAPS)
    return _part("Train against test", words, files, (f"{len(gaps)} gaps", table), pair=("train", "test"))


def _judges(rows: pd.DataFrame, looks: dict, draw: _Draw) -> dict | None:
    both, own = judged(rows), _of_split(rows)
    if both is None:
        return None
    try:
        found = comparisons.compared(own)
    except OnestepError:  # two judges, but not on the split that counts
        return None
    files = draw({"judges": partial(comparisons.judges, own, looks=looks)})
    columns = [column("first", "method"), column("second", "against")]
    columns += [column(judge, f"difference, {judge}", "measured") for judge in found.judges]
    left, right = found.judges
    words = (
        f"One distance against the other. Where {left} and {right} order two methods differently, and both by more "
        "than the 95 % interval of the difference, the order is the judge's, and nothing should be concluded from it. "
        f"Kendall's tau of the two orders is {found.tau:.2f}."
    )
    told = f"pair{'s' * (len(found.pairs) != 1)} that they order differently by more than noise"
    pairs = (f"{len(found.pairs)} {told}", plain(found.pairs, columns))
    return _part("Judges", words, files, pairs, (f"{len(both['rows'])} models before both", both), pair=("x", "y"))


def _copies(rows: pd.DataFrame, looks: dict, draw: _Draw) -> dict | None:
    files = draw({"copying": partial(comparisons.copying, _primary(rows), looks=looks)})
    words = (
        "How near samples are to training images, measured by how near held-out images are: choose “NN ratio” as the "
        f"score in the figures. Below {COPY:g} a method is called copying."
    )
    return _part("Copies", words, files) if files else None


def _differences(rows: pd.DataFrame, looks: dict, draw: _Draw) -> dict | None:
    rows = _first_protocol(rows)
    found = differences(rows)
    known = found[found["verdict"] != "unknown"]
    if known.empty:
        return None
    here = comparisons.at_one_place(rows)
    place = f"{here['size'].iloc[0]}, {here['steps'].iloc[0]} step" + "s" * int(here["steps"].iloc[0] > 1)
    near = known[(known["size"] == here["size"].iloc[0]) & (known["steps"] == here["steps"].iloc[0])]
    larger = near[near["verdict"] == "larger"]
    words = (
        f"{rows['features'].iloc[0]} features, split {rows['split'].iloc[0]}. At {place}, {len(larger)} of {len(near)} "
        "differences between two models are larger than their 95 % t interval over training runs. "
        "Paired where runs share their seeds, otherwise Welch's. The intervals are not corrected for the number of "
        f"comparisons: of {len(near)} pairs without any difference about {0.05 * len(near):.0f} would be called larger."
    )
    found = found.assign(interval=_bounds, paired=found["paired"].map({True: "yes", False: "no"}))
    ours, theirs = (_methods(found[side], rows) for side in ("first", "second"))
    within = (ours == theirs) & ~found["first"].map(is_teacher).astype(bool)
    ablations = (f"Ablations: {within.sum()} differences between variants of one method", found[within])
    every = (f"All {len(found)} differences, of every size and number of steps", found)
    return _part("Differences", words, [], *((caption, plain(own, _OF_PAIRS)) for caption, own in (ablations, every)))


def _methods(names: pd.Series, rows: pd.DataFrame) -> pd.Series:
    """Registry names of the methods behind names of models, which may have their sampler at the end."""
    known = dict(zip(rows["label"], rows["method"], strict=True))
    return names.map(lambda name: known.get(name) or known.get(name.rpartition(", ")[0]))


def _spread(rows: pd.DataFrame, looks: dict, draw: _Draw) -> dict | None:
    rows = _first_protocol(rows)
    found = components(rows)
    found = found[found[["teacher", "training"]].notna().any(axis=1)]
    if found.empty:
        return None
    levels = [column(level, f"{level} seed", "measured", 1) for level in ("teacher", "training", "sampling")]
    columns = [*_OF_MODEL, column("mean", "mean", "measured", 1), *levels, *_HOW]
    words = (
        f"{rows['features'].iloc[0]} features, split {rows['split'].iloc[0]}. Standard deviation of a score by its "
        "causes: nested components of variance, by the method of moments; 0 where a component came out negative, none "
        "where a level has one member (with one training seed a teacher, that of training is in that of teachers)."
    )
    table = plain(found, [*columns, column("scores", "scores", "number", 3)])
    return _part("Spread", words, [], (f"{len(found)} models", table))


def _search_lines(found: pd.DataFrame) -> dict:
    found = found.assign(chosen=found["chosen"].map({True: "chosen", False: ""}))
    columns = [column("label", "method"), column("size", "size", "text", 2), column("dataset", "data set", "text", 4)]
    columns += [column("features", "judge", "text", 3), column("steps", "steps", "number", 3)]
    columns += [column("setting", "setting")]
    columns += [column("fid", "distance to training images", "measured"), _RUNS, column("chosen", "chosen")]
    return plain(found, columns)


def _primary(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows by the judge that counts most, of one protocol a split."""
    judge = min(set(rows["features"]), key=comparisons.judge_order)
    return pd.concat([own for key, own in by_judge(rows) if key[2] == judge])


def _of_split(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the split that counts most."""
    return rows[rows["split"] == ("test" if (rows["split"] == "test").any() else rows["split"].iloc[0])]


def _first_protocol(rows: pd.DataFrame) -> pd.DataFrame:
    return min((group for _, group in rows.groupby(PROTOCOL)), key=weight)


def _bounds(found: pd.DataFrame) -> list[list[float] | None]:
    pairs = zip(found["low"], found["high"], strict=True)
    return [[float(f"{low:.4g}"), float(f"{high:.4g}")] if pd.notna(low) else None for low, high in pairs]
