"""Scores against published statistics, beside those against the images of a data set."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlparse

from onestep_bench.data.registry import Dataset
from onestep_bench.errors import OnestepError
from onestep_bench.models.model import Model
from onestep_bench.scoring import evaluation
from onestep_bench.scoring.references import Statistics, inceptions
from onestep_bench.store.downloads import fetch


def evaluate(
    model: Model, data: Dataset, *, features: str | Sequence[str] = "auto", reference: str = "", **asked
) -> dict:
    """Score a model as `evaluation.evaluate` does; with `reference` also against published statistics.

    reference: a file of mu and sigma, its path (as `data.load` finds one) or https address, downloaded once into
    `references` in the data folder. The judges that are Inception score against it too, in rows of their own
    protocol. Raises OnestepError if none of the judges is.
    """
    published = None
    if reference:
        if not inceptions([features] if isinstance(features, str) else features):
            raise OnestepError(
                f"{reference} is of Inception's features; name inception or inception-legacy as a judge too"
            )
        published = Statistics(data.name, _statistics_at(reference))
    return evaluation.evaluate(model, data, features=features, published=published, **asked)


def _statistics_at(reference: str) -> Path:
    folder = Path(os.environ.get("ONESTEP_DATA") or "~/.cache/onestep_bench/data").expanduser()
    if reference.startswith("https://"):
        target = folder / "references" / Path(urlparse(reference).path).name
        fetch(target, [reference])
        return target
    for path in (Path(reference).expanduser(), folder / reference):
        if os.path.isfile(path):
            return path
    raise OnestepError(f"no file of statistics {reference} (looked in {folder} too); correct the path")
