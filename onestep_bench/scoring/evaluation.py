"""Score rows of models and of images from anywhere: by several judges, against both splits, with what it costs."""

import base64
import hashlib
import io
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from onestep_bench import __version__
from onestep_bench.data.pixels import to_uint8
from onestep_bench.data.registry import Dataset
from onestep_bench.data.splits import SPLITS, WHOLE, check_split
from onestep_bench.data.streams import Images
from onestep_bench.denoiser import counting
from onestep_bench.errors import OnestepError
from onestep_bench.models import cost, sampling
from onestep_bench.models.model import Model
from onestep_bench.models.sampling import sample_batches
from onestep_bench.scoring import real, references
from onestep_bench.scoring.judges import FeatureExtractor
from onestep_bench.scoring.judging import KEPT, Judged, Sitting, combined, head
from onestep_bench.scoring.nearest import images_of, nearest_training
from onestep_bench.scoring.qualities import further, score, sources
from onestep_bench.scoring.references import Statistics
from onestep_bench.scoring.rows import FIELDS, bundle
from onestep_bench.store.files import write_json
from onestep_bench.store.revision import revision
from onestep_bench.training import ranks, together
from onestep_bench.training.ranks import device, device_name

STRIP = 12  # images in the strip of samples that a score bundle keeps


def _versions() -> str:
    commit = f" (git {revision()})" if revision() else ""
    return f"onestep_bench {__version__}{commit}, torch {torch.__version__}, python {platform.python_version()}"


def evaluate(
    model: Model,
    data: Dataset | Statistics,
    *,
    label: str,
    steps: Sequence[int] = (1, 2, 4),
    sampler: str = "euler",
    seeds: Sequence[int] = (0, 1, 2),
    samples: int | None = None,
    features: str | Sequence[str] = "auto",
    splits: Sequence[str] = SPLITS,
    published: Statistics | None = None,
    purpose: str = "result",
    fresh: bool = False,
) -> dict:
    """Score a model at each number of steps and sampling seed, before each judge and against each split, with its cost.

    data: the reference, of which `splits` are scored against (those it has). label: what plots call the model.
    samples: how many images to score, by default as many as `data` has. features: judges, see `references.panel`: one
    named alone has `pixels` beside it. published: statistics that those of the judges that are Inception score the same
    samples against too, in rows of their own. purpose: 'result', or 'search' for a run that only chooses a setting.
    fresh: as `store.memo` takes it. A killed run keeps the seeds that were done.
    Returns a score bundle (see `rows.bundle`) for `record`.
    """
    if not seeds or not steps:
        raise OnestepError("evaluate needs at least one sampling seed and one number of steps")
    if purpose not in ("result", "search"):
        raise OnestepError(f"purpose is 'result' or 'search', not {purpose!r}")
    samples = _enough(samples, data)
    _same_shape(model.name, model.shape, data)
    bench = _Bench.of(features, _against(data, splits), fresh, published)
    source = ["scoring.evaluation:_score_seed", "scoring.real:held_out", *sources(), *bench.sources()]
    source += sampling.source_of(sampler)
    rows, strips = [], []
    for count in steps:
        recipe = {
            "sampler": sampler,
            "steps": count,
            "seeds": list(seeds),
            "samples": samples,
            "bench": bench.spec(),
            "version": 5,  # of the metrics that every row has; further ones are named, so that each is scored once
            "path": model.path.spec() if model.path else None,
        }
        if model.snapshot is not None:
            recipe["snapshot"] = model.snapshot
        if model.average is not None:
            recipe["average"] = model.average
        if further():
            recipe["metrics"] = sorted(further())

        def make(folder: Path, count=count) -> dict:
            clock = cost.Stopwatch()
            files = {seed: folder / f"seed-{seed}.json" for seed in seeds}
            # Not those a killed run has done; what there is, rank 0 says, as it is writing them.
            todo = ranks.shared([seed for seed, file in files.items() if not file.exists()])
            own = ranks.own(range(samples))
            with together.bar(total=len(own) * len(todo), unit="image", desc=f"{sampler} x{count}") as bar:
                for seed in todo:
                    found = _score_seed(model, bench, sampler, count, samples, bar, seed)
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
        common = _model_fields(model, label) | scored["measured"] | {"purpose": purpose}
        common |= {"sampler": sampler, "steps": count, "nfe": scored["nfe"], "samples": samples}
        common["device"] = artifact.meta["cost"]["device"]
        loads = (common["busy"], scored["measured"]["busy"])
        common["busy"] = max((load for load in loads if load is not None), default=None)
        for place, seat in enumerate(bench.seats):
            judged_by = seat.fields(samples) | common
            rows += [{**judged_by, "seed": seed["seed"], **seed["scores"][place]} for seed in scored["seeds"]]
        keys = ("label", "size", "saw", "recipe", "steps", "sampler", "train_seed", "kimg")
        strips.append({key: common[key] for key in keys} | {"png": scored["strip"]} | _nearest(scored["strip"], bench))
    return bundle(rows, strips, further(), {model.recipe_hash: model.settings})


