"""Executed notebooks to rows, and rows to tables: means, spreads and bests, never over two protocols."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from onestep_bench.errors import OnestepError
from onestep_bench.scoring.rows import FIELDS, LATER, MEASURED, QUALITIES, bundles_in

_ORDER = ["dataset", "label", "size", "train_seed", "sampler", "steps", "seed", "protocol", "weights", "model"]
_SAME_SCORE = ["model", "sampler", "steps", "seed", "weights", "protocol"]
_SAME_STRIP = ["dataset", "label", "size", "steps"]
PROTOCOL = ["dataset", "protocol"]
# Two budgets or two network shapes under one label are two points, never one mean.
_GROUP = ["dataset", "protocol", "features", "label", "size", "sampler", "steps", "weights", "params", "kimg"]
# Columns of a table, and which is better: of the metrics that it shows of all rows, and of what is measured beside.
_BETTER = {"precision": "higher", "recall": "higher", "class_gap": "lower"}
_COSTS = dict.fromkeys(("FID", "best", "parameters", "MACs", "kimg", "training s", "latency ms"), "lower")
_COSTS["images/s"] = "higher"
_NUMBERS = ["train_seed", "steps", "nfe", "seed", "fid", *QUALITIES, "params", "macs", "kimg", "samples", *MEASURED]


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_rows(notebooks: Path | Iterable[Path], outdated: Iterable[Path] = ()) -> pd.DataFrame:
    """Every score row in a folder of executed notebooks, or in the notebooks given: columns and order are fixed.

    A score that two notebooks recorded (both used one model) appears once. Older rows may lack `rows.LATER`: nothing
    stands in their place. Metrics beyond `rows.FIELDS` follow as columns of their own, and which is better of each is
    in `attrs["metrics"]`. outdated: notebooks that are to be executed again; what only they know is labelled so.
    Raises OnestepError for rows whose other keys are not those of `rows.FIELDS`, and for two
    notebooks that disagree about the score of one model.
    """
    found: dict[tuple, tuple[dict, Path]] = {}
    further: dict[str, str] = {}
    for path, bundle in _bundles(notebooks):
        own = bundle.get("metrics", {})
        further |= own
        for row in bundle["rows"]:
            row = dict.fromkeys(LATER) | row
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
        for row in bundle["rows"]:
            row = dict.fromkeys(LATER) | row
            if row.keys() == FIELDS.keys() | own.keys():
                row = {key: _plain(key, row[key]) for key in [*FIELDS, *own]} | {"label": _outdated(row["label"])}
                found.setdefault(tuple(row[key] for key in _SAME_SCORE), (row, path))
                further |= own
    rows = pd.DataFrame([row for row, _ in found.values()], columns=[*FIELDS, *further])
    # A column in which nothing was measured holds None: make it one of numbers.
    rows = rows.assign(**{name: pd.to_numeric(rows[name]) for name in [*_NUMBERS, *further]})
    rows = rows.sort_values(_ORDER, kind="stable", ignore_index=True)
    rows.attrs["metrics"] = further
    return rows


def read_strips(notebooks: Path | Iterable[Path], outdated: Iterable[Path] = ()) -> list[dict]:
    """Every sample strip in a folder of executed notebooks, or in the notebooks given, each with its `dataset`.

    One strip per (dataset, label, size, steps): that of the lowest training seed. outdated: as for `read_rows`.
    """
    strips = list(_strips(notebooks))
    current = {tuple(map(strip.get, _SAME_STRIP)) for strip in strips}
    old = (strip for strip in _strips(outdated) if tuple(map(strip.get, _SAME_STRIP)) not in current)
    strips += [strip | {"label": _outdated(strip["label"])} for strip in old]
    # A model from elsewhere has no training seed.
    strips.sort(key=lambda strip: (strip["train_seed"] or 0, str(strip["sampler"])))
    first: dict[tuple, dict] = {}
    for strip in strips:
        first.setdefault(tuple(strip[key] for key in _SAME_STRIP), strip)
    return sorted(first.values(), key=strip_order)


def _strips(notebooks: Path | Iterable[Path]) -> Iterator[dict]:
    for _, bundle in _bundles(notebooks):
        dataset = bundle["rows"][0]["dataset"] if bundle["rows"] else ""
        yield from ({**strip, "dataset": dataset} for strip in bundle["strips"])


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
    """A table cell: nested values as one line of JSON; a kernel's 'nan' (JSON has no NaN) as the number again."""
    if key in _NUMBERS and isinstance(value, str):
        return float(value)
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value


def strip_order(strip: dict) -> tuple:
    """Sort key of a sheet's rows: teachers first, then by model and steps."""
    teacher = is_teacher(strip["label"])
    within = (
        (-strip["steps"], strip["label"]) if teacher else (strip["label"], size_order(strip["size"]), strip["steps"])
    )
    return (str(strip["dataset"]), not teacher, *within)


