"""Rows to what a report's page sorts, filters and draws: one point per model, number of steps, judge and split.

Plain lists and dicts, ready for JSON, in which nothing is NaN. A table is {columns, rows}: a column says its key, title
and kind ('text', 'number', 'measured', 'big', 'interval'), and how soon it is left out where there is little room.
"""

import math
from collections.abc import Iterable

import pandas as pd

from onestep_bench.report import comparisons
from onestep_bench.report.colours import looks
from onestep_bench.report.recipes import differing, results
from onestep_bench.report.statistics import by_judge, largest_budget
from onestep_bench.report.tables import BUSY, GROUP, PROTOCOL, is_teacher, size_order, summarise


def column(key: str, title: str, kind: str = "text", rank: int = 0, about: str = "") -> dict:
    """A column of a page's table."""
    return {"key": key, "title": title, "kind": kind, "rank": rank, "about": about}


_MOST_SETTINGS = 8  # columns of swept settings
_NO_SETTINGS = ("size", "version", "data", "kimg", "classes", "teacher", "init")
# Key, title, kind, rank (0 stands at any width, the largest goes first; 9 stands only if asked for), what it is.
_COLUMNS = [
    ("label", "method", "text", 0, "what the notebook calls the model"),
    ("size", "size", "text", 1, "named network size"),
    ("steps", "steps", "number", 0, "sampler steps"),
    ("fid", "{score}", "measured", 0, "{distance}: mean over training runs of the means over sampling seeds"),
    ("interval", "95 % interval", "interval", 2, "t interval over training runs"),
    ("runs", "runs", "number", 3, "training runs, each with a teacher and training seed of its own where there are"),
    ("seeds", "seeds", "number", 9, "sampling seeds a run"),
    ("seed_std", "spread of seeds", "measured", 9, "standard deviation over the sampling seeds within a run"),
    ("lowest", "lowest", "measured", 5, "the lowest of all seeds of all runs, as papers report it"),
    ("fid_snapshot", "best snapshot", "measured", 6, "mean over runs of the lowest mean of any snapshot"),
    ("nfe", "NFE", "number", 3, "network evaluations a sample, counted"),
    ("sampler", "sampler", "text", 4, "what draws the samples"),
    ("saw", "saw", "text", 4, "what training showed the model"),
    ("kimg", "kimg", "number", 4, "thousands of training images over the whole lineage"),
    ("passes", "passes (k)", "number", 3, "thousands of images through a network over the whole lineage"),
    ("train_macs", "train MACs", "big", 7, "multiply-accumulates of training over the whole lineage"),
    ("seconds", "seconds", "measured", 6, "training and making pairs, whole lineage, median over runs"),
    ("latency_ms", "latency ms", "measured", 5, "median time to draw one image"),
    ("throughput", "images/s", "measured", 9, "images a second at the evaluation batch"),
    ("params", "parameters", "big", 9, "parameters of the network"),
    ("macs", "MACs", "big", 9, "multiply-accumulates of one evaluation of one image"),
    ("floor", "floor", "measured", 9, "what real images of the other split score"),
    ("nn_ratio", "NN ratio", "measured", 6, "nearest-neighbour ratio: 1 as new as held-out images, 0 copies"),
    ("fd_infinity", "FD-infinity", "measured", 8, "the distance extrapolated to infinitely many samples"),
    ("kid", "KID", "measured", 8, "kernel distance, unbiased, all pairs"),
    ("precision", "precision", "measured", 7, "share of samples among the reference (k-NN)"),
    ("recall", "recall", "measured", 7, "share of the reference among the samples (k-NN)"),
    ("density", "density", "measured", 9, "as precision, but counting how often"),
    ("coverage", "coverage", "measured", 9, "share of the reference with a sample near it (k-NN)"),
    ("inception_score", "inception score", "measured", 9, "exp of the mean KL divergence of the judge's classes"),
    ("class_gap", "class gap", "measured", 9, "distance between the judge's shares of classes, 0 to 1"),
    ("weights", "weights", "text", 9, "'ema' or 'last'"),
    ("models", "models", "text", 9, "store keys of the models, one a run"),
    ("recipe", "recipe", "text", 9, "hash of how it was trained over the whole lineage"),
]  # fmt: skip
_JUDGED = [
    column("label", "method"),
    column("size", "size", "text", 2),
    column("steps", "steps", "number"),
    column("x", "first distance", "measured"),
    column("y", "second distance", "measured"),
    column("first", "first judge", "text", 3),
    column("second", "second judge", "text", 3),
    column("split", "split", "text", 1),
    column("sampler", "sampler", "text", 4),
    column("kimg", "kimg", "number", 5),
    column("dataset", "data set", "text", 6),
]
# What the page can draw in the place of the distance, and which is better.
_SCORES = {"fd_infinity": "lower", "kid": "lower", "precision": "higher", "recall": "higher", "density": "higher"}
_SCORES |= {"coverage": "higher", "class_gap": "lower", "nn_ratio": "higher", "inception_score": "higher"}