def _nearest(png: str, bench: "_Bench") -> dict:
    """`nearest` of a strip: {png, index} of the training images nearest to its own; nothing where there are none."""
    train = next((seat.against for seat in bench.seats if getattr(seat.against, "split", "") == "train"), None)
    if train is None:
        return {}
    images, index = nearest_training(images_of(png), train)
    return {"nearest": {"png": _png_strip(images), "index": index}}


def evaluate_images(
    images: Images,
    data: Dataset | Statistics,
    *,
    label: str | None = None,
    samples: int | None = None,
    features: str | Sequence[str] = "auto",
    splits: Sequence[str] = SPLITS,
) -> dict:
    """Score images that somebody else made, before the same judges as `evaluate`; what is not known is None.

    samples: how many of them to score, the first ones, by default all. Nothing but the judged references is stored.
    """
    samples = _enough(len(images) if samples is None else samples, data)
    if samples > len(images):
        raise OnestepError(f"{samples} samples were asked for, and {images.name} has {len(images)}; ask for fewer")
    _same_shape(images.name, images.shape, data)
    bench = _Bench.of(features, _against(data, splits), False)
    digest = hashlib.sha256()
    with together.bar(total=samples, unit="image", desc=images.name) as bar:
        sittings = bench.sittings(samples)
        for batch in head(images.batches(), samples):
            digest.update(batch.contiguous().numpy().data)
            for sitting in sittings.values():
                sitting.see(batch)
            bar.update(len(batch))
    found = bench.scores({key: sitting.verdict() for key, sitting in sittings.items()}, samples)
    known = {"label": label or images.name, "model": f"images-{digest.hexdigest()[:16]}", "device": device_name()}
    known |= {"purpose": "result", "samples": samples, "versions": _versions()}
    rows = [
        dict.fromkeys(FIELDS) | seat.fields(samples) | known | scores
        for seat, scores in zip(bench.seats, found, strict=True)
    ]
    return bundle(rows, [], further())


def _against(data: Dataset | Statistics, splits: Sequence[str]) -> list[Dataset | Statistics]:
    """The references: of the splits asked for those that there are, else what was given."""
    if isinstance(data, Statistics):
        return [data]
    if not splits:
        raise OnestepError("no split is named to score against; name train, test or both")
    for split in splits:
        check_split(split)
    return [data.on(split) for split in splits] if data.splits else [data]


@dataclass(frozen=True)
class _Seat:
    """A judge before a reference, of which it makes something only when samples are to be scored."""

    extractor: FeatureExtractor
    against: Dataset | Statistics
    fresh: bool

    @cached_property
    def reference(self) -> Judged:
        return references.reference(self.extractor, self.against, fresh=self.fresh)

    @property
    def key(self) -> str:
        """What tells judges apart: seats of one judge share what it sees."""
        return f"{self.extractor.digest} {self.extractor.protocol}"

    def fields(self, samples: int) -> dict:
        """Of a score row."""
        return {
            "dataset": self.against.name,
            "split": self.against.split if getattr(self.against, "splits", ()) else WHOLE,
            "features": self.extractor.name,
            "protocol": references.protocol(self.extractor, samples, self.against),
        }


