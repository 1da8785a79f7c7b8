"""What stands on a report's page: figures and a table of each protocol, then what takes several to see."""

import re
from collections.abc import Callable, Iterable
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
from onestep_bench.report.recipes import search_table
from onestep_bench.report.statistics import by_judge, components, differences, generalisation_gap
from onestep_bench.report.tables import BUSY, PROTOCOL, brief, drawable, table
from onestep_bench.store.files import replacing

_ALT = {
    "fid_vs_steps": "Fréchet distance against network evaluations",
    "fid_vs_params": "Fréchet distance against parameters",
    "fid_vs_cost": "Fréchet distance against training cost",
    "fid_vs_latency": "Fréchet distance against time to draw an image",
    "two_by_two": "Fréchet distance by method and by what it was trained on",
    "held_out": "Fréchet distance against the training split and against the test split",
    "judges": "Two judges' orders of the methods",
    "copying": "Nearest-neighbour ratio of each method",
}
FILES = tuple(_ALT)  # beginnings of the names of the files drawn here


def protocols(rows: pd.DataFrame, out: Path) -> list[dict]:
    """Figures (written to `out`) and table of each protocol, of each data set first that which counts most.

    That is the test split, judged by a judge that knows classes. It has all figures, the others three.
    """
    looks = looks_of(rows["label"])
    groups = sorted((group for _, group in rows.groupby(PROTOCOL)), key=_weight)
    split = rows["split"].nunique() > 1
    names = [f"{one.dataset}-{one.features}" + f"-{one.split}" * split for one in (own.iloc[0] for own in groups)]
    sections, seen = [], set()
    for group, ending in zip(groups, endings(names), strict=True):
        first = group["dataset"].iloc[0] not in seen
        seen.add(group["dataset"].iloc[0])
        drawn = _drawn(_figures(group, looks, first=first), ending, out)
        words = {"first": first, "words": _in_words(group), "protocol": group["protocol"].iloc[0], "busy": _busy(group)}
        sections.append(words | drawn | {"table": table(group).to_html(table_attributes='class="scores"')})
    return sections


def _weight(rows: pd.DataFrame) -> tuple:
    first = rows.iloc[0]
    judge = comparisons.judge_order(first["features"])
    return first["dataset"], judge[0], first["split"] != "test", first["split"], judge[1], first["protocol"]


def _figures(rows: pd.DataFrame, looks: dict, *, first: bool) -> dict[str, Callable[[], Figure]]:
    """What draws the figures of one protocol, at one step or else at the fewest there are."""
    lines = drawable(rows)
    if lines.empty:
        return {}
    steps = int(lines["steps"].min())
    draw = {
        "fid_vs_steps": partial(figures.fid_vs_steps, rows, looks=looks),
        "fid_vs_params": partial(figures.fid_vs_params, rows, steps=steps, looks=looks),
        "fid_vs_cost": partial(figures.fid_vs_cost, rows, steps=steps, looks=looks),
    }
    more = {
        "fid_vs_latency": partial(figures.fid_vs_latency, rows, looks=looks),
        "two_by_two": partial(comparisons.two_by_two, rows),
    }
    return draw | more if first else draw


def _drawn(draw: dict[str, Callable[[], Figure]], ending: str, out: Path) -> dict:
    """Write the figures for which the rows suffice; their file names, and the images of a page."""
    files, images = [], []
    for name, figure in draw.items():
        try:
            made = figure()
        except OnestepError:  # rows of a small study, or of an older version, have nothing for it
            continue
        files += [save(made, out / f"{name}{ending}.{kind}") for kind in ("png", "svg")]
        images.append({"file": files[-1], "alt": _ALT[name]})
    return {"files": files, "images": images}


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
    def several(column: str) -> str:
        return " or ".join(sorted(set(rows[column].astype(str))))

    split = {"all": "all reference images", "train": "the training images", "test": "the test images"}
    return (
        f"{rows['dataset'].iloc[0]}: Fréchet distance between {several('features')} features of {several('samples')} "
        f"samples and of {split[rows['split'].iloc[0]]}, drawn with {several('weights')} weights"
    )