def is_fid(features: str) -> bool:
    """Whether the Frechet distance before a judge may be called FID: of Inception's features alone."""
    return features.startswith("inception")


def distance_name(features: Iterable[str]) -> str:
    """'FID' where all judges are Inception networks, else 'Fréchet distance'."""
    return "FID" if all(map(is_fid, features)) else "Fréchet distance"


def plain(frame: pd.DataFrame, columns: list[dict]) -> dict:
    """A page's table of a frame: its columns, and a list of values for each row."""
    values = [[_json(value) for value in frame[one["key"]]] for one in columns]
    return {"columns": columns, "rows": [list(row) for row in zip(*values, strict=True)]}


def _json(value: object) -> object:
    """A value as JSON has it: numbers to five digits, None for what is not known."""
    if value is None or isinstance(value, str | list):
        return value
    if pd.isna(value) or math.isinf(value):
        return None
    if value == int(value) and abs(value) < 2**53:
        return int(value)
    return float(f"{value:.5g}")


def score_table(rows: pd.DataFrame) -> dict:
    """All scores of a report: {columns, rows, places, scores, looks}, of rows as `read_rows` returns them.

    places: the protocols, that which counts most first; `place` is their index in a row. scores: what can be drawn.
    A row of a smaller budget than its label has elsewhere is told by `last` False.
    """
    recipes = rows.attrs.get("recipes", {})
    metrics = rows.attrs.get("metrics", {})
    rows = results(rows)
    lines = summarise(rows).rename(columns={"fid_mean": "fid", "fid_min": "lowest", "train_seconds": "seconds"})
    settings, lines = _swept(rows, lines, recipes)
    lines = lines.merge(_models(rows), on=GROUP, how="left").merge(_largest(rows), on=GROUP, how="left")
    places = _places(rows)
    index = {(place["dataset"], place["split"], place["protocol"]): i for i, place in enumerate(places)}
    lines["place"] = [index[key] for key in zip(*(lines[name] for name in PROTOCOL), strict=True)]
    lines["interval"] = [_json_bounds(low, high) for low, high in zip(lines["fid_low"], lines["fid_high"], strict=True)]
    lines["busy"] = lines["busy"] > BUSY
    lines["teacher"] = lines["label"].map(is_teacher)
    lines["order"] = lines["size"].map(size_order)
    lines = lines.sort_values(["place", "fid", "label", "order", "steps"], kind="stable", ignore_index=True)
    shown = _shown(lines, rows, settings, metrics)
    hidden = [column(key, key, rank=-1) for key in ("place", "last", "busy", "teacher")]
    known = {"fid": "lower", **_SCORES, **metrics}
    titles = {one["key"]: one["title"] for one in shown}
    return plain(lines, shown + hidden) | {
        "places": places,
        "scores": [{"key": key, "title": titles[key], "better": side} for key, side in known.items() if key in titles],
        "looks": {label: [look.colour, look.shape] for label, look in looks(lines["label"]).items()},
        "sizes": sorted(set(lines["size"]), key=size_order),
        "steps": sorted(int(count) for count in set(lines["steps"])),
        "first_size": comparisons.at_one_place(rows)["size"].iloc[0] if len(rows) else None,
    }


def _json_bounds(low: float, high: float) -> list[float] | None:
    return None if pd.isna(low) else [_json(low), _json(high)]


def _shown(lines: pd.DataFrame, rows: pd.DataFrame, settings: list[str], metrics: dict[str, str]) -> list[dict]:
    """The columns of which something is known, settings that were swept after the method's size."""
    name = distance_name(set(rows["features"]))
    words = {"score": "FID" if name == "FID" else "FD", "distance": name}
    columns = [column(*(part.format(**words) if isinstance(part, str) else part for part in one)) for one in _COLUMNS]
    several = lines["kimg"].groupby([lines["label"], lines["size"]]).nunique()
    for one in columns:
        if one["key"] == "kimg" and (several > 1).any():
            one["rank"] = 1  # or four lines would look alike
    taken = {one["title"] for one in columns}
    titles = {key: f"{key} (setting)" if key in taken else key for key in settings}
    swept = [
        column(f"set {key}", titles[key], _kind(values), 9 if "." in key else 2 if values.notna().mean() > 0.5 else 6)
        for key, values in ((key, lines[f"set {key}"]) for key in settings)
    ]
    columns = columns[:2] + swept + columns[2:]
    columns += [column(key, key, "measured", 8, f"metric; {side} is better") for key, side in metrics.items()]
    return [one for one in columns if one["rank"] == 0 or lines[one["key"]].notna().any()]


