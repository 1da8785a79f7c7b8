"""The record an executed notebook leaves: score rows and sample strips in one JSON MIME bundle.

`study.record` writes it, `report` reads it. This module knows neither torch nor pandas, so that reading a grid's
state stays fast.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from onestep_bench.errors import OnestepError

MIME = "application/vnd.onestep-bench.scores+json"

# One row is one (model, sampler, steps, sampling seed) before one judge, against one split of the data.
FIELDS = {
    "dataset": "name of the data set",
    "split": "'train' or 'test': the images it was scored against; 'all' of data without a split",
    "label": "what a plot calls this model, e.g. 'SlimFlow'",
    "method": "registry name of the method that trained it",
    "size": "named network size",
    "saw": "what its training showed it: 'data', 'teacher images', 'both' or 'teacher'; None of a model from elsewhere",
    "recipe": "hash of how it was trained over the whole lineage, without seeds; the bundle's `recipes` spells it out",
    "purpose": "'result', or 'search' of a run that only chose a setting",
    "teacher_seed": "seed of the training of its teacher; its own if it has none",
    "train_seed": "seed of the training run",
    "sampler": "sampler name",
    "steps": "sampler steps",
    "nfe": "network evaluations a sample, counted",
    "seed": "sampling seed",
    "fid": "Frechet distance between features of samples and reference",
    "floor": "the same of real images: as many of the other split as there are samples, or all there are",
    "fd_infinity": "that of the samples, extrapolated to infinitely many",
    "kid": "kernel distance between features of samples and reference, unbiased, all pairs",
    "precision": "share of samples among the reference (k-NN)",
    "recall": "share of the reference among the samples (k-NN)",
    "density": "as precision, but counting how often",
    "coverage": "share of the reference with a sample near it (k-NN)",
    "inception_score": "exp of the mean KL divergence of the judge's classes",
    "class_gap": "total variation distance between the judge's shares of classes of samples and reference, 0 to 1",
    "nn_ratio": "distance of samples to the nearest training image over that to the nearest held-out one, median, over "
    "the same of held-out images: far below 1, samples are copies; of rows of split 'test'",
    "warning": "why to distrust the row; empty if nothing is known",
    "params": "parameters of the network",
    "macs": "multiply-accumulates of conv and linear layers, one evaluation of one image",
    "kimg": "thousands of training images over the whole lineage",
    "passes": "thousands of images through a network over the whole lineage, counted at the networks: a backward pass "
    "as two, those of teachers, critics and pairs too",
    "train_macs": "multiply-accumulates of these passes",
    "features": "feature extractor",
    "protocol": "extractor and its weights' hash, resizing, number of samples, reference and its hash",
    "samples": "number of samples scored",
    "weights": "'ema' or 'last'",
    "model": "store key of the model, and the path if it is not its own",
    "device": "device it ran on",
    "versions": "versions of the libraries that decide numbers, and the git revision where it was a checkout",
    "train_seconds": "measured: training and pair-making time over the whole lineage",
    "busy": "measured: what else the machine did meanwhile, in cores (load average beyond the run's own threads)",
    "latency_ms": "measured: median time to draw one image at batch 1",
    "latency_p95_ms": "measured: its 95th percentile",
    "throughput": "measured: images a second at the evaluation batch",
    "peak_memory_mb": "measured: peak memory while sampling a batch",
}
# Fields that are no text.
NUMBERS = frozenset(
    (
        "teacher_seed", "train_seed", "steps", "nfe", "seed", "fid", "floor",
        "fd_infinity", "kid", "precision", "recall", "density", "coverage", "inception_score",
        "class_gap", "nn_ratio", "params", "macs", "kimg", "passes", "train_macs",
        "samples", "train_seconds", "busy", "latency_ms", "latency_p95_ms", "throughput", "peak_memory_mb",
    )
)  # fmt: skip
_ALWAYS = ("dataset", "split", "label", "size", "sampler", "steps", "protocol", "features", "purpose")
MEASURED = ("train_seconds", "busy", "latency_ms", "latency_p95_ms", "throughput", "peak_memory_mb")
# None where the judge has no classes or there are too few images. Rows recorded before these fields existed lack them.
QUALITIES = (
    "fd_infinity", "kid", "precision", "recall", "density", "coverage", "inception_score", "class_gap",
)  # fmt: skip
_LINEAGE = ("saw", "recipe", "teacher_seed", "passes", "train_macs", "busy")
LATER = {name: None for name in (*QUALITIES, "warning", "latency_p95_ms", "floor", "nn_ratio", *_LINEAGE)}
LATER |= {"split": "train", "purpose": "result"}  # what all rows were before there were others


def bundle(
    rows: list[dict],
    strips: list[dict],
    metrics: dict[str, str] | None = None,
    recipes: dict[str, dict] | None = None,
) -> dict:
    """The JSON value stored under `MIME`.

    rows: dicts with the keys of `FIELDS` and of metrics: which is better, 'lower' or 'higher', of the metrics that are
    not among `FIELDS`, by name, so that whoever reads the bundle need not have what measured them. strips: dicts label,
    size, saw, recipe, steps, sampler, train_seed, kimg, png (base64 of sample images side by side, drawn from the noise
    of sample indices 0, 1, 2, ... of sampling seed 0) and, where there are training images, nearest: {png, index} of
    those nearest to each. recipes: by the hash in `recipe`, every setting by name (kd.lr), without seeds.
    """
    known = FIELDS.keys() | (metrics or {}).keys()
    for row in rows:
        if row.keys() != known:
            raise ValueError(f"score row has keys {sorted(row.keys() ^ known)} too many or too few")
    more = {"metrics": metrics, "recipes": recipes}
    return {"rows": rows, "strips": strips} | {name: value for name, value in more.items() if value}


def mean(scores: dict, steps: int | None = None, *, split: str = "test", field: str = "fid") -> float:
    """Mean of a field over the sampling seeds of a bundle, before its first judge.

    steps: of rows of several numbers of steps, which. Of data with one split that split counts.
    """
    rows = [row for row in scores["rows"] if row["features"] == scores["rows"][0]["features"]]
    rows = [row for row in rows if row["split"] == split] or rows
    values = [row[field] for row in rows if steps in (None, row["steps"])]
    return sum(values) / len(values)


def bundles_in(notebook: Path) -> Iterator[dict]:
    """Every score bundle in the outputs of one executed notebook.

    Raises OnestepError if the file is not a notebook, or holds a bundle that `bundle` would not make.
    """
    try:
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
        found = [output.get("data", {}) for cell in cells for output in cell.get("outputs", ())]
        bundles = [data[MIME] for data in found if MIME in data]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OnestepError(f"{notebook} is not a notebook; delete it and run the grid again") from error
    yield from (shaped(one, notebook) for one in bundles)


def shaped(found: object, source: Path) -> dict:
    """The bundle found in a file. Raises OnestepError if it is none that `bundle` would make."""
    if why := _misshapen(found):
        raise OnestepError(f"{source} holds scores that nobody recorded so ({why}); delete it and run it again")
    return found


def _misshapen(found: object) -> str:
    """What is wrong with a bundle's shape; '' if nothing is. Which fields a row has is for the reader to say."""
    if not isinstance(found, dict) or not {"rows", "strips"} <= found.keys():
        return "no rows and strips"
    for part in ("rows", "strips"):
        if not isinstance(found[part], list) or not all(isinstance(one, dict) for one in found[part]):
            return f"{part} are no list of rows"
    metrics, recipes = found.get("metrics", {}), found.get("recipes", {})
    if not isinstance(metrics, dict) or not all(better in ("lower", "higher") for better in metrics.values()):
        return "metrics"
    if not isinstance(recipes, dict) or not all(isinstance(one, dict) for one in recipes.values()):
        return "recipes"
    numbers = NUMBERS | metrics.keys()
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # JSON can spell half a character, which no report could hold
        return "half a character"
    for row in found["rows"]:
        odd = (name for name, value in row.items() if not _fits(value, name in numbers, name in _ALWAYS))
        if name := next(odd, None):
            return f"{name} of a row"
    return next((why for why in map(_misshapen_strip, found["strips"]) if why), "")