def _busy(rows: pd.DataFrame) -> bool:
    return bool((rows["busy"] > BUSY).any())


# ---- across protocols ------------------------------------------------------------------------------------------------


def across(rows: pd.DataFrame, searched: pd.DataFrame, out: Path) -> list[dict]:
    """Parts of the page: title, words, images and a table each, or a longer one to unfold; only those there are.

    rows: results. searched: all rows, with those of searches.
    """
    looks = looks_of(rows["label"])
    groups = list(rows.groupby("dataset", sort=True))
    parts = []
    for (dataset, own), ending in zip(groups, endings([name for name, _ in groups]), strict=True):
        found = [_splits, _judges, _copies, _differences, _spread]
        parts += [_titled(part, dataset, len(groups)) for make in found if (part := make(own, looks, ending, out))]
    search = search_table(searched)
    if len(search):
        parts.append(_part("Search", _SEARCH, [], _search_lines(search)))
    return parts


_SEARCH = (
    "Settings that were tried, on seeds of their own and scored on the training split only, and the one chosen, in "
    "bold: the lowest mean. These scores are in no figure and no other table."
)


def _part(title: str, words: str, drawn: dict | list, rows: str = "", more: str = "", label: str = "") -> dict:
    drawn = drawn or {"files": [], "images": []}
    return {"title": title, "words": words, **drawn, "table": rows, "more": more, "label": label}


def _titled(part: dict, dataset: str, count: int) -> dict:
    return part | {"title": f"{part['title']}: {dataset}"} if count > 1 else part


def _splits(rows: pd.DataFrame, looks: dict, ending: str, out: Path) -> dict | None:
    gaps = generalisation_gap(pd.concat([own for _, own in by_judge(rows)]))
    if gaps.empty:
        return None
    drawn = _drawn({"held_out": partial(comparisons.held_out, _primary(rows), looks=looks)}, ending, out)
    gaps = gaps.sort_values(["features", "steps", "gap"], ascending=[True, True, False])
    shown = {
        "judge": gaps["features"],
        "model": gaps["label"],
        "size": gaps["size"],
        "sampler": gaps["sampler"],
        "steps": gaps["steps"],
        "kimg": gaps["kimg"].map(brief),
        "train": gaps["train"].map(_number),
        "test": gaps["test"].map(_number),
        "gap": gaps["gap"].map(_number),
        "95 % interval": _bounds(gaps),
        "runs": gaps["runs"],
        "floor, train": gaps["floor_train"].map(_number),
        "floor, test": gaps["floor_test"].map(_number),
        "NN ratio": gaps["nn_ratio"].map(_number),
        "": gaps["copies"],
    }
    words = (
        "Gap: distance to the test images less that to the training images. A model with a gap like that of its "
        "teacher has learned no more of the training set by heart than that. A floor is what real images of the other "
        "split score: a training distance below it is nearer than held-out images are. NN ratio: 1 as new as held-out "
        "images, 0 copies."
    )
    return _part("Train against test", words, drawn, "", _html(shown), f"All {len(gaps)} gaps")


def _judges(rows: pd.DataFrame, looks: dict, ending: str, out: Path) -> dict | None:
    rows = _of_split(rows)
    try:
        found = comparisons.compared(rows)
    except OnestepError:
        return None
    drawn = _drawn({"judges": partial(comparisons.judges, rows, looks=looks)}, ending, out)
    if not drawn["files"]:
        return None
    pairs, (left, right) = found.pairs, found.judges
    shown = {"": pairs["first"], "against": pairs["second"]}
    shown |= {f"difference, {judge}": pairs[judge].map(_number) for judge in (left, right)}
    words = (
        f"Where {left} and {right} order two methods differently, and both by more than the 95 % interval of the "
        "difference, the order is the judge's, and nothing should be concluded from it."
    )
    return _part("Judges", words, drawn, "", _html(shown) if len(pairs) else "", f"All {len(pairs)} such pairs")


