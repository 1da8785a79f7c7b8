"""Score rows of models and of images from anywhere: by one judge, against one reference, with what it costs."""

import base64
import hashlib
import io
import json
import platform
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from onestep_bench import __version__
from onestep_bench.data.pixels import to_uint8
from onestep_bench.data.registry import Dataset
from onestep_bench.data.streams import Images
from onestep_bench.denoiser import counting
from onestep_bench.errors import OnestepError
from onestep_bench.models import cost, sampling
from onestep_bench.models.model import Model
from onestep_bench.models.sampling import sample_batches
from onestep_bench.scoring import references
from onestep_bench.scoring.judges import FeatureExtractor
from onestep_bench.scoring.judging import KEPT, combined, head, judged
from onestep_bench.scoring.qualities import further, score, sources
from onestep_bench.scoring.references import Statistics
from onestep_bench.scoring.rows import FIELDS, bundle
from onestep_bench.store.files import write_json
from onestep_bench.training import ranks, together
from onestep_bench.training.ranks import device, device_name

STRIP = 12  # images in the strip of samples that a score bundle keeps


def _versions() -> str:
    return f"onestep_bench {__version__}, torch {torch.__version__}, python {platform.python_version()}"


def evaluate(
    model: Model,
    data: Dataset | Statistics,
    *,
    label: str,
    steps: Sequence[int] = (1, 2, 4),
    sampler: str = "euler",
    seeds: Sequence[int] = (0, 1, 2),
    samples: int | None = None,
    features: str = "auto",
    fresh: bool = False,
) -> dict:
    """Score a model at each number of steps and sampling seed, with what it costs.

    data: the reference; of a data set it is the training split, as is usual in the field. label: what plots call the
    model. samples: how many images to score, by default as many as the reference has. features: a name of
    `references.names()`, or auto (see `references.judge`). fresh: as `store.memo` takes it. A killed run keeps the
    seeds that were done.
    Returns a score bundle (see `rows.bundle`) for `record`.
    """
    if not seeds or not steps:
        raise OnestepError("evaluate needs at least one sampling seed and one number of steps")
    samples = _enough(samples, data)
    _same_shape(model.name, model.shape, data)
    extractor = references.judge(features, data, fresh=fresh)
    source = ["scoring.evaluation:_score_seed", *sources(), *references.source_of(extractor)]
    source += sampling.source_of(sampler)
    rows, strips = [], []
    for count in steps:
        recipe = {
            "sampler": sampler,
            "steps": count,
            "seeds": list(seeds),
            "samples": samples,
            "features": extractor.digest,
            "judge": extractor.protocol,
            "data": data.digest,
            "version": 3,  # of the metrics that every row has; further ones are named, so that each is scored once
            "path": model.path.spec() if model.path else None,
        }

        if further():
            recipe["metrics"] = sorted(further())

        def make(folder: Path, count=count) -> dict:
            clock = cost.Stopwatch()
            reference = references.reference(extractor, data, fresh=fresh)
            files = {seed: folder / f"seed-{seed}.json" for seed in seeds}
            # Not those a killed run has done; what there is, rank 0 says, as it is writing them.
            todo = ranks.shared([seed for seed, file in files.items() if not file.exists()])
            own = ranks.own(range(samples))
            with together.bar(total=len(own) * len(todo), unit="image", desc=f"{sampler} x{count}") as bar:
                for seed in todo:
                    found = _score_seed(model, extractor, reference, sampler, count, samples, bar, seed)
                    if ranks.leads():
                        write_json(files[seed], found)
            if ranks.leads():
                found = [json.loads(file.read_text()) for file in files.values()]
                write_json(folder / "scores.json", _summary(model, sampler, count, found))
                for file in files.values():
                    file.unlink()
            return together.spent(0.0, clock.seconds)

        artifact = together.memo("scores", recipe, [model.artifact], make, source=source, fresh=fresh)
        scored = json.loads((artifact.folder / "scores.json").read_text())
        common = _judged_by(data, extractor, samples) | _model_fields(model, label) | scored["measured"]
        common |= {"sampler": sampler, "steps": count, "nfe": scored["nfe"]}
        common["device"] = artifact.meta["cost"]["device"]
        rows += [{**common, **seed} for seed in scored["seeds"]]
        keys = ("label", "size", "steps", "sampler", "train_seed")
        strips.append({key: common[key] for key in keys} | {"png": scored["strip"]})
    return bundle(rows, strips, further())


