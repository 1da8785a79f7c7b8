"""Executed notebooks to tables, figures and one HTML page: a pure function of the notebooks, equal bytes every time.

Scores are comparable only under one protocol, so every figure and table here takes rows of one protocol and refuses
more; `render` makes one of each per protocol, and then what compares splits, judges and models.
"""

import base64
import os
from pathlib import Path
from urllib.parse import quote

import jinja2
import numpy as np
import pandas as pd

from onestep_bench import __version__
from onestep_bench.grid.cells import Grid, Status, executed_path, failed_path, status_of
from onestep_bench.report.recipes import results
from onestep_bench.report.samples import sample_sheet
from onestep_bench.report.sections import FILES, across, endings, protocols, save
from onestep_bench.report.tables import BUSY, executed_in, read_rows, read_strips, summarise
from onestep_bench.store.files import write_text

_STATES = ("done", "outdated", "failed", "to do")


def render(source: Grid | Path, out: Path | None = None) -> Path:
    """Write results.csv, summary.csv, the figures and report.html into `out`; returns the path of report.html.

    source: a grid, or a folder of executed notebooks. Of a grid's cells that are outdated the rows are labelled so.
    out: default the grid's own folder, or the notebooks' folder. With several protocols each has figures of its own,
    named after data set and features. Figures of an earlier rendering that no longer exist are removed.
    """
    statuses = [status_of(cell, source.executed) for cell in source.cells] if isinstance(source, Grid) else []
    folder = source.executed if isinstance(source, Grid) else source
    if isinstance(source, Grid):
        notebooks = sorted(executed_path(status.cell, folder) for status in statuses if status.state == "done")
    else:
        notebooks = executed_in(folder)
    # One that failed when it was run again is outdated too.
    old = [executed_path(status.cell, folder) for status in statuses if status.state in ("outdated", "failed")]
    outdated = sorted(filter(Path.exists, old))
    out = out or (source.out if isinstance(source, Grid) else folder)
    rows, strips = read_rows(notebooks, outdated), read_strips(notebooks, outdated)
    write_text(out / "results.csv", rows.to_csv(index=False, lineterminator="\n"))
    write_text(out / "summary.csv", summarise(rows).to_csv(index=False, lineterminator="\n"))
    found = results(rows)
    sections, parts, sheets = protocols(found, out), across(found, rows, out), _draw_sheets(strips, out)
    for part in [*sections, *parts]:
        part["images"] = [image | {"data": _embedded(out / image["file"])} for image in part["images"]]
    _remove_stale(out, {name for part in [*sections, *parts, *sheets] for name in part["files"]})
    page = _template().render(
        title=source.title if isinstance(source, Grid) else folder.name,
        name=source.name if isinstance(source, Grid) else folder.name,
        sections=sections,
        parts=parts,
        sheets=sheets,
        cells=[_cell_line(status, folder, out) for status in statuses],
        counts={state: sum(status.state == state for status in statuses) for state in _STATES},
        outside=len(executed_in(folder)) - len(notebooks) - len(outdated),
        notes=_notes(found),
        rows=len(rows),
        notebooks=len(notebooks) + len(outdated),
        outdated=len(outdated),
        device=sorted(set(rows["device"].astype(str))),
        versions=sorted(set(rows["versions"].astype(str))),
        version=__version__,
    )
    write_text(out / "report.html", page)
    return out / "report.html"


def _remove_stale(out: Path, fresh: set[str]) -> None:
    """Delete the figures of an earlier rendering that this one did not draw."""
    for name in (*FILES, "samples"):
        for path in [*out.glob(f"{name}.*"), *out.glob(f"{name}-*")]:
            if path.suffix in (".png", ".svg") and path.name not in fresh:
                path.unlink()


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("report.html")


def _draw_sheets(strips: list[dict], out: Path) -> list[dict]:
    datasets = sorted({strip["dataset"] for strip in strips})
    sheets = []
    for dataset, ending in zip(datasets, endings(datasets), strict=True):
        figure = sample_sheet([strip for strip in strips if strip["dataset"] == dataset])
        name = save(figure, out / f"samples{ending}.png")
        sheets.append({"dataset": dataset, "files": [name], "image": _embedded(out / name)})
    return sheets


def _embedded(path: Path) -> str:
    kind = "svg+xml" if path.suffix == ".svg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


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
    for row in rows[~sound].itertuples(index=False):
        name = f"{row.label}, {row.size}, {row.steps} steps, training seed {row.train_seed}, seed {row.seed}"
        notes.append(f"{row.dataset}, {row.features} features: the FID of {name} is {row.fid}: its mean is not drawn.")
    warned = rows[rows["warning"].fillna("") != ""]
    for (dataset, features, warning), group in warned.groupby(["dataset", "features", "warning"], sort=True):
        notes.append(f"{dataset}, {features} features, {len(group)} of {len(rows)} scores: {warning}.")
    return notes


def _once(models: pd.Series) -> dict[tuple, int]:
    """Numbers of models by (data set, label, size, training seed), the largest over protocols, samplers and steps."""
    names = ["dataset", "label", "size", "train_seed"]
    return models.groupby(names, dropna=False).max().to_dict()


def _cell_line(status: Status, folder: Path, out: Path) -> dict:
    executed, failed = executed_path(status.cell, folder), failed_path(status.cell, folder)
    path = {"done": executed, "outdated": executed, "failed": failed}.get(status.state)
    return {
        "id": status.cell.id,
        "state": "missing" if status.state == "to do" else status.state,
        "link": quote(Path(os.path.relpath(path, out)).as_posix()) if path else "",
        "seconds": f"{status.seconds:.1f}" if path else "",
        "why": status.why,
    }
