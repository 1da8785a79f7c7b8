"""Images to look at, as functions of models, noise and levels; sheets and sliders only show them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from onestep_bench import samplers
from onestep_bench.errors import OnestepError
from onestep_bench.models import Model
from onestep_bench.paths import FLOW
from onestep_bench.seeds import sample_noise
from onestep_bench.training.ranks import device

Rows = dict[str, Tensor]  # images (n, c, h, w) by the name of their row


def side_by_side(
    models: Mapping[str, Model],
    *,
    number: int = 10,
    sampler: str = "euler",
    steps: int = 1,
    seed: int = 0,
    label: int | None = None,
) -> Rows:
    """A row of each model, from the same noise: column i is its sample i of that seed, as `study.sample` draws it.

    label: the class of all of them, of conditional models; by default each sample's own. Raises OnestepError where
    no model is chosen, and for a class that a model does not know.
    """
    return {
        name: _drawn(model, sample_noise(seed, range(number), model.shape), number, sampler, steps, seed, label)
        for name, model in _some(models).items()
    }


def between(
    models: Mapping[str, Model],
    *,
    first: int = 0,
    second: int = 1,
    number: int = 9,
    sampler: str = "euler",
    steps: int = 1,
    seed: int = 0,
    label: int | None = None,
) -> Rows:
    """A row of each model along the way from the noise of sample `first` to that of `second`, on a great circle.

    label: as for `side_by_side`; by default that of `first` all the way, so that nothing but the noise changes.
    """
    rows = {}
    for name, model in _some(models).items():
        start, end = sample_noise(seed, [first, second], model.shape)
        noise = torch.stack([slerp(start, end, k / (number - 1)) for k in range(number)])
        own = model.labels([first], seed)
        label_here = label if label is not None or own is None else int(own[0])
        rows[name] = _drawn(model, noise, number, sampler, steps, seed, label_here)
    return rows


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """What lies at a share of the way from one noise to another on the great circle through both (Shoemake 1985).

    A straight line would pass noise that is too weak, which no model was trained on.
    """
    cosine = (start * end).sum() / (start.norm() * end.norm())
    angle = torch.arccos(cosine.clamp(-1, 1))
    if angle.sin() < 1e-4:  # of one direction
        return torch.lerp(start, end, share)
    return (torch.sin((1 - share) * angle) * start + torch.sin(share * angle) * end) / torch.sin(angle)


@torch.no_grad()
def level(
    models: Mapping[str, Model], images: Tensor, t: float, *, seed: int = 0, labels: Tensor | None = None
) -> Rows:
    """Images (n, c, h, w) in [-1, 1] noised to level t of the FLOW path, and each model's x0 and velocity there.

    labels: classes (n,) of the images, which conditional models are told. A velocity is drawn at half its size,
    as it is a difference of noise and image.
    """
    eps = sample_noise(seed, range(len(images)), images.shape[1:])
    noised = FLOW.mix(images, eps, torch.tensor(t))
    rows = {f"x at t = {t:.2f}": noised}
    for name, model in _some(models).items():
        on_flow = model.denoiser.on(FLOW)
        told = labels.to(device()) if model.class_counts and labels is not None else None
        x = noised.to(device())
        rows[f"{name}: x0"] = on_flow(x, t, told, want="x0").cpu()
        rows[f"{name}: velocity"] = on_flow(x, t, told, want="velocity").cpu() / 2
    return rows


def _drawn(model: Model, noise: Tensor, number: int, sampler: str, steps: int, seed: int, label: int | None) -> Tensor:
    labels = model.labels(range(number), seed)
    if labels is not None and label is not None:
        if label >= len(model.class_counts):
            raise OnestepError(f"{model.name} knows {len(model.class_counts)} classes, from 0; class {label} is none")
        labels = torch.full_like(labels, label)
    step = samplers.sampler(sampler)
    times = samplers.times_of(sampler, model.denoiser.path, steps)
    return step(model.denoiser, noise.to(device()), times, labels).cpu()


def _some(models: Mapping[str, Model]) -> Mapping[str, Model]:
    if not models:
        raise OnestepError("no model is chosen; choose one or more")
    return models