@dataclass(frozen=True)
class _Bench:
    """All judges before all references: they see one stream of samples."""

    seats: list[_Seat]

    @classmethod
    def of(
        cls,
        features: str | Sequence[str],
        against: Sequence[Dataset | Statistics],
        fresh: bool,
        published: Statistics | None = None,
    ) -> "_Bench":
        names = [features] if isinstance(features, str) else list(features)
        seats = []
        for one in against:
            for name in references.panel(names, one):
                seats.append(_Seat(references.judge(name, one, fresh=fresh), one, fresh))
        for name in references.inceptions(names) if published else ():
            seats.append(_Seat(references.judge(name, published, fresh=fresh), published, fresh))
        return cls(seats)

    def spec(self) -> list:
        """JSON-able: who judges what."""
        return [[seat.extractor.digest, seat.extractor.protocol, seat.against.digest] for seat in self.seats]

    def sources(self) -> list[str]:
        """Where the source of what the judges find begins, for `store.memo`."""
        return [name for seat in self.seats for name in references.source_of(seat.extractor)]

    def sittings(self, total: int, kept: int = KEPT) -> dict[str, Sitting]:
        """One for each judge, by `_Seat.key`."""
        return {seat.key: Sitting(seat.extractor, total, kept) for seat in self.seats}

    def scores(self, found: Mapping[str, Judged], samples: int) -> list[dict]:
        """Fields of a score row, a dictionary a seat."""
        return [self._score(seat, found[seat.key], samples) for seat in self.seats]

    @staticmethod
    def _score(seat: _Seat, found: Judged, samples: int) -> dict:
        scores = score(found, seat.reference)
        if not isinstance(seat.against, Dataset):
            return scores | {"floor": None, "nn_ratio": None}
        scores |= real.held_out(seat.extractor, seat.against, found, samples)
        if why := real.untold(seat.extractor, seat.against, seat.reference, samples):
            scores |= {"nn_ratio": None, "warning": "; ".join(filter(None, [scores["warning"], why]))}
        return scores


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


def _model_fields(model: Model, label: str) -> dict:
    spent, recipe = model.spent, model.artifact.recipe
    return {
        "label": label,
        "method": recipe["method"],
        "size": model.size,
        "saw": model.saw,
        "recipe": model.recipe_hash,
        "teacher_seed": model.teacher_seed,
        "train_seed": recipe["seed"],
        "params": cost.parameters(model.denoiser.net),
        "macs": cost.macs(model.denoiser, model.shape),
        "kimg": spent["kimg"],
        "passes": spent["passes"],
        "train_macs": spent["macs"],
        "train_seconds": spent["seconds"],
        "busy": spent["busy"],
        "weights": model.weights,
        "model": model.name,
        "versions": _versions(),
    }


def _score_seed(model, bench, sampler, steps, samples, bar, seed) -> dict:
    """Scores of one sampling seed, on rank 0, from all ranks' shares of the images."""
    own = ranks.own(range(samples))
    sittings = bench.sittings(len(own), KEPT * len(own) // samples)
    strip, seconds = None, 0.0
    with counting(model.denoiser) as counter:
        clock = cost.Stopwatch()
        for batch in sample_batches(model, own, sampler=sampler, steps=steps, seed=seed):
            batch = to_uint8(batch)
            seconds += clock.seconds
            strip = batch[:STRIP].cpu() if strip is None else strip
            for sitting in sittings.values():
                sitting.see(batch)
            bar.update(len(batch))
            clock = cost.Stopwatch()
    found = {key: sitting.verdict() for key, sitting in sittings.items()}
    made = -(-len(own) // sampling.BATCH) * sampling.BATCH  # the last batch is padded
    parts = ranks.gathered((found, strip, {"seconds": seconds, "evaluations": counter.rows, "made": made}))
    if not parts:
        return {}
    judgements, strips, numbers = zip(*parts, strict=True)
    whole = {key: combined([judgement[key] for judgement in judgements]) for key in found}
    return {
        "seed": seed,
        "scores": bench.scores(whole, samples),
        "strip": _png_strip(torch.cat(strips)[:STRIP]),
        **{name: sum(of_rank[name] for of_rank in numbers) for name in numbers[0]},
    }


def _summary(model, sampler, steps, found: list[dict]) -> dict:
    made = sum(one["made"] for one in found)
    draw = partial(sample_batches, model, sampler=sampler, steps=steps)
    with cost.PeakMemory(device()) as memory:
        next(draw(range(sampling.BATCH)))
    busy = ranks.busy()
    median, p95 = cost.latency_ms(lambda: next(draw([0], network_batch=1)), device())
    measured = {
        "latency_ms": median,
        "latency_p95_ms": p95,
        "throughput": made / sum(one["seconds"] for one in found),
        "peak_memory_mb": memory.megabytes,
        "busy": busy,
    }
    nfe = sum(one["evaluations"] for one in found) / made
    seeds = [{"seed": one["seed"], "scores": one["scores"]} for one in found]
    return {"seeds": seeds, "nfe": nfe, "strip": found[0]["strip"], "measured": measured}


def _png_strip(images: Tensor) -> str:
    """Images (n, c, h, w) uint8 side by side as a base64 PNG."""
    strip = torch.cat(list(images), dim=-1).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(strip[..., 0] if strip.shape[-1] == 1 else strip).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
