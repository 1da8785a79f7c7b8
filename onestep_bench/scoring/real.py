"""What real images score, beside which a model's scores are read: the floor, and how near held-out images are."""

import json
from pathlib import Path

import torch

from onestep_bench import store
from onestep_bench.data.registry import Dataset
from onestep_bench.models import cost
from onestep_bench.scoring import metrics, references
from onestep_bench.scoring.judges import FeatureExtractor
from onestep_bench.scoring.judging import Judged, on_quick_device, some
from onestep_bench.store.files import write_json
from onestep_bench.training.ranks import device_name

_APART = 1000  # a neighbour ratio of held-out images beyond this, or below its inverse, is a distance over rounding
_ROUNDING = 1e-10  # variance over squared mean of features in single precision that do not vary


def held_out(extractor: FeatureExtractor, against: Dataset, samples: Judged, count: int) -> dict:
    """`floor` and `nn_ratio` of a score row of samples against one split; None where there is no other split.

    floor: the Frechet distance of real images to the same reference, as many of the other split as there are samples
    (`count`), or all there are. nn_ratio, against the test split: `metrics.neighbour_ratio` of the samples over that
    of the held-out images themselves, each compared with the others. It is near 1 for images that are as new to the
    training set as held-out ones, whatever the sizes of both sets, and falls to 0 for copies.
    """
    if against.split not in ("train", "test") or len(against.splits) < 2:
        return {"floor": None, "nn_ratio": None}
    known = _of_real(extractor, against, count)
    if against.split != "test" or samples.features is None or not known["ratio"]:
        return {"floor": known["floor"], "nn_ratio": None}
    found = (samples, references.reference(extractor, against.on("train")), references.reference(extractor, against))
    made, train, test = (on_quick_device(judged.features) for judged in found)
    ratio = metrics.neighbour_ratio(metrics.nearest(made, train), metrics.nearest(made, test))
    return {"floor": known["floor"], "nn_ratio": ratio / known["ratio"]}


def _of_real(extractor: FeatureExtractor, against: Dataset, count: int) -> dict:
    """The floor, and of the test split the neighbour ratio of its own images: kept in the store."""
    other = against.on("train" if against.split == "test" else "test")
    count = min(count, len(other))
    recipe = {"version": 2, "count": count, "extractor": extractor.digest, "protocol": extractor.protocol}
    recipe |= {"data": against.digest, "other": other.digest}

    def make(folder: Path) -> dict:
        clock = cost.Stopwatch()
        here, there = (references.reference(extractor, data) for data in (against, other))
        chosen = some(there.features, count)
        found = {"floor": metrics.frechet_from_moments(*metrics.moments(chosen.double()), here.mu, here.cov)}
        found["ratio"] = _ratio_of_held_out(there.features, here.features) if against.split == "test" else None
        write_json(folder / "real.json", found)
        return {"kimg": 0.0, "seconds": clock.seconds, "device": device_name()}

    source = [*references.source_of(extractor), "scoring.metrics:nearest", "scoring.metrics:neighbour_ratio"]
    artifact = store.memo("real", recipe, [], make, source=[*source, "scoring.metrics:frechet_from_moments"])
    return json.loads((artifact.folder / "real.json").read_text())


def _ratio_of_held_out(train: torch.Tensor, test: torch.Tensor) -> float:
    train, test = on_quick_device(train), on_quick_device(test)
    return metrics.neighbour_ratio(metrics.nearest(test, train), metrics.nearest(test, test, skip_self=True))


def untold(extractor: FeatureExtractor, against: Dataset, reference: Judged, count: int) -> str:
    """Why no `nn_ratio` can be told against a split, of which a judge made `reference`, in words; else ''."""
    if against.split != "test" or len(against.splits) < 2:
        return ""
    if reference.cov.trace() <= _ROUNDING * (reference.mu @ reference.mu):
        return f"all test images of {against.name} are alike to this judge: nothing tells copies from new images"
    ratio = _of_real(extractor, against, count)["ratio"]
    # Not so if it is no number; and of equal splits the store has one record, which may be that of train, without any.
    if ratio is not None and 1 / _APART < ratio < _APART:
        return ""
    return (
        f"most test images of {against.name} are among those to train on, or copies of each other: "
        "nothing tells copies from new images"
    )
