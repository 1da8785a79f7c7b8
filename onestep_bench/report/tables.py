"""Executed notebooks to rows, and rows to tables: means, spreads and bests, never over two protocols."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from onestep_bench.errors import OnestepError
from onestep_bench.report.recipes import results
from onestep_bench.report.statistics import RUN, interval
from onestep_bench.scoring.rows import FIELDS, LATER, MEASURED, QUALITIES, bundles_in

_ORDER = ["dataset", "label", "size", "teacher_seed", "train_seed", "sampler", "steps", "seed", "protocol", "split"]
_ORDER += ["weights", "kimg", "model"]
_SAME_SCORE = ["model", "sampler", "steps", "seed", "weights", "kimg", "protocol", "split"]
_SAME_STRIP = ["dataset", "label", "size", "saw", "recipe", "sampler", "steps", "kimg"]
_ON_STRIP = ("label", "size", "sampler", "steps", "train_seed")
PROTOCOL = ["dataset", "split", "protocol"]
# Two budgets, two network shapes or two recipes under one label are two points, never one mean.
_MODEL = [*PROTOCOL, "features", "label", "size", "saw", "recipe", "sampler", "steps", "weights", "params"]
GROUP = [*_MODEL, "kimg"]
_READ = ("fid", "floor", "nn_ratio", *QUALITIES, "nfe", "macs", "passes", "train_macs", "throughput")
# Which is better, of the metrics that a table shows of all rows, and of its other columns.
_BETTER = {"precision": "higher", "recall": "higher", "density": "higher", "coverage": "higher"}
_BETTER |= {"inception score": "higher", "class gap": "lower"}
_COSTS = dict.fromkeys(
    ("FD", "FID", "FD-infinity", "KID", "passes (k)", "train MACs", "seconds", "latency ms"), "lower"
)
NUMBERS = ["teacher_seed", "train_seed", "steps", "nfe", "seed", "fid", "floor", "nn_ratio", *QUALITIES, "params"]
NUMBERS += ["macs", "kimg", "passes", "train_macs", "samples", *MEASURED]
BUSY = 0.5  # cores that something else had, above which measured seconds are marked


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_rows(notebooks: Path | Iterable[Path], outdated: Iterable[Path] = ()) -> pd.DataFrame:
    """Every score row in a folder of executed notebooks, or in the notebooks given: columns and order are fixed.

    A score that two notebooks recorded (both used one model) appears once. Older rows may lack `rows.LATER`: its
    values stand in their place. Metrics beyond `rows.FIELDS` follow as columns of their own, and which is better of
    each is in `attrs["metrics"]`; what recipes say is in `attrs["recipes"]`. outdated: notebooks that are to be
    executed again; what only they know is labelled so.
    Raises OnestepError for rows whose other keys are not those of `rows.FIELDS`, and for two notebooks that disagree
    about the score of one model.
    """
    found: dict[tuple, tuple[dict, Path]] = {}
    further: dict[str, str] = {}
    recipes: dict[str, dict] = {}
    for path, bundle in _bundles(notebooks):
        own = bundle.get("metrics", {})
        further |= own
        recipes |= bundle.get("recipes", {})
        for row in bundle["rows"]:
            row = LATER | row
            known = FIELDS.keys() | own.keys()
            if row.keys() != known:
                keys = ", ".join(sorted(row.keys() ^ known))
                raise OnestepError(f"{path}: a score row of another version (differs in: {keys}); run that cell again")
            row = {key: _plain(key, row[key]) for key in [*FIELDS, *own]}
            first, owner = found.setdefault(tuple(row[key] for key in _SAME_SCORE), (row, path))
            if repr(first["fid"]) != repr(row["fid"]):
                raise OnestepError(
                    f"{owner.name} and {path.name} score one model ({row['label']}, {row['steps']} steps) differently: "
                    f"{first['fid']} and {row['fid']}; delete the older one and run again"
                )
    for path, bundle in _bundles(outdated):
        own = bundle.get("metrics", {})
        recipes = bundle.get("recipes", {}) | recipes
        for row in bundle["rows"]:
            row = LATER | row
            if row.keys() == FIELDS.keys() | own.keys():
                row = {key: _plain(key, row[key]) for key in [*FIELDS, *own]} | {"label": _outdated(row["label"])}
                found.setdefault(tuple(row[key] for key in _SAME_SCORE), (row, path))
                further |= own
    rows = pd.DataFrame([row for row, _ in found.values()], columns=[*FIELDS, *further])
    # A column in which nothing was measured holds None: make it one of numbers.
    rows = rows.assign(**{name: pd.to_numeric(rows[name]) for name in [*NUMBERS, *further]})
    rows = rows.sort_values(_ORDER, kind="stable", ignore_index=True)
    rows.attrs.update(metrics=further, recipes=recipes)
    return rows


def read_strips(notebooks: Path | Iterable[Path], outdated: Iterable[Path] = ()) -> list[dict]:
    """Every sample strip in a folder of executed notebooks, or in the notebooks given, each with its `dataset`.

    One strip per model, sampler and number of steps: that of the lowest training seed. Strips that do not tell their
    model's recipe and what it saw take both from their notebook's rows. outdated: as for `read_rows`.
    """
    strips = list(_strips(notebooks))
    current = {tuple(map(strip.get, _SAME_STRIP)) for strip in strips}
    old = (strip for strip in _strips(outdated) if tuple(map(strip.get, _SAME_STRIP)) not in current)
    strips += [strip | {"label": _outdated(strip["label"])} for strip in old]
    strips.sort(key=lambda strip: strip["train_seed"] or 0)  # a model from elsewhere has none
    first: dict[tuple, dict] = {}
    for strip in strips:
        first.setdefault(tuple(strip[key] for key in _SAME_STRIP), strip)
    return sorted(first.values(), key=strip_order)


def _strips(notebooks: Path | Iterable[Path]) -> Iterator[dict]:
    for _, bundle in _bundles(notebooks):
        dataset = bundle["rows"][0]["dataset"] if bundle["rows"] else ""
        yield from (_trained(bundle["rows"], strip) | strip | {"dataset": dataset} for strip in bundle["strips"])


def _trained(rows: list[dict], strip: dict) -> dict:
    """Budget, recipe and what was seen of a strip's model, as far as the rows beside it can mean only one."""
    same = [row for row in rows if all(row[name] == strip[name] for name in _ON_STRIP)]
    told = {name: {row.get(name) for row in same} for name in ("kimg", "saw", "recipe")}
    return {name: values.pop() if len(values) == 1 else None for name, values in told.items()}


