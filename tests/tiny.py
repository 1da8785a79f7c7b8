"""Tiny notebooks, grids and score rows that the grid-side tests share."""

import base64
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
import numpy as np
from PIL import Image

from onestep_bench.scoring.rows import FIELDS, MIME


def notebook(path: Path, parameters: str, *code: str) -> Path:
    """Write a notebook with a tagged parameters cell (none if empty) and the given code cells."""
    cells = [nbformat.v4.new_markdown_cell(f"# {path.stem}")]
    if parameters:
        cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    cells += [nbformat.v4.new_code_cell(source) for source in code]
    for number, cell in enumerate(cells):  # else at random: equal notebooks are equal files
        cell["id"] = f"cell-{number}"
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=spec), path)
    return path


def grid_file(folder: Path, text: str) -> Path:
    """Write params/tiny.yaml."""
    path = folder / "params" / "tiny.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def row(**given) -> dict:
    """A whole score row; what is not given gets a plausible value."""
    defaults = {
        "dataset": "digits",
        "split": "train",
        "label": "SlimFlow",
        "method": "flow-guided-distillation",
        "size": "0.2M",
        "saw": "both",
        "recipe": "r0",
        "purpose": "result",
        "teacher_seed": 0,
        "train_seed": 0,
        "sampler": "euler",
        "steps": 1,
        "nfe": given.get("steps", 1),
        "seed": 0,
        "fid": 100.0,
        "floor": 0.5,
        "fd_infinity": 99.0,
        "kid": 0.01,
        "precision": 0.7,
        "recall": 0.4,
        "density": 0.8,
        "coverage": 0.6,
        "inception_score": 8.0,
        "class_gap": 0.05,
        "nn_ratio": None,
        "warning": "",
        "params": 200_000,
        "macs": 1_000_000,
        "kimg": 500.0,
        "passes": 1500.0,
        "train_macs": 1.5e12,
        "features": "digits",
        "protocol": "digits@0a1b2c3d, no resizing, 1797 samples against the training set (4e5f6a7b)",
        "samples": 1797,
        "weights": "ema",
        "model": "m0",
        "device": "cpu (2 threads)",
        "versions": "torch 2.11.0, numpy 2.3.1",
        "train_seconds": 12.5,
        "busy": 0.0,
        "latency_ms": 1.5,
        "latency_p95_ms": 1.9,
        "throughput": 2000.0,
        "peak_memory_mb": None,
    }
    assert defaults.keys() == FIELDS.keys()
    return {**defaults, **given}


def recording(**given) -> str:
    """Code that records one row as `study.record` does; `seed` and `fid` come from the notebook's own variables."""
    return (
        "from IPython.display import display\n"
        f"row = {{**{row(**given)!r}, 'seed': seed, 'fid': 100.0 / (1 + seed), 'size': size}}\n"
        f"display({{{MIME!r}: {{'rows': [row], 'strips': []}}}}, raw=True)"
    )


def strip(label: str, size: str, steps: int, **given) -> dict:
    """A strip of four 8x8 images."""
    pixels = np.random.default_rng(steps).integers(0, 255, (8, 32), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    png = base64.b64encode(file.getvalue()).decode()
    return {"label": label, "size": size, "steps": steps, "sampler": "euler", "train_seed": 0, "png": png, **given}


def executed(path: Path, rows: list[dict], strips: Sequence[dict] = (), stamp: dict | None = None, **more) -> Path:
    """Write an executed notebook that holds a bundle (more: its further keys), with `stamp` as its metadata."""
    output = nbformat.v4.new_output("display_data", {MIME: {"rows": rows, "strips": list(strips), **more}})
    cell = nbformat.v4.new_code_cell("record(scores)", outputs=[output], id="cell-0")
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=stamp or {}), path)
    return path


def page_data(page: str) -> dict:
    """What the scripts of a report's page read."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)
