"""Executed notebooks to tables, figures and one HTML page: a pure function of the notebooks, equal bytes every time.

Scores are comparable only under one protocol, so every figure and table here takes rows of one protocol and refuses
more; `render` makes one of each per protocol.
"""

import base64
import os
import re
from pathlib import Path
from urllib.parse import quote

import jinja2
import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from onestep_bench import __version__
from onestep_bench.grid.cells import Grid, Status, executed_path, failed_path, status_of
from onestep_bench.report.figures import STYLE, fid_vs_cost, fid_vs_params, fid_vs_steps, palette
from onestep_bench.report.samples import sample_sheet
from onestep_bench.report.tables import PROTOCOL, drawable, executed_in, read_rows, read_strips, summarise, table
from onestep_bench.store.files import replacing, write_text

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
    sections, sheets = _draw_sections(rows, out), _draw_sheets(strips, out)
    fresh = {name for part in [*sections, *sheets] for name in part["files"]}
    for stale in [*out.glob("fid_vs_*.png"), *out.glob("fid_vs_*.svg"), *out.glob("samples*.png")]:
        if stale.name not in fresh:
            stale.unlink()
    page = _template().render(
        title=source.title if isinstance(source, Grid) else folder.name,
        name=source.name if isinstance(source, Grid) else folder.name,
        sections=sections,
        sheets=sheets,
        cells=[_cell_line(status, folder, out) for status in statuses],
        counts={state: sum(status.state == state for status in statuses) for state in _STATES},
        outside=len(executed_in(folder)) - len(notebooks) - len(outdated),
        notes=_notes(rows),
        rows=len(rows),
        notebooks=len(notebooks) + len(outdated),
        outdated=len(outdated),
        device=sorted(set(rows["device"].astype(str))),
        versions=sorted(set(rows["versions"].astype(str))),
        version=__version__,
    )
    write_text(out / "report.html", page)
    return out / "report.html"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("report.html")


def _draw_sections(rows: pd.DataFrame, out: Path) -> list[dict]:
    """Figures and table of each protocol."""
    looks = palette(rows["label"])
    groups = [group for _, group in rows.groupby(PROTOCOL, sort=True)]
    endings = _endings([f"{group['dataset'].iloc[0]}-{group['features'].iloc[0]}" for group in groups])
    sections = []
    for group, ending in zip(groups, endings, strict=True):
        figures = {f"{name}{ending}": figure for name, figure in _figures(group, looks).items()}
        files = [_save(figure, out / f"{name}.{kind}") for name, figure in figures.items() for kind in ("png", "svg")]
        sections.append(
            {
                "words": _in_words(group),
                "protocol": group["protocol"].iloc[0],
                "files": files,
                "images": [_embedded(out / name) for name in files if name.endswith(".svg")],
                "table": table(group).to_html(table_attributes='class="scores"'),
            }
        )
    return sections


def _figures(rows: pd.DataFrame, looks: dict[str, tuple]) -> dict[str, Figure]:
    """The figures of one protocol, at one step or else at the fewest there are; none if every run diverged."""
    lines = drawable(rows)
    if lines.empty:
        return {}
    steps = 1 if (lines["steps"] == 1).any() else int(lines["steps"].min())
    return {
        "fid_vs_steps": fid_vs_steps(rows, looks=looks),
        "fid_vs_params": fid_vs_params(rows, steps=steps, looks=looks),
        "fid_vs_cost": fid_vs_cost(rows, steps=steps, looks=looks),
    }


def _draw_sheets(strips: list[dict], out: Path) -> list[dict]:
    datasets = sorted({strip["dataset"] for strip in strips})
    sheets = []
    for dataset, ending in zip(datasets, _endings(datasets), strict=True):
        figure = sample_sheet([strip for strip in strips if strip["dataset"] == dataset])
        name = _save(figure, out / f"samples{ending}.png")
        sheets.append({"dataset": dataset, "files": [name], "image": _embedded(out / name)})
    return sheets


def _endings(names: list[str]) -> list[str]:
    """File name endings that tell several protocols or data sets apart; none where there is but one."""
    if len(names) == 1:
        return [""]
    safe = [re.sub(r"[^A-Za-z0-9_.-]+", "-", name) for name in names]
    return [f"-{name}" if safe.count(name) == 1 else f"-{name}-{i + 1}" for i, name in enumerate(safe)]


def _save(figure: Figure, path: Path) -> str:
    kind = path.suffix[1:]
    # Neither date nor library version: equal rows give equal bytes.
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    tight = {} if path.name.startswith("samples") else {"bbox_inches": "tight", "pad_inches": 0.08}
    with replacing(path) as temporary, mpl.rc_context(STYLE):
        figure.savefig(temporary, format=kind, metadata=metadata, dpi="figure", **tight)
    return path.name


def _embedded(path: Path) -> str:
    kind = "svg+xml" if path.suffix == ".svg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _in_words(rows: pd.DataFrame) -> str:
    def several(column: str) -> str:
        return " or ".join(sorted(set(rows[column].astype(str))))

    return (
        f"{rows['dataset'].iloc[0]}: Fréchet distance between {several('features')} features of {several('samples')} "
        f"samples and of the reference images, drawn with {several('weights')} weights"
    )


def _notes(rows: pd.DataFrame) -> list[str]:
    """What a reader must know before trusting the numbers."""
    notes = []
    same = ["dataset", "protocol", "label", "size", "sampler", "steps", "kimg", "weights", "train_seed"]
    models = rows.groupby(same, dropna=False)["model"].nunique()
    for (dataset, _, label, size, *_, seed), count in models[models > 1].items():
        notes.append(
            f"{dataset}: {count} different models are called {label}, {size} and share training seed {seed}: "
            "their spread mixes settings with seeds."
        )
    sound = np.isfinite(rows["fid"]) & (rows["fid"] > 0)
    for row in rows[~sound].itertuples(index=False):
        name = f"{row.label}, {row.size}, {row.steps} steps, training seed {row.train_seed}, seed {row.seed}"
        notes.append(f"{row.dataset}: the FID of {name} is {row.fid}: its mean is not drawn.")
    warned = rows[rows["warning"].fillna("") != ""]
    for (dataset, features, warning), group in warned.groupby(["dataset", "features", "warning"], sort=True):
        notes.append(f"{dataset}, {features} features, {len(group)} of {len(rows)} scores: {warning}.")
    return notes


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
