"""Consistency models: distilled from a teacher (CD), or tuned from its weights without one (ECT).

A consistency function maps every point of a trajectory of the probability-flow ODE to its end. Consistency
distillation (Song et al. 2023, arXiv:2303.01469) asks equal answers at two neighbouring points of the *teacher's*
trajectory; easy consistency tuning (Geng et al. 2024, arXiv:2406.14548) at two points of the straight line from an
image to its noise, which it brings together as training goes on. On the VE path, the denoiser itself is the function:
EDM's preconditioning makes it the identity at level 0, as consistency demands.
"""

import copy
import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from onestep_bench import losses
from onestep_bench.denoiser import EDM, Denoiser
from onestep_bench.errors import OnestepError
from onestep_bench.losses import Distance
from onestep_bench.methods import Method, Nets, move_towards, register
from onestep_bench.paths import VE
from onestep_bench.samplers import karras_times


@torch.no_grad()
def heun_step(teacher, x: Tensor, t: Tensor, t_next: Tensor, labels: Tensor | None = None) -> Tensor:
    """One Heun step of the teacher's ODE from x (n, c, h, w) at levels t (n,) to t_next (n,), both above 0, on VE."""
    step = (t_next - t).reshape(-1, 1, 1, 1)
    slope = teacher(x, t, labels, want="velocity")
    return x + step / 2 * (slope + teacher(x + step * slope, t_next, labels, want="velocity"))


def distillation_loss(
    student,
    target,
    teacher,
    data: Tensor,
    eps: Tensor,
    t: Tensor,
    t_next: Tensor,
    distance: str | Distance,
    labels: Tensor | None = None,
) -> Tensor:
    """D(f(x_t, t), f_target(x', t')), x' the teacher's Heun step from t down to t' (Song et al. 2023): a scalar.

    student, target, teacher on VE; data, eps (n, c, h, w); t, t_next (n,), t > t_next > 0.
    """
    x = VE.mix(data, eps, t)
    with torch.no_grad():
        wanted = target(heun_step(teacher, x, t, t_next, labels), t_next, labels, want="x0")
    return losses.distance(distance)(student(x, t, labels, want="x0"), wanted)


@dataclass(frozen=True)
class DistillationConfig:
    """levels: N of EDM's grid; distance: a name of `losses.distance`.

    target_decay: of the EMA that is the target network; 0: the target is the student itself, without a gradient and
    with the same dropout, and no second network is kept. boundary: the level at which the student is the identity, see
    `denoiser.EDM`; by default that of the model it starts from, 0 for random weights.
    Published for CIFAR-10: 18 levels, lpips@224, target_decay 0, boundary 0.002; for ImageNet 40 levels, lpips@224 and
    target_decay 0.95.
    """

    levels: int = 18
    distance: str = "l2"
    target_decay: float = 0.95
    boundary: float | None = None

    def __post_init__(self):
        if self.levels < 2:
            raise OnestepError(f"consistency distillation needs at least 2 levels, not {self.levels}")
        if not 0 <= self.target_decay < 1:
            raise OnestepError(f"target_decay lies in [0, 1), not {self.target_decay}")
        if self.boundary is not None and not 0 <= self.boundary < EDM.ratios[1]:
            raise OnestepError(f"boundary is a noise level of 0 or above, such as 0.002, not {self.boundary}")


def consistency_distillation(nets: Nets, cfg: DistillationConfig):
    """Objective of a consistency model: one Heun step of the teacher between neighbouring levels of EDM's grid."""
    student, teacher, target = nets.student, nets.teacher.on(VE), nets.auxiliary.get("target")
    levels = karras_times(cfg.levels).to(next(student.parameters()))

    def objective(batch, draw):
        if target and draw.first:  # once a step, however many micro-batches it has
            move_towards(target, student, cfg.target_decay)
        place = draw.integers("level", 0, cfg.levels - 1)
        eps = draw.normal("eps", batch.images.shape[1:])
        t, t_next = levels[place], levels[place + 1]
        given = batch.images, eps, t, t_next, cfg.distance, batch.labels
        yield distillation_loss(student, target or partial(_dropping_alike, student), teacher, *given), "student"

    return objective


def _dropping_alike(student: Denoiser, x: Tensor, *asked, **want) -> Tensor:
    """What the student answers, with what it will drop when it is asked next."""
    with losses.same_dropout(x.device):
        return student(x, *asked, **want)