def _outdated(label: str) -> str:
    return f"{label} (outdated)"


def _bundles(notebooks: Path | Iterable[Path]) -> Iterable[tuple[Path, dict]]:
    paths = executed_in(notebooks) if isinstance(notebooks, Path) else notebooks
    return ((path, bundle) for path in paths for bundle in bundles_in(path))


def executed_in(folder: Path) -> list[Path]:
    """The finished notebooks in a folder: neither failed nor partial ones."""
    return sorted(
        path for path in folder.glob("*.ipynb") if not path.name.startswith(".") and ".failed." not in path.name
    )


def _plain(key: str, value: object) -> object:
    """A table cell: a kernel's 'nan' (JSON has no NaN) as the number again."""
    return float(value) if key in NUMBERS and isinstance(value, str) else value


def strip_order(strip: dict) -> tuple:
    """Sort key of a sheet's rows: teachers first, then by model and steps."""
    teacher = is_teacher(strip["label"])
    within = (
        (-strip["steps"], strip["label"]) if teacher else (strip["label"], size_order(strip["size"]), strip["steps"])
    )
    return (str(strip["dataset"]), not teacher, *within)


def split_words(split: str) -> str:
    """What a split is called in a sentence; one that is none of ours as it is."""
    return {"all": "all images", "train": "training images", "test": "held-out images"}.get(split, f"split {split}")


def size_order(size: str) -> tuple[float, str]:
    """Sort key of named sizes: '0.05M' before '0.2M' before '15.7M'."""
    number = re.match(r"\d+(\.\d+)?", str(size))
    return (float(number.group()) if number else float("inf"), str(size))


def is_teacher(label: str) -> bool:
    """Whether a label names the teacher; figures draw it in greys."""
    return label.startswith("teacher")


