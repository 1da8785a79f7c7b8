"""Executed notebooks to tables, figures and one HTML page: a pure function of the notebooks, equal bytes every time.

The page holds all it needs: data, figures' specifications, what draws them, and its own scripts (`web/`). Scores are
comparable only under one protocol: tables and figures show those of one, and the page's filters choose which.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from onestep_bench import __version__
from onestep_bench.grid.cells import Cell, Grid, Status, executed_path, failed_path, status_of
from onestep_bench.report import charts, kept, provenance
from onestep_bench.report.executed import as_pages, environment
from onestep_bench.report.headline import headline
from onestep_bench.report.points import distance_name, score_table
from onestep_bench.report.recipes import extended, results
from onestep_bench.report.samples import named, on_page, one_a_name, sample_sheet
from onestep_bench.report.sections import FILES, across, endings, protocols, save, sizes_differ
from onestep_bench.report.tables import BUSY, executed_in, read_rows, read_strips, summarise
from onestep_bench.store.files import write_text

_STATES = ("done", "outdated", "failed", "to do")


def render(source: Grid | Path, out: Path | None = None, *, lean: bool = False) -> Path:
    """Write results.csv, summary.csv, figures, the notebooks' pages and report.html into `out`; the latter's path.

    source: a grid, or a folder of executed notebooks, or one that has only the results.csv of an earlier report. Of a
    grid's cells that are outdated the rows are labelled so. out: default the grid's own folder, or `source`. With
    several protocols each has figures of its own, named after data set and features. Figures of an earlier rendering
    that no longer exist are removed. lean: write what a repository keeps: no SVG, no pages of notebooks, but
    results.csv.gz; the report leads to the notebooks themselves, or, where they lie outside of `out`, keeps what they
    recorded.
    """
    found = _found(source)
    out = out or found.home
    rows, recorded = _read(found)
    strips = named(recorded, extended(rows))
    apart = lean and not _beside(found, out)
    table = kept.write(rows, recorded, out, packed=lean, record=apart)
    if not apart and not found.table:
        (out / kept.RECORD).unlink(missing_ok=True)
    write_text(out / "summary.csv", summarise(rows).to_csv(index=False, lineterminator="\n"))
    scores, kinds = results(rows), ("png",) if lean else ("png", "svg")
    prints, parts = protocols(scores, out, kinds), across(scores, rows, out, kinds)
    sheets = _draw_sheets(one_a_name(strips), out)
    _remove_stale(out, {name for part in [*prints, *parts, *sheets] for name in part["files"]})
    origin = provenance.tables(rows, [*found.notebooks, *found.outdated])
    page = environment().get_template("report.html")
    text = page.render(
        _told(found, out, lean, apart),
        table=table,
        headline=headline(scores),
        notes=_notes(scores),
        parts=[part | {"tables": [table["caption"] for table in part["tables"]]} for part in parts],
        prints=[*prints, *({"words": part["title"], "files": part["files"]} for part in parts), *sheets],
        strips=len(strips),
        recipes=bool(rows.attrs.get("recipes")),
        kept=not apart,
        nearest=any(strip.get("nearest") for strip in strips),
        rows=len(rows),
        sources=provenance.sources(rows),
        origin=[table["caption"] for table in origin],
        version=__version__,
        data=_embedded(_data(rows, parts, origin, strips)),
        vega=charts.scripts() if len(scores) else "",
    )
    write_text(out / "report.html", text)
    return out / "report.html"


class _Found(NamedTuple):
    """What there is to report. statuses: of a grid's cells. home: where its report goes by default.

    table: scores of an earlier report, where there are no notebooks.
    """

    grid: Grid | None
    statuses: list[Status]
    folder: Path
    home: Path
    notebooks: list[Path]
    outdated: list[Path]
    failed: list[Path]
    table: Path | None = None


def _found(source: Grid | Path) -> _Found:
    if not isinstance(source, Grid):
        notebooks, failed = executed_in(source), sorted(source.glob("*.failed.ipynb"))
        table = None if notebooks or failed else kept.results_in(source)
        return _Found(None, [], source, source, notebooks, [], failed, table)
    folder = source.executed
    statuses = [status_of(cell, folder) for cell in source.cells]

    def those(*states: str, path: Callable[[Cell, Path], Path] = executed_path) -> list[Path]:
        return sorted(path(status.cell, folder) for status in statuses if status.state in states)

    # One that failed when it was run again is outdated too.
    outdated = list(filter(Path.exists, those("outdated", "failed")))
    failed = those("failed", path=failed_path)
    return _Found(source, statuses, folder, source.out, those("done"), outdated, failed)


def _read(found: _Found) -> tuple[pd.DataFrame, list[dict]]:
    """Rows and strips."""
    if found.table:
        return kept.read_results(found.table), kept.read_record(found.table.parent)["strips"]
    return read_rows(found.notebooks, found.outdated), read_strips(found.notebooks, found.outdated)


def _beside(found: _Found, out: Path) -> bool:
    """Whether the notebooks are in the report's folder, and go where it goes."""
    notebooks = [*found.notebooks, *found.outdated]
    return bool(notebooks) and all(path.resolve().is_relative_to(out.resolve()) for path in notebooks)


