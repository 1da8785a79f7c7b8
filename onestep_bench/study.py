"""What a notebook calls: train, make_pairs, evaluate, record. Everything but record is memoised in the store.

Ranks (see `ranks`) call the same functions and work on the same artifact: rank 0 holds its lock, writes and commits.
"""

import base64
import copy
import hashlib
import io
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from onestep_bench import (
    __version__,
    checkpoints,
    cost,
    judges,
    methods,
    models,
    networks,
    ranks,
    samplers,
    scores,
    store,
)
from onestep_bench.data import Dataset, to_uint8
from onestep_bench.denoiser import Denoiser, counting
from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.features import FeatureExtractor
from onestep_bench.files import replacing, write_json
from onestep_bench.judges import Statistics
from onestep_bench.models import Model, Pairs, device_name, sample, sample_batches
from onestep_bench.ranks import device
from onestep_bench.scoring import KEPT, combined, head, judged, score
from onestep_bench.seeds import seed_for
from onestep_bench.sources import Images
from onestep_bench.training import LogRow, Source, TrainConfig, fit

STRIP = 12  # images in the strip of samples that a score bundle keeps


def _versions() -> str:
    return f"onestep_bench {__version__}, torch {torch.__version__}, python {platform.python_version()}"


def train(
    method: str,
    data: Dataset | Pairs,
    *,
    kimg: float,
    size: str | None = None,
    seed: int = 0,
    teacher: Model | None = None,
    init: Model | None = None,
    conditional: bool = False,
    **options,
) -> Model:
    """Train a model, or find it in the store.

    method: a name of `methods.names()`. data: images, or pairs for a method that trains on pairs. kimg: thousands of
    images seen. size: named network size, by default that of `init`. init: a model whose averaged weights the student
    starts from. options: fields of the method's config and of `TrainConfig`.
    Raises OnestepError for an unknown method, size or option, and for data or a teacher that does not fit the method.
    """
    chosen = methods.get(method)
    _check_inputs(chosen, data, size, teacher, init, conditional)
    config, training = _configs(chosen, options | {"kimg": kimg})
    size = size or init.size
    class_counts = init.class_counts if init else _class_counts(data, conditional)
    recipe = {
        "method": chosen.name,
        "version": chosen.version,
        "size": size,
        "class_counts": class_counts,
        "config": asdict(config),
        "training": asdict(training) | {"betas": list(training.betas)},
        "seed": seed,
        "data": data.digest if isinstance(data, Dataset) else "pairs",
        "role": {key: model.artifact.key for key, model in (("teacher", teacher), ("init", init)) if model},
    }
    given = [data if isinstance(data, Pairs) else None, teacher, init]
    parents = {item.artifact.key: item.artifact for item in given if item}.values()

    def make(folder: Path) -> dict:
        student = _student(chosen, config, data, size, class_counts, seed, init, teacher)
        nets = methods.Nets(student, teacher.denoiser if teacher else None)
        torch.manual_seed(seed_for(seed, "auxiliary"))
        nets.auxiliary = {name: net.to(device()) for name, net in chosen.auxiliary(nets, config).items()}
        ema, rows = _fit_with_bar(chosen, nets, config, training, data, seed, folder)
        if ranks.leads():
            checkpoints.save(ema, folder)
            write_json(folder / "log.json", [asdict(row) for row in rows])
            (folder / "checkpoint.pt").unlink(missing_ok=True)
        return _cost(training.steps * training.batch_size / 1000, rows[-1].seconds)

    return Model(_memo("model", recipe, parents, make))


def _memo(kind: str, recipe: dict, parents: Iterable[store.Artifact], make: Callable[[Path], dict]) -> store.Artifact:
    """`store.memo`, by all ranks together: rank 0 asks the store, and if `make` is needed all of them call it."""

    def make_together(folder: Path) -> dict:
        ranks.shared(folder)
        return make(folder)

    with ranks.bound():
        if ranks.leads():
            artifact = store.memo(kind, recipe, parents, make_together)
            ranks.shared(None)
            return artifact
        while folder := ranks.shared(None):
            make(folder)
        return store.Artifact(store.root() / store.key_of(kind, recipe, (parent.key for parent in parents)))


