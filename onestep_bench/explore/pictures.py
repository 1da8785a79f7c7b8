"""Images to look at, as functions of models, noise and levels; sheets and sliders only show them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from onestep_bench import samplers
from onestep_bench.errors import OnestepError
from onestep_bench.methods.teacher import TEACHERS
from onestep_bench.models import FOREIGN, Model
from onestep_bench.paths import FLOW
from onestep_bench.seeds import sample_noise
from onestep_bench.training.ranks import device

Rows = dict[str, Tensor]  # images (n, c, h, w) by the name of their row
OWN = ""  # in the place of a sampler's name: of each model the one that it is made for, see `walk`
_MANY_STEPS = (*TEACHERS, FOREIGN)  # of models from elsewhere most are teachers


def walk(model: Model, sampler: str, steps: int) -> tuple[str, int]:
    """The sampler and number of steps with which a model is asked.

    Of `OWN`: a teacher so many steps of Heun's method, any other model one jump, which a flow map is told of.
    """
    if sampler != OWN:
        return sampler, steps
    return ("heun", steps) if model.artifact.recipe["method"] in _MANY_STEPS else ("push-forward", 1)


def side_by_side(
    models: Mapping[str, Model],
    *,
    number: int = 10,
    sampler: str = OWN,
    steps: int = 8,
    seed: int = 0,
    label: int | None = None,
) -> Rows:
    """A row of each model, from the same noise: column i is its sample i of that seed, as `study.sample` draws it.

    sampler, steps: as `walk` takes them; of `OWN` the name of a row tells its steps. label: the class of all of them,
    of conditional models; by default each sample's own. Raises OnestepError where no model is chosen, for a class that
    a model does not know, for steps that it cannot take, and for images that are not finite.
    """
    rows = {}
    for name, model in _some(models).items():
        noise, how = sample_noise(seed, range(number), model.shape), walk(model, sampler, steps)
        rows[_row(name, sampler, how)] = _drawn(model, noise, model.labels(range(number), seed), label, *how)
    return rows


def between(
    models: Mapping[str, Model],
    *,
    first: int = 0,
    second: int = 1,
    number: int = 9,
    sampler: str = OWN,
    steps: int = 8,
    seed: int = 0,
    label: int | None = None,
) -> Rows:
    """A row of each model along the way from the noise of sample `first` to that of `second`, on a great circle.

    sampler, steps, label: as for `side_by_side`; the class is by default that of `first` all the way, so that nothing
    but the noise changes.
    """
    rows = {}
    for name, model in _some(models).items():
        start, end = sample_noise(seed, [first, second], model.shape)
        noise = torch.stack([slerp(start, end, k / (number - 1)) for k in range(number)])
        own, how = model.labels([first] * number, seed), walk(model, sampler, steps)
        rows[_row(name, sampler, how)] = _drawn(model, noise, own, label, *how)
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
    as it is a difference of noise and image. Raises OnestepError where no model is chosen, and for a conditional one
    that does not know these classes.
    """
    eps = sample_noise(seed, range(len(images)), images.shape[1:])
    noised = FLOW.mix(images, eps, torch.tensor(t))
    rows = {f"x at t = {t:.2f}": noised}
    for name, model in _some(models).items():
        on_flow = model.denoiser.on(FLOW)
        told = _classes(name, model, labels)
        x = noised.to(device())
        rows[f"{name}: x0"] = on_flow(x, t, told, want="x0").cpu()
        rows[f"{name}: velocity"] = on_flow(x, t, told, want="velocity").cpu() / 2
    return rows


def _classes(name: str, model: Model, labels: Tensor | None) -> Tensor | None:
    known = len(model.class_counts)
    if known and (labels is None or labels.max() >= known):
        raise OnestepError(
            f"{name} is told one of {known} classes, which these images do not have; choose another model"
        )
    return labels.to(device()) if known else None


def _row(name: str, sampler: str, how: tuple[str, int]) -> str:
    return name if sampler != OWN else f"{name}, {how[0]} {how[1]}" if how[1] > 1 else f"{name}, 1 step"


def _drawn(model: Model, noise: Tensor, labels: Tensor | None, label: int | None, sampler: str, steps: int) -> Tensor:
    if labels is not None and label is not None:
        if label >= len(model.class_counts):
            raise OnestepError(f"{model.name} knows {len(model.class_counts)} classes, from 0; class {label} is none")
        labels = torch.full_like(labels, label)
    step = samplers.sampler(sampler)
    times = samplers.times_of(sampler, model.denoiser.path, steps)
    images = step(model.denoiser, noise.to(device()), times, labels).cpu()
    if not images.isfinite().all():
        raise OnestepError(f"{model.name} made images that are not finite with {sampler}, {steps} steps")
    return images


def _some(models: Mapping[str, Model]) -> Mapping[str, Model]:
    if not models:
        raise OnestepError("no model is chosen; choose one or more")
    return models
