"""Pairs of noise and image: the teacher's image of drawn noise, or the noise of real images."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from onestep_bench import samplers
from onestep_bench.data.pixels import to_unit
from onestep_bench.data.registry import Dataset
from onestep_bench.denoiser import counting
from onestep_bench.errors import OnestepError
from onestep_bench.models import cost, sampling
from onestep_bench.models.model import Model, Pairs, check_whole
from onestep_bench.models.sampling import sample
from onestep_bench.seeds import sample_noise
from onestep_bench.store.files import replacing
from onestep_bench.training import ranks, together
from onestep_bench.training.ranks import device


def make_pairs(
    teacher: Model, n: int, *, sampler: str = "heun", steps: int = 18, seed: int = 0, fresh: bool = False
) -> Pairs:
    """n pairs of noise and the teacher's image from it, or those in the store. A killed run keeps its finished parts.

    The defaults are SlimFlow's for an EDM teacher (18 Heun steps). fresh: as for `train`.
    """
    recipe = _recipe(teacher, n, sampler, steps, seed)

    def made(indices: range) -> dict[str, Tensor]:
        return {"images": sample(teacher, indices, sampler=sampler, steps=steps, seed=seed, purpose="pairs")}

    make = _maker(teacher, n, made)
    source = sampling.source_of(sampler)
    return Pairs(together.memo("pairs", recipe, [teacher.artifact], make, source=source, fresh=fresh))


def invert_pairs(
    teacher: Model, data: Dataset, n: int, *, steps: int = 18, seed: int = 0, fresh: bool = False
) -> Pairs:
    """n pairs of a real image and noise from which the teacher's ODE leads to it (`samplers.encode`).

    They are to a regression what real images are to a critic. Where n is more than there are images, an image comes
    again with other noise. steps: of the way up, 2 steps - 2 evaluations an image. fresh: as for `train`.
    Raises OnestepError for images of another size than the teacher's, or without the labels it asks for.
    """
    if tuple(teacher.shape) != data.shape:
        raise OnestepError(
            f"the teacher makes images of {teacher.shape} and {data.name} has {data.shape}; use its data"
        )
    if teacher.class_counts and data.labels is None:
        raise OnestepError(f"the teacher is conditional, and {data.name} has no labels; use labelled data")
    recipe = _recipe(teacher, n, "encode", steps, seed) | {"images": data.digest}
    times = samplers.default_times(teacher.denoiser.path, steps)

    def made(indices: range) -> dict[str, Tensor]:
        found = [_encoded(teacher, data, rows, times, seed) for rows in _batches(indices)]
        return {name: torch.cat([part[name] for part in found]) for name in found[0]}

    make = _maker(teacher, n, made)
    source = ["models.pairing:_encoded", *sampling.source_of("heun")]
    return Pairs(together.memo("pairs", recipe, [teacher.artifact], make, source=source, fresh=fresh))


def _recipe(teacher: Model, n: int, sampler: str, steps: int, seed: int) -> dict:
    check_whole(teacher)
    if n < 1:
        raise OnestepError(f"cannot make {n} pairs; ask for at least 1")
    recipe = {"n": n, "sampler": sampler, "steps": steps, "seed": seed, "class_counts": teacher.class_counts}
    recipe |= {"path": teacher.path.spec()} if teacher.path else {}
    return recipe | ({} if teacher.average is None else {"average": teacher.average})


def _encoded(teacher: Model, data: Dataset, indices: Sequence[int], times: Tensor, seed: int) -> dict[str, Tensor]:
    """Images, their noise, and labels if the teacher is told them; pair i is of image i, modulo their number."""
    padded = [*indices, *[indices[0]] * (sampling.BATCH - len(indices))]  # for the reason given at BATCH
    rows = torch.tensor(padded) % len(data)
    images = to_unit(data.images[rows]).to(device())
    labels = data.labels[rows] if teacher.class_counts else None
    eps = sample_noise(seed, padded, data.shape, "encode").to(device())
    noise = samplers.encode(teacher.denoiser, images, eps, times, None if labels is None else labels.to(device()))
    found = {"images": images.cpu(), "noise": noise.cpu()} | ({} if labels is None else {"labels": labels})
    return {name: tensor[: len(indices)] for name, tensor in found.items()}


def _batches(indices: range) -> list[range]:
    return [indices[start : start + sampling.BATCH] for start in range(0, len(indices), sampling.BATCH)]


def _maker(teacher: Model, n: int, made: Callable[[range], dict[str, Tensor]]) -> Callable[[Path], dict]:
    """What makes the artifact in parts, each a file that a killed run keeps; ranks share each part."""

    def make(folder: Path) -> dict:
        size = 16 * sampling.BATCH
        parts = {first: folder / f"part-{first:09d}.safetensors" for first in range(0, n, size)}
        missing = ranks.shared([first for first, path in parts.items() if not path.exists()])
        for first in together.bar(iterable=missing, unit="part", desc="pairs"):
            clock = cost.Stopwatch()
            own = ranks.own(range(first, min(first + size, n)))
            with counting(teacher.denoiser) as counter:
                found = made(own) if own else {}
            gathered = ranks.gathered((found, _unpadded(counter.rows, len(own))))
            if ranks.leads():
                tensors, rows = zip(*gathered, strict=True)
                numbers = {"seconds": clock.seconds, "rows": sum(rows), "busy": ranks.busy()}
                about = {name: torch.tensor(number) for name, number in numbers.items() if number is not None}
                with replacing(parts[first]) as temporary:
                    save_file(_joined(tensors) | about, temporary)
        return _join_parts(parts.values(), folder, teacher) if ranks.leads() else {}

    return make


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Row by row, of those that have any."""
    some = [part for part in parts if part]
    return {name: torch.cat([part[name] for part in some]) for name in some[0]}


def _unpadded(rows: int, images: int) -> int:
    """Of the rows that went through a network for so many images, those that were not padding of the last batch."""
    made = -(-images // sampling.BATCH) * sampling.BATCH
    return round(rows * images / made) if images else 0


def _join_parts(parts: Iterable[Path], folder: Path, teacher: Model) -> dict:
    """Make the parts one file; what they cost."""
    loaded = [load_file(path) for path in parts]
    with replacing(folder / "images.safetensors") as temporary:
        save_file(_joined([{name: part[name] for name in part.keys() & _ROWS} for part in loaded]), temporary)
    for path in folder.glob("part-*.safetensors"):
        path.unlink()
    seconds = sum(part["seconds"].item() for part in loaded)
    # Parts of an older version do not tell.
    known = all("rows" in part for part in loaded)
    passes = {"teacher": sum(part["rows"].item() for part in loaded) / 1000} if known else {}
    busy = cost.mean_busy(part["busy"].item() if "busy" in part else None for part in loaded)
    return together.spent(0.0, seconds, **cost.work({"teacher": teacher.denoiser}, passes, teacher.shape), busy=busy)


_ROWS = {"images", "noise", "labels"}