def _cost(kimg: float, seconds: float) -> dict:
    """The cost of an artifact; of ranks, the seconds of all of them."""
    name = device_name() if ranks.count() == 1 else f"{ranks.count()} x {device_name()}"
    return {"kimg": kimg, "seconds": seconds * ranks.count(), "device": name}


def _bar(**options) -> tqdm:
    """A progress bar, on rank 0."""
    return tqdm(**options) if ranks.leads() else tqdm(**options, disable=True)


def _check_inputs(method, data, size, teacher, init, conditional) -> None:
    kind = "pairs" if isinstance(data, Pairs) else "images"
    if kind != method.data:
        raise OnestepError(f"{method.name} trains on {method.data}, not on {kind}; see make_pairs and data.load")
    if method.needs_teacher and teacher is None:
        raise OnestepError(f"{method.name} needs a teacher; pass teacher=")
    if size is None and init is None:
        raise OnestepError(f"{method.name} needs a size or an init model; known sizes: {', '.join(networks.SIZES)}")
    for model in (teacher, init):
        if model and model.class_counts and not data.class_counts:
            raise OnestepError(f"{model.artifact.key} is conditional, and the data have no labels; use labelled data")
    if teacher and not init and bool(teacher.class_counts) != conditional:
        wanted = "a conditional" if teacher.class_counts else "an unconditional"
        raise OnestepError(f"the teacher wants {wanted} student; pass conditional={bool(teacher.class_counts)}")
    if init and size not in (None, init.size):
        raise OnestepError(f"size {size} differs from the init model's {init.size}; leave size out")


def _configs(method, options: dict) -> tuple[object, TrainConfig]:
    own = {field.name for field in fields(method.config)}
    common = {field.name for field in fields(TrainConfig)}
    for name in options:
        if name not in own | common:
            raise OnestepError(f"{method.name} has no option {name!r}{near_miss(name, own | common)}")
    # 200 and 200.0 are one budget, and must be one key.
    floats = {field.name for field in (*fields(method.config), *fields(TrainConfig)) if field.type in (float, "float")}
    try:
        options = {name: float(value) if name in floats else value for name, value in options.items()}
    except (TypeError, ValueError) as error:
        raise OnestepError(f"{method.name}: {error}; a number is needed") from error
    config = method.config(**{name: value for name, value in options.items() if name in own})
    training = method.training | {name: value for name, value in options.items() if name in common}
    return config, TrainConfig(**training)


def _class_counts(data: Dataset | Pairs, conditional: bool) -> list[int]:
    if not conditional:
        return []
    if not data.class_counts:
        raise OnestepError("conditional training needs labels, and the data have none")
    return data.class_counts


def _student(method, config, data, size, class_counts, seed, init, teacher) -> Denoiser:
    if init:
        start = checkpoints.load(init.artifact.folder, str(device()))
        net, native = start.net.requires_grad_(True), start.native
    else:
        shape = data.images.shape[1:]
        torch.manual_seed(seed_for(seed, "init"))
        net, native = networks.sized(size, shape[-1], shape[0], label_dim=len(class_counts)).to(device()), None
    return method.student(config, net, native, teacher.denoiser if teacher else None).train()


def _fit_with_bar(method, nets, config, training, data, seed, folder) -> tuple[Denoiser, list[LogRow]]:
    ema = copy.deepcopy(nets.student).eval().requires_grad_(False)
    labels = data.labels if nets.student.num_classes else None
    source = Source(data.images, labels, data.noise if isinstance(data, Pairs) else None, device())
    rows = []
    with _bar(total=round(training.steps * training.batch_size / 1000, 1), unit="kimg", desc=method.name) as bar:
        objective = method.objective(nets, config)
        steps = fit(
            objective,
            {"student": nets.student, **nets.auxiliary},
            source,
            training,
            seed=seed_for(seed, "train"),
            adams=method.adams(config, training.betas),
            ema=ema,
            checkpoint=folder / "checkpoint.pt",
            checkpoint_seconds=float(os.environ.get("ONESTEP_CHECKPOINT_SECONDS", "60")),
            name=method.name,
        )
        for row in steps:
            rows.append(row)
            bar.update(row.kimg - bar.n)
            bar.set_postfix(row.losses)
    return ema, rows