def _told(found: _Found, out: Path, lean: bool, apart: bool) -> dict:
    """What the page says of its grid or folder; the notebooks' own pages are written along with it."""
    grid, folder, statuses = found.grid, found.folder, found.statuses
    name = out.resolve().name if folder.resolve().name == "notebooks" else folder.resolve().name
    read = len(found.notebooks) + len(found.outdated)
    notebooks = [*found.notebooks, *found.outdated, *found.failed]
    made = as_pages([] if lean else notebooks, out / "executed")
    pages = {path: path for path in notebooks if not apart} if lean else made
    lines = provenance.cells(statuses, folder, pages, out) if grid else provenance.notebooks_of(folder, pages, out)
    return {
        "title": grid.title if grid else name,
        "name": grid.name if grid else name,
        "grid": grid,
        "cells": lines,
        "counts": {state: sum(status.state == state for status in statuses) for state in _STATES},
        "notebooks": read,
        "outdated": len(found.outdated),
        "outside": len(executed_in(folder)) - read,
        "alone": found.table is not None,
    }


def _data(rows: pd.DataFrame, parts: list[dict], origin: list[dict], strips: list[dict]) -> dict:
    """What the page's scripts read."""
    scored = len(results(rows)) > 0
    left_out = [] if sizes_differ(rows) else ["params"]
    return {
        "scores": score_table(rows) if scored else None,
        "figures": [one for one in charts.figures() if scored and one["x"] not in left_out],
        "parts": [
            {name: part[name] for name in ("tables", "pair", "dataset")}
            | {"figure": part["pair"] and _figure_of(part["pair"])}
            for part in parts
        ],
        "origin": origin,
        "strips": on_page(strips),
    }


def _figure_of(pair: tuple[str, str]) -> dict:
    """Two splits are of one judge and may have equal distances; two judges have scales of their own."""
    return charts.against(equal=pair == ("train", "test"))


def _embedded(data: dict) -> str:
    """JSON that may stand in a script element, whatever names say: without < and & nothing in it ends or begins one."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _remove_stale(out: Path, fresh: set[str]) -> None:
    """Delete the figures of an earlier rendering that this one did not draw."""
    for name in (*FILES, "samples"):
        for path in [*out.glob(f"{name}.*"), *out.glob(f"{name}-*")]:
            if path.suffix in (".png", ".svg") and path.name not in fresh:
                path.unlink()


def _draw_sheets(strips: list[dict], out: Path) -> list[dict]:
    """The sheet of samples of each data set, for print."""
    datasets = sorted({strip["dataset"] for strip in strips})
    sheets = []
    for dataset, ending in zip(datasets, endings(datasets), strict=True):
        figure = sample_sheet([strip for strip in strips if strip["dataset"] == dataset])
        sheets.append({"words": f"Samples: {dataset}", "files": [save(figure, out / f"samples{ending}.png")]})
    return sheets


def _notes(rows: pd.DataFrame) -> list[str]:
    """What a reader must know before trusting the numbers."""
    notes = []
    same = ["dataset", "split", "protocol", "label", "size", "sampler", "steps", "kimg", "weights"]
    same += ["teacher_seed", "train_seed"]
    models = rows.groupby(same, dropna=False)["model"].nunique()
    for (dataset, label, size, seed), count in _once(models[models > 1]).items():
        notes.append(
            f"{dataset}: {count} different models are called {label}, {size} and share training seed {seed}: "
            "their spread mixes settings with seeds."
        )
    crowded = rows[rows["busy"] > BUSY]
    if len(crowded):
        notes.append(
            f"{crowded['model'].nunique()} of {rows['model'].nunique()} models were trained beside other work: their "
            "seconds, marked * in the tables, are too long."
        )
    sound = np.isfinite(rows["fid"]) & (rows["fid"] > 0)
    place = ["dataset", "features", "label", "size"]
    counts = rows.groupby(place).size()
    for key, own in rows[~sound].groupby(place, sort=True):
        dataset, features, label, size = key
        notes.append(
            f"{dataset}, {features} features: {len(own)} of {counts[key]} scores of {label}, {size} are no "
            f"{distance_name({features})} ({_listed(own['fid'])}; steps {_listed(own['steps'])}; training seeds "
            f"{_listed(own['train_seed'])}): their means are not drawn."
        )
    warned = rows[rows["warning"].fillna("") != ""]
    for (dataset, features, warning), group in warned.groupby(["dataset", "features", "warning"], sort=True):
        notes.append(f"{dataset}, {features} features, {len(group)} of {len(rows)} scores: {warning}.")
    return notes


def _listed(values: pd.Series) -> str:
    return ", ".join(f"{value:g}" for value in values.drop_duplicates().sort_values())


def _once(models: pd.Series) -> dict[tuple, int]:
    """Numbers of models by (data set, label, size, training seed), the largest over protocols, samplers and steps."""
    names = ["dataset", "label", "size", "train_seed"]
    return models.groupby(names, dropna=False).max().to_dict()
