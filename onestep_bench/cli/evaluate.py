"""What `onestep-bench evaluate` does: a source, scored, as rows, as a table and as a file."""

import csv
import io
import os
import statistics
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from onestep_bench import data, study
from onestep_bench.data.splits import SPLITS
from onestep_bench.data.streams import images_at
from onestep_bench.errors import OnestepError
from onestep_bench.models import zoo
from onestep_bench.models.checkpoints import CONFIG, WEIGHTS
from onestep_bench.models.pretrained import find, is_key
from onestep_bench.scoring import evaluation, references
from onestep_bench.scoring.rows import FIELDS
from onestep_bench.store.files import write_json, write_text

_FORMATS = (".json", ".csv")
_MODELS = (".pkl", ".pth", ".pt")  # files of models, and not of images


def rows_of(
    source: Path | str,
    dataset: str,
    *,
    features: Sequence[str] = ("auto",),
    splits: Sequence[str] = SPLITS,
    reference: Path | None = None,
    samples: int | None = None,
    label: str | None = None,
    sampler: str = "euler",
    steps: Sequence[int] = (1,),
    seeds: Sequence[int] = (0, 1, 2),
) -> list[dict]:
    """Score rows of a model (whatever `models.load_pretrained` takes), or of images.

    Images come in a folder, zip, tar or npz. dataset: a name or path that `data.load` knows, or with `reference` (a
    file of statistics) only a name for tables. sampler, steps, seeds: of a model.
    Raises OnestepError for whatever cannot be scored.
    """
    against = references.Statistics(dataset, reference) if reference else data.load(dataset)
    found = _model_at(source)
    label = label or (found or Path(source)).resolve().name.removesuffix(".zip")
    judging = {"label": label, "features": features, "splits": splits, "samples": samples}
    if found:
        model = study.pretrained(found, None if reference else against)
        how = {"sampler": sampler, "steps": steps, "seeds": seeds}
        return evaluation.evaluate(model, against, **judging, **how)["rows"]
    return evaluation.evaluate_images(images_at(Path(source)), against, **judging)["rows"]


def _model_at(source: Path | str) -> Path | None:
    """The folder or file of a model; None for a path, of images or of nothing."""
    path = Path(source)
    if any(os.path.exists(path / name) for name in (WEIGHTS, CONFIG)) or path.suffix in _MODELS:
        return find(source)
    named = str(source) in zoo.NAMES or str(source).startswith("https://") or is_key(source)
    return find(source) if named and not os.path.exists(path) else None


def table(rows: Sequence[dict]) -> list[tuple[str, ...]]:
    """A heading, and a line for each number of steps, judge and split: mean, deviation and minimum over sampling seeds.

    The minimum is there because papers quote it.
    """
    heading = ("label", "steps", "NFE", "images", "judge", "split", "FID", "± std", "min")
    heading = (*heading, *_NAMES.values(), *_further(rows))
    kinds = groupby(rows, key=lambda row: (row["steps"], row["features"], row["split"]))
    return [heading, *(_line(list(group)) for _, group in kinds)]


_NAMES = {
    "floor": "floor",
    "fd_infinity": "FD inf",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "nn_ratio": "nn ratio",
}


def _line(rows: list[dict]) -> tuple[str, ...]:
    first, fids = rows[0], [row["fid"] for row in rows]
    spread = f"{statistics.stdev(fids):.2g}" if len(fids) > 1 else "-"
    means = [_mean(rows, name) for name in (*_NAMES, *_further(rows))]
    fid = [f"{statistics.mean(fids):.5g}", spread, f"{min(fids):.5g}"]
    about = [_text(first[name]) for name in ("label", "steps", "nfe", "samples", "features", "split")]
    return (*about, *fid, *means)


def _further(rows: Sequence[dict]) -> list[str]:
    """Metrics that not every row of the world has."""
    return [name for name in rows[0] if name not in FIELDS]


def _mean(rows: list[dict], name: str) -> str:
    values = [row[name] for row in rows]
    return "-" if None in values else f"{statistics.mean(values):.4g}"


def _text(value: object) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def warnings(rows: Sequence[dict]) -> list[str]:
    """The rows' warnings, each once."""
    return sorted({row["warning"] for row in rows if row["warning"]})


def check(output: Path) -> None:
    """Raise OnestepError unless rows can be written under this name: said before the work, not after it."""
    if output.suffix not in _FORMATS:
        raise OnestepError(f"cannot write rows as {output.name}; name the file .json or .csv")


def write(rows: Sequence[dict], output: Path) -> None:
    """Write the rows with all their fields, as a JSON list or as CSV."""
    check(output)
    if output.suffix == ".json":
        return write_json(output, list(rows))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*FIELDS, *_further(rows)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(output, text.getvalue())