def make_pairs(teacher: Model, n: int, *, sampler: str = "heun", steps: int = 18, seed: int = 0) -> Pairs:
    """n pairs of noise and the teacher's image from it, or those in the store. A killed run keeps its finished parts.

    The defaults are SlimFlow's for an EDM teacher (18 Heun steps).
    """
    if n < 1:
        raise OnestepError(f"cannot make {n} pairs; ask for at least 1")
    recipe = {"n": n, "sampler": sampler, "steps": steps, "seed": seed, "class_counts": teacher.class_counts}
    if teacher.path:
        recipe["path"] = teacher.path.spec()
    samplers.sampler(sampler)

    def make(folder: Path) -> dict:
        part_size = 16 * models.BATCH
        parts = {first: folder / f"part-{first:09d}.safetensors" for first in range(0, n, part_size)}
        missing = ranks.shared([first for first, path in parts.items() if not path.exists()])
        for first in _bar(iterable=missing, unit="part", desc="pairs"):
            clock = cost.Stopwatch()
            indices = range(first, min(first + part_size, n))
            images = _sample(teacher, indices, sampler=sampler, steps=steps, seed=seed, purpose="pairs")
            if ranks.leads():
                with replacing(parts[first]) as temporary:
                    save_file({"images": images, "seconds": torch.tensor(clock.seconds)}, temporary)
        return _cost(0.0, _join_parts(parts.values(), folder) if ranks.leads() else 0.0)

    return Pairs(_memo("pairs", recipe, [teacher.artifact], make))


def _sample(model: Model, indices: Sequence[int], **asked) -> Tensor | None:
    """`sample` by all ranks, each a share of the indices: the same images, on rank 0 alone."""
    own = ranks.own(indices)
    images = ranks.gathered(sample(model, own, **asked) if own else torch.empty(0, *model.shape))
    return torch.cat(images) if images else None


def _join_parts(parts: Iterable[Path], folder: Path) -> float:
    """Make the parts one file; the seconds they took."""
    loaded = [load_file(path) for path in parts]
    with replacing(folder / "images.safetensors") as temporary:
        save_file({"images": torch.cat([part["images"] for part in loaded])}, temporary)
    for path in folder.glob("part-*.safetensors"):
        path.unlink()
    return sum(part["seconds"].item() for part in loaded)


def evaluate(
    model: Model,
    data: Dataset | Statistics,
    *,
    label: str,
    steps: Sequence[int] = (1, 2, 4),
    sampler: str = "euler",
    seeds: Sequence[int] = (0, 1, 2),
    samples: int | None = None,
    features: str = "digits",
) -> dict:
    """Score a model at each number of steps and sampling seed, with what it costs.

    data: the reference; of a data set it is the training split, as is usual in the field. label: what plots call the
    model. samples: how many images to score, by default as many as the reference has. features: a name of
    `judges.names()`. A killed run keeps the seeds that were done.
    Returns a score bundle (see `scores.bundle`) for `record`.
    """
    if not seeds or not steps:
        raise OnestepError("evaluate needs at least one sampling seed and one number of steps")
    samples = _enough(samples, data)
    _same_shape(model.name, model.shape, data)
    extractor = judges.judge(features, data)
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
            "version": 3,
            "path": model.path.spec() if model.path else None,
        }

        def make(folder: Path, count=count) -> dict:
            clock = cost.Stopwatch()
            reference = judges.reference(extractor, data)
            own = ranks.own(range(samples))
            with _bar(total=len(own) * len(seeds), unit="image", desc=f"{sampler} {count}") as bar:
                score = partial(_score_seed, model, extractor, reference, sampler, count, samples, bar)
                found = [_once(folder / f"seed-{seed}.json", partial(score, seed)) for seed in seeds]
            if ranks.leads():
                write_json(folder / "scores.json", _together(model, sampler, count, found))
                for path in folder.glob("seed-*.json"):
                    path.unlink()
            return _cost(0.0, clock.seconds)

        artifact = _memo("scores", recipe, [model.artifact], make)
        scored = json.loads((artifact.folder / "scores.json").read_text())
        common = _judged_by(data, extractor, samples) | _model_fields(model, label) | scored["measured"]
        common |= {"sampler": sampler, "steps": count, "nfe": scored["nfe"]}
        common["device"] = artifact.meta["cost"]["device"]
        rows += [{**common, **seed} for seed in scored["seeds"]]
        keys = ("label", "size", "steps", "sampler", "train_seed")
        strips.append({key: common[key] for key in keys} | {"png": scored["strip"]})
    return scores.bundle(rows, strips)