def _copies(rows: pd.DataFrame, looks: dict, ending: str, out: Path) -> dict | None:
    draw = partial(comparisons.copying, _primary(rows), looks=looks)
    drawn = _drawn({"copying": draw}, ending, out)
    words = "How near samples are to training images, measured by how near held-out images are."
    return _part("Copies", words, drawn) if drawn["files"] else None


def _differences(rows: pd.DataFrame, looks: dict, ending: str, out: Path) -> dict | None:
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
        "differences between two models are larger than their 95 % t interval over training runs; the table has these. "
        "Paired where runs share their seeds, otherwise Welch's. The intervals are not corrected for the number of "
        f"comparisons: of {len(near)} pairs without any difference about {0.05 * len(near):.0f} would stand here."
    )
    every = f"All {len(found)} differences, of every size and number of steps"
    return _part("Differences", words, [], _difference_lines(larger), _difference_lines(found), every)


def _difference_lines(found: pd.DataFrame) -> str:
    shown = {
        "": found["first"],
        "less": found["second"],
        "size": found["size"],
        "steps": found["steps"],
        "difference": found["difference"].map(_number),
        "95 % interval": _bounds(found),
        "runs": found["runs"],
        "paired": found["paired"].map({True: "yes", False: "no"}),
        "verdict": found["verdict"],
    }
    return _html(shown) if len(found) else ""


def _spread(rows: pd.DataFrame, looks: dict, ending: str, out: Path) -> dict | None:
    rows = _first_protocol(rows)
    found = components(rows)
    levels = ["teacher", "training", "sampling"]
    found = found[found[["teacher", "training"]].notna().any(axis=1)]
    if found.empty:
        return None
    shown = {"model": found["label"], "size": found["size"], "sampler": found["sampler"], "steps": found["steps"]}
    shown |= {"kimg": found["kimg"].map(brief), "mean": found["mean"].map(_number)}
    shown |= {f"{level} seed": found[level].map(_number) for level in levels} | {"scores": found["scores"]}
    words = (
        f"{rows['features'].iloc[0]} features, split {rows['split'].iloc[0]}. Standard deviation of a score by its "
        "causes: nested components of variance, by the method of moments; 0 where a component came out negative, none "
        "where a level has one member (with one training seed a teacher, that of training is in that of teachers)."
    )
    return _part("Spread", words, [], "", _html(shown), f"All {len(found)} models")


def _search_lines(found: pd.DataFrame) -> str:
    shown = pd.DataFrame(
        {
            "model": found["label"],
            "size": found["size"],
            "dataset": found["dataset"],
            "judge": found["features"],
            "setting": found["setting"],
            "FD on train": found["fid"].map(_number),
            "runs": found["runs"],
            "chosen": found["chosen"].map({True: "yes", False: ""}),
        }
    )
    style = shown.style.hide(axis="index").set_uuid("search")
    bold = found["chosen"].map({True: "font-weight: 700", False: ""})
    return style.apply(lambda column: bold.tolist()).format(escape="html").to_html(table_attributes='class="scores"')


def _primary(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows by the judge that counts most, of one protocol a split."""
    judge = min(set(rows["features"]), key=comparisons.judge_order)
    return pd.concat([own for key, own in by_judge(rows) if key[2] == judge])


def _of_split(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the split that counts most."""
    return rows[rows["split"] == ("test" if (rows["split"] == "test").any() else rows["split"].iloc[0])]


def _first_protocol(rows: pd.DataFrame) -> pd.DataFrame:
    return min((group for _, group in rows.groupby(PROTOCOL)), key=_weight)


def _html(columns: dict[str, Iterable]) -> str:
    frame = pd.DataFrame({name: list(values) for name, values in columns.items()})
    return frame.to_html(index=False, na_rep="–", classes="scores", border=0)


def _number(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.3g}"


def _bounds(found: pd.DataFrame) -> list[str]:
    pairs = zip(found["low"], found["high"], strict=True)
    return [f"{_number(low)} to {_number(high)}" if pd.notna(low) else "–" for low, high in pairs]