def evaluate_images(
    images: Images,
    data: Dataset | Statistics,
    *,
    label: str | None = None,
    samples: int | None = None,
    features: str = "auto",
) -> dict:
    """Score images that somebody else made, by the same judge as `evaluate`, in one row; what is not known is None.

    samples: how many of them to score, the first ones, by default all. Nothing but the judged reference is stored.
    """
    samples = _enough(len(images) if samples is None else samples, data)
    if samples > len(images):
        raise OnestepError(f"{samples} samples were asked for, and {images.name} has {len(images)}; ask for fewer")
    _same_shape(images.name, images.shape, data)
    extractor = references.judge(features, data)
    digest = hashlib.sha256()

    def hashed(bar) -> Iterator[Tensor]:
        for batch in head(images.batches(), samples):
            digest.update(batch.contiguous().numpy().data)
            yield batch
            bar.update(len(batch))

    reference = references.reference(extractor, data)
    with together.bar(total=samples, unit="image", desc=images.name) as bar:
        found = score(judged(extractor, hashed(bar), samples), reference)
    row = dict.fromkeys(FIELDS) | _judged_by(data, extractor, samples) | found
    row |= {"label": label or images.name, "model": f"images-{digest.hexdigest()[:16]}", "device": device_name()}
    return bundle([row], [], further())


def _enough(samples: int | None, data: Dataset | Statistics) -> int:
    if samples is None and isinstance(data, Statistics):
        raise OnestepError("published statistics do not say how many samples to score; pass samples=")
    samples = len(data) if samples is None else samples
    if samples < 2 * ranks.count():
        where = f" by {ranks.count()} ranks" if ranks.count() > 1 else ""
        raise OnestepError(f"{samples} samples cannot be scored{where}; a distance needs at least {2 * ranks.count()}")
    return samples


def _same_shape(name: str, shape: tuple[int, int, int], data: Dataset | Statistics) -> None:
    if isinstance(data, Dataset) and tuple(shape) != data.shape:
        ours, theirs = ("x".join(map(str, (*given[1:], given[0]))) for given in (shape, data.shape))
        raise OnestepError(f"{name} has {ours} images, but the reference {data.name} {theirs}; choose one of that size")


def _judged_by(data: Dataset | Statistics, extractor: FeatureExtractor, samples: int) -> dict:
    return {
        "dataset": data.name,
        "features": extractor.name,
        "protocol": references.protocol(extractor, samples, data),
        "samples": samples,
        "versions": _versions(),
    }


def _model_fields(model: Model, label: str) -> dict:
    spent, recipe = model.spent, model.artifact.recipe
    return {
        "label": label,
        "method": recipe["method"],
        "size": model.size,
        "train_seed": recipe["seed"],
        "params": cost.parameters(model.denoiser.net),
        "macs": cost.macs(model.denoiser, model.shape),
        "kimg": spent["kimg"],
        "train_seconds": spent["seconds"],
        "weights": "ema",
        "model": model.name,
    }


def _score_seed(model, extractor, reference, sampler, steps, samples, bar, seed) -> dict:
    """Scores of one sampling seed, on rank 0, from all ranks' shares of the images."""
    own = ranks.own(range(samples))
    strip, seconds = None, 0.0

    def images() -> Iterator[Tensor]:
        nonlocal strip, seconds
        batches = sample_batches(model, own, sampler=sampler, steps=steps, seed=seed)
        clock = cost.Stopwatch()
        for batch in batches:
            batch = to_uint8(batch)
            seconds += clock.seconds
            strip = batch[:STRIP].cpu() if strip is None else strip
            yield batch
            bar.update(len(batch))
            clock = cost.Stopwatch()

    with counting(model.denoiser) as counter:
        part = judged(extractor, images(), len(own), kept=KEPT * len(own) // samples)
    made = -(-len(own) // sampling.BATCH) * sampling.BATCH  # the last batch is padded
    parts = ranks.gathered((part, strip, {"seconds": seconds, "evaluations": counter.rows, "made": made}))
    if not parts:
        return {}
    judgements, strips, numbers = zip(*parts, strict=True)
    return {
        "row": {"seed": seed} | score(combined(judgements), reference),
        "strip": _png_strip(torch.cat(strips)[:STRIP]),
        **{name: sum(of_rank[name] for of_rank in numbers) for name in numbers[0]},
    }


def _summary(model, sampler, steps, found: list[dict]) -> dict:
    made = sum(one["made"] for one in found)
    draw = partial(sample_batches, model, sampler=sampler, steps=steps)
    with cost.PeakMemory(device()) as memory:
        next(draw(range(sampling.BATCH)))
    median, p95 = cost.latency_ms(lambda: next(draw([0], network_batch=1)), device())
    measured = {
        "latency_ms": median,
        "latency_p95_ms": p95,
        "throughput": made / sum(one["seconds"] for one in found),
        "peak_memory_mb": memory.megabytes,
    }
    nfe = sum(one["evaluations"] for one in found) / made
    return {"seeds": [one["row"] for one in found], "nfe": nfe, "strip": found[0]["strip"], "measured": measured}


def _png_strip(images: Tensor) -> str:
    """Images (n, c, h, w) uint8 side by side as a base64 PNG."""
    strip = torch.cat(list(images), dim=-1).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(strip[..., 0] if strip.shape[-1] == 1 else strip).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