def _kind(values: pd.Series) -> str:
    known = values.dropna()
    return "number" if len(known) and known.map(lambda value: isinstance(value, int | float)).all() else "text"


def _swept(rows: pd.DataFrame, lines: pd.DataFrame, recipes: dict[str, dict]) -> tuple[list[str], pd.DataFrame]:
    """The settings in which recipes of one method's label differ, a column `set NAME` each.

    A method's own setting goes by its last word (lr), so that methods share a column; others by their whole name.
    """
    found: list[str] = []
    owner = dict(zip(rows["recipe"], rows["method"], strict=True))
    for _, own in rows.groupby(["family", "method"]):
        methods = set(own["method"])
        hashes = sorted(set(own["recipe"].dropna()) & recipes.keys())
        names = [name for name in differing(hashes, recipes, methods) if name.rpartition(".")[2] not in _NO_SETTINGS]
        # What only one of them has tells of another lineage, and its label says so.
        names = [name for name in names if all(recipes[one].get(name) is not None for one in hashes)]
        found += [_short(name, methods) for name in names]
    settings = list(dict.fromkeys(found))[:_MOST_SETTINGS]

    def value(recipe: str, key: str) -> object:
        known = recipes.get(recipe, {})
        told = known.get(key if "." in key else f"{owner.get(recipe)}.{key}")
        return told if isinstance(told, str | int | float) or told is None else str(told)

    columns = {f"set {key}": [value(recipe, key) for recipe in lines["recipe"]] for key in settings}
    return settings, lines.assign(**{key: pd.Series(values, dtype=object) for key, values in columns.items()})


def _short(name: str, methods: set[str]) -> str:
    method, _, last = name.rpartition(".")
    return last if method in methods else name


def _models(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each line of the summary: the models behind it."""
    named = rows.groupby(GROUP, dropna=False)["model"]
    return named.agg(lambda names: ", ".join(sorted(set(names.astype(str))))).rename("models").reset_index()


def _largest(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each line of the summary: whether it is of its label's largest budget."""
    last = largest_budget(rows).index
    own = rows.assign(last=rows.index.isin(last))
    return own.groupby(GROUP, dropna=False)["last"].any().reset_index()


def _places(rows: pd.DataFrame) -> list[dict]:
    groups = sorted((own for _, own in rows.groupby(PROTOCOL)), key=weight)
    return [
        {
            **{name: own[name].iloc[0] for name in ("dataset", "features", "split", "protocol")},
            "samples": _json(own["samples"].max()),
            "floor": _json(own["floor"].mean()),
            "name": distance_name({own["features"].iloc[0]}),
        }
        for own in groups
    ]


def weight(rows: pd.DataFrame) -> tuple:
    """Sort key of the rows of one protocol: of a data set first the test split, by a judge that knows classes."""
    first = rows.iloc[0]
    judge = comparisons.judge_order(first["features"])
    return first["dataset"], judge[0], first["split"] != "test", first["split"], judge[1], first["protocol"]


def judged(rows: pd.DataFrame) -> dict | None:
    """Every model's distance before two judges, a row a data set and split; None where there is one judge only."""
    rows = results(rows)
    found = []
    for (dataset, split), own in rows.groupby(["dataset", "split"]):
        lines = {key[2]: summarise(judged) for key, judged in by_judge(own)}
        first, second = [*sorted(lines, key=comparisons.judge_order), None, None][:2]
        if second is None:
            continue
        key = ["label", "size", "saw", "recipe", "sampler", "steps", "weights", "params", "kimg"]
        both = lines[first].merge(lines[second], on=key, suffixes=("_x", "_y"))
        both = both.assign(dataset=dataset, split=split, first=first, second=second)
        found.append(both.rename(columns={"fid_mean_x": "x", "fid_mean_y": "y"}))
    if not found:
        return None
    return plain(pd.concat(found), _JUDGED)
