"""Truncated consistency models (Lee et al. 2024, arXiv:2410.14895): a second stage for a consistency model.

The first stage spends its capacity on all levels, though sampling in one step asks it at the highest alone. Here a
student that starts from it is consistent above a level `transition` only; below, the first stage stands, frozen, and
gives the targets that would else collapse to a constant: some rows are asked at the transition itself.
The teacher, and the start, is a consistency model such as `easy-consistency-tuning` trains.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onestep_bench import losses
from onestep_bench.denoiser import Denoiser
from onestep_bench.errors import OnestepError
from onestep_bench.losses import same_dropout
from onestep_bench.methods import Method, Nets, register
from onestep_bench.paths import VE, spread

# No row has the image itself as its target.
LEAST = 1e-6
# Of the table of levels: the error of straight lines between them is below 1e-6.
POINTS = 2**14


def nearer_level(t: Tensor, ratio: float) -> Tensor:
    """r = t - t (1 - ratio) (1 + 8 sigmoid(-t)), at least `LEAST`: ECT's mapping at a fixed ratio. t (n,)."""
    return (t - t * (1 - ratio) * (1 + 8 * torch.sigmoid(-t))).clamp(min=LEAST)


def heavy_tailed(df: float, mean: float, scale: float, low: float, high: float) -> Tensor:
    """ln t of Student's t with df degrees of freedom, at that mean and scale, between levels low and high: quantiles.

    (POINTS,) float64 at even distances from 0 to 1, by the inverse of the distribution function, cut to the two ends:
    so few degrees of freedom as are used draw what no float holds. A table, since torch has no such inverse and a step
    on a GPU would wait for SciPy's.
    """
    from scipy.stats import t as student_t  # slow to import, and every process that asks for a method imports this file

    law = student_t(df, mean, scale)
    first, last = (math.log(end) for end in (low, high))
    logs = torch.from_numpy(law.ppf(np.linspace(law.cdf(first), law.cdf(last), POINTS)))
    return logs.clamp(first, last)


def drawn(quantiles: Tensor, uniform: Tensor) -> Tensor:
    """Levels (n,) of uniform draws (n,) in [0, 1), by straight lines between the quantiles of their logarithm."""
    place = uniform.to(quantiles) * (len(quantiles) - 1)
    left = place.long().clamp(max=len(quantiles) - 2)
    return torch.lerp(quantiles[left], quantiles[left + 1], place - left).exp().to(uniform)


def distances(
    student,
    first,
    data: Tensor,
    eps: Tensor,
    t: Tensor,
    r: Tensor,
    transition: float,
    c: float,
    labels: Tensor | None = None,
) -> Tensor:
    """Pseudo-Huber |f(x_t, t) - sg f'(x_r, r)|, f' the student from `transition` up and `first` below: (n,).

    student and first, the frozen first stage, on VE; data, eps (n, c, h, w), one noise for both levels; t > r (n,),
    t at least the transition. c: sqrt(|d|^2 + c^2) - c.
    """
    x = VE.mix(data, eps, r)
    with torch.no_grad(), same_dropout(data.device):
        own, frozen = student(x, r, labels, want="x0"), first(x, r, labels, want="x0")
        wanted = torch.where(spread(r, x) >= transition, own, frozen)
    out = student(VE.mix(data, eps, t), t, labels, want="x0")
    return losses.pseudo_huber(out - wanted, c)


@dataclass(frozen=True)
class TCMConfig:
    """transition: below it the first stage stands; every: one row in so many is at it, weighed with boundary_weight.

    df, mean, scale: of ln t of the other rows, see `heavy_tailed`; ratio: of `nearer_level`; c: pseudo-Huber's;
    weighting: a name of `losses.weighting`. The defaults are those of CIFAR-10; for ImageNet c 0.06 and c-out-squared.
    """

    transition: float = 1.0
    every: int = 4
    boundary_weight: float = 0.1
    df: float = 0.01
    mean: float = 0.0
    scale: float = 0.2
    ratio: float = 0.999
    c: float = 1e-8
    weighting: str = "gap"

    def __post_init__(self):
        if not (0 < self.transition < VE.t_max and 0 < self.ratio < 1 and self.df > 0 and self.scale > 0):
            raise OnestepError(f"transition lies between 0 and {VE.t_max:g}, ratio between 0 and 1; df, scale above 0")
        if self.every < 2 or not (self.boundary_weight >= 0 and self.c > 0):
            raise OnestepError("every is at least 2, boundary_weight not negative, and c positive")
        losses.weighting(self.weighting)


def truncated_consistency(nets: Nets, cfg: TCMConfig):
    """Objective of a truncated consistency model: consistent above a level, on its frozen first stage below."""
    student, first, weight = nets.student, nets.teacher.on(VE), losses.weighting(cfg.weighting)
    quantiles = heavy_tailed(cfg.df, cfg.mean, cfg.scale, cfg.transition, VE.t_max)
    quantiles = quantiles.to(next(student.parameters()).device)

    def objective(batch, draw):
        eps, uniform = draw.normal("eps", batch.images.shape[1:]), draw.uniform("level")
        t = drawn(quantiles, uniform)
        t[:: cfg.every] = cfg.transition  # groups are whole, so that each has one row there
        r = nearer_level(t, cfg.ratio)
        found = distances(student, first, batch.images, eps, t, r, cfg.transition, cfg.c, batch.labels)
        at_it, above = (weight(t, r) * found).unflatten(0, (-1, cfg.every)).split([1, cfg.every - 1], 1)
        yield above.mean() + cfg.boundary_weight * at_it.mean(), "student"

    return objective


def _student(cfg: TCMConfig, net, native, teacher) -> Denoiser:
    return Denoiser(net, native or teacher.native).on(VE)


register(
    Method(
        "truncated-consistency",
        1,
        TCMConfig,
        truncated_consistency,
        _student,
        needs_teacher=True,
        training={"lr": 5e-5},
        group=lambda config: config.every,
    )
)