def _target(nets: Nets, cfg: DistillationConfig) -> dict[str, nn.Module]:
    if not cfg.target_decay:
        return {}
    # Among the trained networks, though no loss steps it, so that checkpoints hold it.
    return {"target": copy.deepcopy(nets.student).eval().requires_grad_(False)}


def nearer_level(t: Tensor, shrink: float, k: float = 8.0, b: float = 1.0) -> Tensor:
    """r = max(0, t (1 - shrink (1 + k sigmoid(-b t)))): the nearer of ECT's two levels (Geng et al. 2024).

    t (n,); shrink is 1/q^a, with which r goes to t as training goes on.
    """
    return (t * (1 - shrink * (1 + k * torch.sigmoid(-b * t)))).clamp(min=0)


def tuning_loss(
    student, data: Tensor, eps: Tensor, t: Tensor, r: Tensor, c: float, labels: Tensor | None = None
) -> Tensor:
    """ECT's loss, mean over the batch: pseudo-Huber |f(x_t, t) - f(x_r, r)| / (t - r), at r = 0 against the image.

    student on VE; data, eps (n, c, h, w), the same noise at both levels, as is what the student drops; t, r (n,),
    t > r >= 0; c of the pseudo-Huber norm sqrt(|d|^2 + c^2) - c, 0 for the plain norm.
    """
    with torch.no_grad(), losses.same_dropout(data.device):
        # At r = 0 the function is the identity; asked there, a network would see ln 0.
        wanted = student(VE.mix(data, eps, r), torch.where(r > 0, r, t), labels, want="x0")
        wanted = torch.where((r > 0).reshape(-1, 1, 1, 1), wanted, data)
    out = student(VE.mix(data, eps, t), t, labels, want="x0")
    squared = (out - wanted).square().sum((1, 2, 3))
    # The square root has no slope at 0, where a student that agrees with itself may well arrive.
    norm = (squared + max(c, 1e-8) ** 2).sqrt() - c
    return (norm / (t - r)).mean()


@dataclass(frozen=True)
class TuningConfig:
    """ln t ~ N(p_mean, p_std^2). r goes to t by factors of `q`, `folds` times over the budget; c: pseudo-Huber's."""

    p_mean: float = -1.1
    p_std: float = 2.0
    q: float = 2.0
    folds: int = 8
    c: float = 0.0
    sigma_data: float = 0.5

    def __post_init__(self):
        if not (self.q > 1 and self.folds >= 1 and self.c >= 0):
            raise OnestepError("q must be above 1, folds at least 1 and c not negative")


def easy_consistency_tuning(nets: Nets, cfg: TuningConfig):
    """Objective of a consistency model without a teacher: at first, where r is 0 for most levels, plain denoising."""
    student = nets.student

    def objective(batch, draw):
        t = (cfg.p_mean + cfg.p_std * draw.normal("level", ())).exp()
        shrink = cfg.q ** -(1 + math.floor(draw.progress * cfg.folds))
        eps = draw.normal("eps", batch.images.shape[1:])
        yield tuning_loss(student, batch.images, eps, t, nearer_level(t, shrink), cfg.c, batch.labels), "student"

    return objective


def _as_distilled(cfg: DistillationConfig, net, native, teacher) -> Denoiser:
    native = native or EDM()
    if cfg.boundary is not None:
        if not isinstance(native, EDM):
            raise OnestepError("only an EDM network has a boundary; leave boundary out, or start from another model")
        native = replace(native, boundary=cfg.boundary)
    return Denoiser(net, native).on(VE)


def _as_tuned(cfg: TuningConfig, net, native, teacher) -> Denoiser:
    return Denoiser(net, native or EDM(cfg.sigma_data)).on(VE)


# As published, and no mere habit: where two levels come close, what bf16 rounds off is more than they differ.
_TRAINING = {"precision": "fp32"}

register(
    Method(
        "consistency-distillation",
        1,
        DistillationConfig,
        consistency_distillation,
        _as_distilled,
        needs_teacher=True,
        auxiliary=_target,
        training={"lr": 4e-4, "batch_size": 512, **_TRAINING},
        follows_teacher=True,
    )
)
register(
    Method(
        "easy-consistency-tuning",
        2,
        TuningConfig,
        easy_consistency_tuning,
        _as_tuned,
        training={"lr": 1e-4, **_TRAINING},
    )
)