def evaluate_images(
    images: Images,
    data: Dataset | Statistics,
    *,
    label: str | None = None,
    samples: int | None = None,
    features: str = "digits",
) -> dict:
    """Score images that somebody else made, by the same judge as `evaluate`, in one row; what is not known is None.

    samples: how many of them to score, the first ones, by default all. Nothing but the judged reference is stored.
    """
    samples = _enough(len(images) if samples is None else samples, data)
    if samples > len(images):
        raise OnestepError(f"{samples} samples were asked for, and {images.name} has {len(images)}; ask for fewer")
    _same_shape(images.name, images.shape, data)
    extractor = judges.judge(features, data)
    digest = hashlib.sha256()

    def hashed(bar) -> Iterator[Tensor]:
        for batch in head(images.batches(), samples):
            digest.update(batch.contiguous().numpy().data)
            yield batch
            bar.update(len(batch))

    reference = judges.reference(extractor, data)
    with _bar(total=samples, unit="image", desc=images.name) as bar:
        found = score(judged(extractor, hashed(bar), samples), reference)
    row = dict.fromkeys(scores.FIELDS) | _judged_by(data, extractor, samples) | found
    row |= {"label": label or images.name, "model": f"images-{digest.hexdigest()[:16]}", "device": device_name()}
    return scores.bundle([row], [])


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
        "protocol": judges.protocol(extractor, samples, data),
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


def _once(path: Path, make: Callable[[], dict]) -> dict:
    """What `make`, called by all ranks, returns on rank 0, or the file a killed run left of it."""
    if not ranks.shared(path.exists()):
        made = make()
        if ranks.leads():
            write_json(path, made)
    return json.loads(path.read_text()) if ranks.leads() else {}


def _score_seed(model, extractor, reference, sampler, steps, samples, bar, seed) -> dict:
    own = ranks.own(range(samples))
    strip, seconds = None, 0.0

    def images() -> Iterator[Tensor]:
        nonlocal strip, seconds
        batches, clock = (
            sample_batches(model, own, sampler=sampler, steps=steps, seed=seed),
            cost.Stopwatch(),
        )
        for batch in batches:
            batch = to_uint8(batch)
            seconds += clock.seconds
            strip = batch[:STRIP].cpu() if strip is None else strip
            yield batch
            bar.update(len(batch))
            clock = cost.Stopwatch()

    with counting(model.denoiser) as counter:
        part = judged(extractor, images(), len(own), kept=KEPT * len(own) // samples)
    made = -(-len(own) // models.BATCH) * models.BATCH  # the last batch is padded
    parts = ranks.gathered((part, strip, {"seconds": seconds, "evaluations": counter.rows, "made": made}))
    if not parts:
        return {}
    judgements, strips, numbers = zip(*parts, strict=True)
    return {
        "row": {"seed": seed} | score(combined(judgements), reference),
        "strip": _png_strip(torch.cat(strips)[:STRIP]),
        **{name: sum(of_rank[name] for of_rank in numbers) for name in numbers[0]},
    }


def _together(model, sampler, steps, found: list[dict]) -> dict:
    made = sum(one["made"] for one in found)
    draw = partial(sample_batches, model, sampler=sampler, steps=steps)
    with cost.PeakMemory(device()) as memory:
        next(draw(range(models.BATCH)))
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


def record(*bundles: dict) -> None:
    """Show score bundles as a table and leave them in the notebook's output: an executed notebook is the record."""
    import pandas as pd
    from IPython.display import display

    rows = [row for bundle in bundles for row in bundle["rows"]]
    strips = [strip for bundle in bundles for strip in bundle["strips"]]
    table = pd.DataFrame(rows).groupby(["label", "size", "sampler", "steps"], sort=False, dropna=False)
    table = table.agg(
        nfe=("nfe", "first"),
        fid=("fid", "mean"),
        std=("fid", "std"),
        best=("fid", "min"),
        precision=("precision", "mean"),
        recall=("recall", "mean"),
    )
    data = {scores.MIME: scores.bundle(rows, strips), "text/plain": table.round(2).to_string()}
    display(data | {"text/html": table.round(2).to_html()}, raw=True)