def size_order(size: str) -> tuple[float, str]:
    """Sort key of named sizes: '0.05M' before '0.2M' before '15.7M'."""
    number = re.match(r"[\d.]+", str(size))
    return (float(number.group()) if number else float("inf"), str(size))


def is_teacher(label: str) -> bool:
    """Whether a label names the teacher; figures draw it in greys."""
    return label.startswith("teacher")


# ---- numbers ---------------------------------------------------------------------------------------------------------


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per (protocol, label, size, sampler, steps): FID over all sampling and training seeds, and its costs.

    A diverged seed (NaN) makes the mean NaN: it must not vanish from it. fid_std is the sample standard deviation, NaN
    for a single run; other columns are means over the runs.
    """

    def mean(values: pd.Series) -> float:
        return values.mean(skipna=False)

    further = rows.attrs.get("metrics", {})
    return rows.groupby(_GROUP, dropna=False, as_index=False, sort=True).agg(
        fid_mean=("fid", mean),
        fid_std=("fid", lambda values: values.std(skipna=False)),
        fid_min=("fid", "min"),
        precision=("precision", mean),
        recall=("recall", mean),
        class_gap=("class_gap", mean),
        **{name: (name, mean) for name in further},
        count=("fid", "size"),
        nfe=("nfe", mean),
        macs=("macs", mean),
        train_seconds=("train_seconds", mean),
        latency_ms=("latency_ms", mean),
        throughput=("throughput", mean),
    )


def table(rows: pd.DataFrame) -> Styler:
    """The summary as a table to look at, best FID first, the best of each column in bold.

    Raises OnestepError for rows of more than one protocol.
    """
    one_protocol(rows)
    better = _BETTER | rows.attrs.get("metrics", {})
    lines = summarise(rows).sort_values(["fid_mean", "label", "size", "steps"], kind="stable", ignore_index=True)
    shown = pd.DataFrame(
        {
            "model": lines["label"],
            "size": lines["size"],
            "sampler": lines["sampler"],
            "steps": lines["steps"],
            "NFE": lines["nfe"],
            "FID": lines["fid_mean"],
            "± std": lines["fid_std"],
            "best": lines["fid_min"],
            # Rows of small or old runs have none of these.
            **lines[list(better)].dropna(axis="columns", how="all"),
            "runs": lines["count"],
            "parameters": lines["params"],
            "MACs": lines["macs"],
            "kimg": lines["kimg"],
            "training s": lines["train_seconds"],
            "latency ms": lines["latency_ms"],
            "images/s": lines["throughput"],
        }
    )
    # NFE, steps and the like are settings, not results; a column in which all are equal has no best.
    lowest, highest = (
        [name for name in shown if {**better, **_COSTS}.get(name) == side and shown[name].nunique() > 1]
        for side in ("lower", "higher")
    )
    bold = "font-weight: 700"
    style = shown.style.hide(axis="index").set_uuid("scores")
    style = style.highlight_min(lowest, props=bold).highlight_max(highest, props=bold)
    return style.format(
        {
            **dict.fromkeys(["FID", "± std", "best", "training s", "latency ms", "images/s"], _measured),
            **dict.fromkeys([name for name in better if name in shown], "{:.3f}"),
            **dict.fromkeys(["NFE", "kimg"], brief),
            **dict.fromkeys(["parameters", "MACs"], millions),
        },
        na_rep="–",
        escape="html",
    )


def drawable(rows: pd.DataFrame) -> pd.DataFrame:
    """The lines of the summary that a logarithmic axis can show: not those of diverged runs."""
    lines = summarise(rows)
    return lines[np.isfinite(lines["fid_mean"]) & (lines["fid_mean"] > 0)]


def brief(value: float) -> str:
    """Three significant digits, but never fewer than the whole number."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _measured(value: float) -> str:
    """As `brief`, with its zeros: columns of measurements line up."""
    return brief(value) if abs(value) >= 100 else f"{value:#.3g}"


def millions(value: float) -> str:
    """A parameter count as text, in millions."""
    return f"{value / 1e6:.3g}M"


def one_protocol(rows: pd.DataFrame) -> None:
    """Raise OnestepError unless there are rows and all are of one data set and protocol."""
    if rows.empty:
        raise OnestepError("nothing to draw: no score rows")
    protocols = rows[PROTOCOL].drop_duplicates()
    if len(protocols) > 1:
        names = "; ".join(f"{dataset}: {protocol}" for dataset, protocol in protocols.itertuples(index=False))
        raise OnestepError(f"scores of {len(protocols)} protocols cannot be compared in one plot or table ({names})")
