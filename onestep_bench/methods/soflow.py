"""SoFlow (arXiv:2512.15657): a map between two levels that moves with the data, learned without a derivative.

The map f(x_t, t, s) leads to the same place from every point of a trajectory. So from t and from a level l a little
nearer, to which a straight line leads by the velocity of the data, it is to land at one: the difference over t - l is
the error, and l draws closer to t in the course of the training. It is a mean flow by a finite difference.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.flow_map import FlowMap, flow_student
from onestep_bench.losses import adaptive, same_dropout
from onestep_bench.methods import Method, Nets, register
from onestep_bench.paths import FLOW, spread

APPROACHES = ("exponential", "cosine")
# Levels t and l are at least so far apart, and l and s below t.
LEAST = 1e-4


def ratio_at(progress: float, first: float, last: float, approach: str) -> float:
    """The share of the way from t to s at which l lies, from `first` to `last` in the course of the budget."""
    if approach == "exponential":
        return first * (last / first) ** progress
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


def nearer_level(t: Tensor, s: Tensor, ratio: float) -> Tensor:
    """l = t + ratio (s - t), and at most t - LEAST: (n,)."""
    return torch.minimum(t + (s - t) * ratio, t - LEAST)


def quotient(
    flow: FlowMap, x: Tensor, t: Tensor, level: Tensor, s: Tensor, velocity: Tensor, labels: Tensor | None = None
) -> Tensor:
    """(f(x_t, t, s) - sg f(x_t + (l - t) v, l, s)) / (t - l) of the jumps f of a flow map: (n, c, h, w).

    x_t and the velocity v (n, c, h, w); levels t > l >= s (n,). On any path; both jumps drop the same.
    """
    with torch.no_grad(), same_dropout(x.device):
        there = flow.jump(x + spread(level - t, x) * velocity, level, s, labels)
    return (flow.jump(x, t, s, labels) - there) / spread(t - level, x)


def quotient_errors(q: Tensor, share: Tensor, p: float, eps: float) -> Tensor:
    """share / 2 e / sg(e + eps)^p, e the mean square of the quotient q (n, c, h, w) over each image: (n,).

    share: (t - l) / |b| (n,), b what the network's output is multiplied by in f(x_t, t, s): it takes out the slope of q
    in that output, so that steps stay as large as l draws near to t.
    """
    return share / 2 * adaptive(q.square().mean((1, 2, 3)), p, eps)


@dataclass(frozen=True)
class SoFlowConfig:
    """first, last, approach: see `ratio_at`. p, eps: see `losses.adaptive`, of means over pixels.

    Levels are sigmoids of normals of these means and deviations; same: share of rows that learn the velocity, at s = t.
    The defaults are those of CIFAR-10.
    """

    first: float = 1.0
    last: float = 3.125e-4
    approach: str = "exponential"
    p: float = 0.75
    eps: float = 1e-3
    t_mean: float = -0.9
    t_std: float = 1.6
    s_mean: float = -4.0
    s_std: float = 1.6
    same: float = 0.0

    def __post_init__(self):
        if self.approach not in APPROACHES:
            raise OnestepError(f"unknown approach {self.approach!r} of levels{near_miss(self.approach, APPROACHES)}")
        if not (0 < self.last <= self.first <= 1 and self.eps > 0 and self.p >= 0 and 0 <= self.same <= 1):
            raise OnestepError("0 < last <= first <= 1, eps is positive, p not negative, and same a share")


def soflow(nets: Nets, cfg: SoFlowConfig):
    """Objective of SoFlow: where a jump lands does not change along a trajectory (arXiv:2512.15657)."""
    flow = FlowMap(nets.student)

    def objective(batch, draw):
        noise, labels = draw.normal("noise", batch.images.shape[1:]), batch.labels
        first, second = (
            torch.sigmoid(mean + std * draw.normal(name, ()))
            for name, mean, std in (("t", cfg.t_mean, cfg.t_std), ("s", cfg.s_mean, cfg.s_std))
        )
        t = first.clamp(min=LEAST)
        s = torch.minimum(second, t - LEAST)
        x, velocity = FLOW.mix(batch.images, noise, t), noise - batch.images
        ratio = ratio_at(draw.progress, cfg.first, cfg.last, cfg.approach)
        level = nearer_level(t, s, ratio)
        q = quotient(flow, x, t, level, s, velocity, labels)
        losses = quotient_errors(q, (t - level) / (t - s), cfg.p, cfg.eps)
        if cfg.same:
            known = adaptive((flow.average(x, t, t, labels) - velocity).square().mean((1, 2, 3)), cfg.p, cfg.eps)
            losses = torch.where(draw.uniform("same") < cfg.same, known, losses)
        yield losses.mean(), "student"

    return objective


register(Method("soflow", 1, SoFlowConfig, soflow, flow_student, training={"lr": 1e-4}, two_times=True))
