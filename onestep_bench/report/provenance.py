"""Where a report's numbers come from: machines, versions, hashes, models; which cells were run, and which were not."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from onestep_bench.grid.cells import Status, executed_path, failed_path, read_stamp
from onestep_bench.report.points import column, plain
from onestep_bench.report.tables import PROTOCOL


def sources(rows: pd.DataFrame) -> list[dict]:
    """{what, lines}: devices and versions, each with its number of scores."""
    found = [("device", "device"), ("versions", "versions, and the git revision where it was a checkout")]
    return [{"what": title, "lines": _counted(rows[name])} for name, title in found]


def _counted(values: pd.Series) -> list[str]:
    counts = values.astype(str).value_counts(sort=True).sort_index(kind="stable")
    return [f"{value} ({count} scores)" for value, count in counts.items()]


def tables(rows: pd.DataFrame, notebooks: Iterable[Path]) -> list[dict]:
    """The protocols, with the hashes of judge and reference, and the models, with those of their weights."""
    protocols = rows.groupby(PROTOCOL).size().rename("rows").reset_index()
    of_protocols = [column("dataset", "data set"), column("split", "split"), column("protocol", "protocol")]
    of_protocols.append(column("rows", "scores", "number", 2))
    models = rows.groupby("model", sort=False).first().reset_index()
    content = _contents(notebooks)
    models = models.assign(content=[content.get(Path(str(name).split("@")[0]).name) for name in models["model"]])
    of_models = [
        column("label", "method"),
        column("size", "size", "text", 3),
        column("model", "model", "text", 1, "its key in the store"),
        column("content", "hash of its files", "text", 3),
        column("recipe", "recipe", "text", 4, "hash of how it was trained, without seeds"),
        column("teacher_seed", "teacher seed", "number", 5),
        column("train_seed", "training seed", "number", 5),
        column("kimg", "kimg", "number", 6),
    ]
    judges = {"caption": f"{len(protocols)} protocols: judge and hash of its weights, resizing, samples, reference"}
    return [judges | plain(protocols, of_protocols), {"caption": f"{len(models)} models"} | plain(models, of_models)]


def _contents(notebooks: Iterable[Path]) -> dict[str, str]:
    """Hashes of the artifacts that cells of grids used, by name."""
    used = (entry for path in notebooks for entry in read_stamp(path).get("used", ()))
    return {Path(entry["artifact"]).name: entry["content"] for entry in used if "artifact" in entry}


def cells(statuses: list[Status], folder: Path, pages: Mapping[Path, Path], out: Path) -> list[dict]:
    """A line for each cell of a grid: id, state, seconds, why, and the page of its notebook."""
    lines = []
    for status in statuses:
        executed, failed = executed_path(status.cell, folder), failed_path(status.cell, folder)
        path = {"done": executed, "outdated": executed, "failed": failed}.get(status.state)
        state = "missing" if status.state == "to do" else status.state
        line = {"id": status.cell.id, "state": state, "link": link(pages, path, out), "why": status.why}
        lines.append(line | {"seconds": f"{status.seconds:.1f}" if path else ""})
    return lines


def notebooks_of(folder: Path, pages: Mapping[Path, Path], out: Path) -> list[dict]:
    """As `cells`, of a folder of notebooks that no grid tells of."""
    found = sorted(path for path in folder.glob("*.ipynb") if not path.name.startswith("."))
    lines = []
    for path in found:
        stamp = read_stamp(path)
        state = "failed" if ".failed." in path.name else "done"
        seconds = f"{stamp['seconds']:.1f}" if "seconds" in stamp else ""
        line = {"id": path.stem, "state": state, "link": link(pages, path, out), "why": stamp.get("why", "")}
        lines.append(line | {"seconds": seconds})
    return lines


def link(pages: Mapping[Path, Path], path: Path | None, out: Path) -> str:
    """The address of a notebook's page, as seen from the report; '' where it has none."""
    if path not in pages:
        return ""
    return quote(Path(os.path.relpath(pages[path], out)).as_posix())