# ---- numbers ---------------------------------------------------------------------------------------------------------


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per model, protocol, sampler and number of steps: scores over its training runs, and its costs.

    The unit is the training run (teacher seed, training seed): first a mean over the sampling seeds of each, then over
    runs. fid_low, fid_high: the 95 % t interval of fid_mean; fid_std: the standard deviation of the runs' means; both
    NaN for one run. seed_std: that over sampling seeds within a run (root mean square). runs, seeds: their numbers,
    sampling seeds a run at most. fid_snapshot: mean over runs of the lowest mean of any snapshot of the run, where it
    has several; fid_min: the lowest of all seeds of all runs. train_seconds and latency_ms are medians, busy is the
    largest, other columns are means over runs. A diverged seed (NaN) makes the mean NaN: it must not vanish from it.
    Rows of searches are left out, and unequal recipes never averaged: see `recipes.results`.
    """
    rows = results(rows)
    read = [*_READ, *rows.attrs.get("metrics", {})]
    run = [*GROUP, *RUN, "model"]
    runs = _means(rows, run, read).merge(_once_a_run(rows, run), on=run)
    runs["fid_snapshot"] = _best_snapshot(runs)
    lines = _means(runs, GROUP, read).rename(columns={"fid": "fid_mean"})
    fid = runs.groupby(GROUP, dropna=False, sort=True)
    bounds = [interval(values) for _, values in fid["fid"]]
    more = fid.agg(
        fid_std=("fid", "std"),
        seed_std=("seed_var", lambda values: values.mean(skipna=False) ** 0.5),
        fid_min=("fid_min", "min"),
        fid_snapshot=("fid_snapshot", lambda values: values.mean(skipna=False)),
        runs=("fid", "size"),
        seeds=("seeds", "max"),
        train_seconds=("train_seconds", "median"),
        busy=("busy", "max"),
        latency_ms=("latency_ms", "median"),
    )
    more["fid_std"] = more["fid_std"].where(fid["fid"].count() == fid.size())
    more.insert(0, "fid_low", [bound.low for bound in bounds])
    more.insert(1, "fid_high", [bound.high for bound in bounds])
    more = more.reset_index(drop=True)  # the same groups in the same order
    return pd.concat([lines[[*GROUP, "fid_mean"]], more, lines[[name for name in read if name != "fid"]]], axis=1)


def _means(rows: pd.DataFrame, by: list[str], columns: list[str]) -> pd.DataFrame:
    """Means of groups; NaN where one value is."""
    grouped = rows.groupby(by, dropna=False, sort=True)[columns]
    means = grouped.mean()
    return means.where(grouped.count().eq(grouped.size(), axis=0)).reset_index()


def _once_a_run(rows: pd.DataFrame, run: list[str]) -> pd.DataFrame:
    return rows.groupby(run, dropna=False, as_index=False, sort=True).agg(
        seed_var=("fid", "var"),
        fid_min=("fid", "min"),
        seeds=("fid", "size"),
        train_seconds=("train_seconds", "median"),
        busy=("busy", "max"),
        latency_ms=("latency_ms", "median"),
    )


def _best_snapshot(runs: pd.DataFrame) -> pd.Series:
    """Lowest mean among the budgets of one training run: of one recipe and its seeds, so that there was one training.

    It stands at the largest of them; elsewhere, and where there is but one, is NaN.
    """
    same = [*_MODEL, *RUN]
    budgets = runs.groupby(same, dropna=False)["kimg"]
    last = (budgets.transform("nunique") > 1) & (runs["kimg"] == budgets.transform("max")) & runs["recipe"].notna()
    return runs.groupby(same, dropna=False)["fid"].transform("min").where(last)


def table(rows: pd.DataFrame) -> Styler:
    """The summary as a table to look at, best score first, the best of each column in bold.

    Raises OnestepError for rows of more than one protocol.
    """
    rows = results(rows)
    one_protocol(rows)
    better = _BETTER | rows.attrs.get("metrics", {})
    lines = summarise(rows).sort_values(["fid_mean", "label", "size", "steps"], kind="stable", ignore_index=True)
    score = "FID" if rows["features"].iloc[0].startswith("inception") else "FD"
    shown = pd.DataFrame(
        {
            "model": lines["label"],
            "saw": lines["saw"],
            "size": lines["size"],
            "sampler": lines["sampler"],
            "steps": lines["steps"],
            "NFE": lines["nfe"],
            "kimg": lines["kimg"],
            # Names of shapes and weights, where these alone would tell two lines apart.
            **{name: lines[name] for name in ("params", "weights") if _tells_apart(lines, name)},
            score: lines["fid_mean"],
            "95 % interval": [_interval(line) for line in lines.itertuples()],
            # Of one draw the mean is it; papers report the lowest of several.
            "min over seeds": lines["fid_min"].where(lines["seeds"] * lines["runs"] > 1),
            "runs": lines["runs"],
            "best snapshot": lines["fid_snapshot"],
            "FD-infinity": lines["fd_infinity"],
            "floor": lines["floor"],
            "NN ratio": lines["nn_ratio"],
            "KID": lines["kid"],
            "precision": lines["precision"],
            "recall": lines["recall"],
            "density": lines["density"],
            "coverage": lines["coverage"],
            "inception score": lines["inception_score"],
            "class gap": lines["class_gap"],
            **lines[list(rows.attrs.get("metrics", {}))],
            "passes (k)": lines["passes"],
            "train MACs": lines["train_macs"],
            "seconds": lines["train_seconds"],
            "latency ms": lines["latency_ms"],
        }
    )
    # Rows of small or old runs lack some.
    named = shown.columns.get_loc(score)
    shown = shown.drop(columns=[name for name in shown.columns[named:] if shown[name].isna().all()])
    # NFE, steps and the like are settings, not results; a column in which all are equal has no best.
    lowest, highest = (
        [name for name in shown if {**better, **_COSTS}.get(name) == side and shown[name].nunique() > 1]
        for side in ("lower", "higher")
    )
    bold = "font-weight: 700"
    style = shown.style.hide(axis="index").set_uuid("scores")
    style = style.highlight_min(lowest, props=bold).highlight_max(highest, props=bold)
    style = style.format(
        {
            **dict.fromkeys(
                {score, "min over seeds", "best snapshot", "FD-infinity", "floor", "latency ms"} & set(shown), measured
            ),
            **dict.fromkeys([name for name in [*better, "KID", "NN ratio"] if name in shown], "{:.3f}"),
            **dict.fromkeys({"NFE", "kimg", "passes (k)"} & set(shown), brief),
            **dict.fromkeys({"train MACs"} & set(shown), large),
            **dict.fromkeys({"seconds"} & set(shown), measured),
        },
        na_rep="–",
        escape="html",
    )
    if "seconds" not in shown:
        return style
    # Seconds that were measured beside other work carry a star; it is of the cell's text, not of its value.
    crowded = lines.index[(lines["busy"] > BUSY) & lines["train_seconds"].notna()]
    return style.format("{:.0f}*", subset=(crowded, "seconds")) if len(crowded) else style


def _tells_apart(lines: pd.DataFrame, name: str) -> bool:
    """Whether two lines are equal in all that a table shows of how they were made, but for this."""
    place = ["label", "saw", "size", "sampler", "steps", "kimg"]
    return bool((lines.groupby(place, dropna=False)[name].nunique() > 1).any())


def _interval(line: tuple) -> str | None:
    return f"{measured(line.fid_low)} to {measured(line.fid_high)}" if np.isfinite(line.fid_low) else None


def drawable(rows: pd.DataFrame) -> pd.DataFrame:
    """The lines of the summary that a logarithmic axis can show: not those of diverged runs."""
    lines = summarise(rows)
    return lines[np.isfinite(lines["fid_mean"]) & (lines["fid_mean"] > 0)]


def brief(value: float) -> str:
    """Three significant digits, but never fewer than the whole number."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def measured(value: float) -> str:
    """As `brief`, with its zeros: columns of measurements line up."""
    return brief(value) if abs(value) >= 100 else f"{value:#.3g}"


def large(value: float) -> str:
    """A number of many digits as text: 1.5e+12 as '1.5T'."""
    for size, name in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{name}"
    return f"{value:.3g}"


def millions(value: float) -> str:
    """A parameter count as text, in millions."""
    return f"{value / 1e6:.3g}M"


def one_protocol(rows: pd.DataFrame) -> None:
    """Raise OnestepError unless there are rows and all are of one data set and protocol."""
    if rows.empty:
        raise OnestepError("nothing to draw: no score rows")
    protocols = rows[PROTOCOL].drop_duplicates()
    if len(protocols) > 1:
        names = "; ".join(f"{data}, {split}: {protocol}" for data, split, protocol in protocols.itertuples(index=False))
        raise OnestepError(f"scores of {len(protocols)} protocols cannot be compared in one plot or table ({names})")