def _fits(value: object, number: bool, always: bool) -> bool:
    if value is None:
        return not always
    if number:  # JSON has no NaN: kernels write 'nan'
        return (type(value) in (int, float) and abs(value) < 1e300) or value in ("nan", "inf", "-inf") or value != value
    return isinstance(value, str)


def _misshapen_strip(strip: dict) -> str:
    kinds = {"label": str, "size": str, "steps": int, "sampler": str | None, "train_seed": int | None, "png": str}
    told = {"saw": None, "recipe": None} | strip  # which older ones lack
    for name, kind in (kinds | {"saw": str | None, "recipe": str | None}).items():
        if name not in told or not isinstance(told[name], kind) or isinstance(told[name], bool):
            return f"{name} of a strip"
    nearest = strip.get("nearest")
    if nearest is not None and not (
        isinstance(nearest, dict) and isinstance(nearest.get("png"), str) and isinstance(nearest.get("index"), list)
    ):
        return "nearest of a strip"
    kimg = strip.get("kimg")
    return "" if kimg is None or (type(kimg) in (int, float) and abs(kimg) < 1e300) else "kimg of a strip"


def recorded(path: Path) -> list[dict]:
    """The score rows of a folder of executed notebooks, or of a .json that `onestep-bench evaluate` wrote.

    Older rows have `LATER` in place of what they lack. Raises OnestepError for a file that is neither.
    """
    if path.is_dir():
        found = [
            row
            for notebook in sorted(path.glob("*.ipynb"))
            for bundle in bundles_in(notebook)
            for row in bundle["rows"]
        ]
    else:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OnestepError(f"cannot read {path} ({error}); name a folder of executed notebooks, or rows") from error
    if not isinstance(found, list) or not all(
        isinstance(row, dict) and FIELDS.keys() <= (LATER | row).keys() for row in found
    ):
        raise OnestepError(f"{path} holds no score rows; name a folder of executed notebooks, or what evaluate wrote")
    return list({json.dumps(row, sort_keys=True): LATER | row for row in found}.values())
