"""Mean flows: a network of the average velocity between two levels, learned through its derivative in time.

The average velocity u(x_t, t, r) leads in one step from level t to level r, and along a trajectory it obeys
u = v - (t - r) du/dt. MeanFlow (Geng et al. 2025, arXiv:2505.13447) regresses on the right side, with the velocity of
the straight line from an image to its noise for v. Improved mean flow (arXiv:2512.02012) takes the derivative along the
network's own velocity, so that the target is no longer a noisy one of itself. Lagrangian self-distillation (Boffi et
al. 2025, arXiv:2505.18825) asks instead that where a jump arrives, it moves on with the velocity that is known there.
All of them from random weights or a teacher's; with a teacher, its velocity may stand for that of the data.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from onestep_bench.denoiser import Denoiser, Flow
from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.flow_map import FlowMap, derivative, total_derivative
from onestep_bench.losses import adaptive
from onestep_bench.methods import Method, Nets, register
from onestep_bench.paths import FLOW, spread

LOSSES = ("meanflow", "improved", "lagrangian")


def two_levels(first: Tensor, second: Tensor, same: Tensor, swap: bool) -> tuple[Tensor, Tensor]:
    """(t, r), t >= r, of two draws (n,) in (0, 1); r = t where `same` (n,) is true.

    swap: t is the larger of the two, as in the paper; else t is the first, and r no more than it, as in its code.
    """
    if swap:
        t, r = torch.maximum(first, second), torch.minimum(first, second)
        return t, torch.where(same, t, r)
    return first, torch.minimum(torch.where(same, first, second), first)


def target(
    flow: FlowMap,
    x: Tensor,
    t: Tensor,
    r: Tensor,
    velocity: Tensor,
    along: Tensor,
    labels: Tensor | None = None,
    share: float = 1.0,
) -> Tensor:
    """v - (t - r) du/dt, no gradient: what u(x_t, t, r) is to be (MeanFlow's Eq. 10), (n, c, h, w).

    x, velocity v (n, c, h, w); t >= r (n,). along: the direction in which x moves as t does: v itself in MeanFlow, the
    network's u(x, t, t) in improved mean flow. share: of the derivative, where it is brought in slowly.
    """
    return velocity - share * spread(t - r, x) * total_derivative(flow, x, t, r, along, labels)


def squared_errors(u: Tensor, wanted: Tensor) -> Tensor:
    """|u - wanted|^2, summed over each image: (n,). `target` has no gradient."""
    return (u - wanted).square().sum((1, 2, 3))


def lagrangian_errors(
    flow: FlowMap, known, x: Tensor, t: Tensor, s: Tensor, velocity: Tensor, labels: Tensor | None = None
) -> Tensor:
    """|d/ds X - sg v(sg X, s)|^2 of X = jump(x, t, s), summed over each image (Boffi et al. 2025): (n,).

    known: the denoiser on FLOW whose velocity v is held to be known: the student itself, or a teacher. Where s = t,
    d/ds X is the network's velocity, and what it learns from is `velocity` (n, c, h, w): flow matching. t >= s (n,).
    """

    def landing(s: Tensor) -> Tensor:
        return x - spread(t - s, x) * flow.average(x, t, s, labels)

    there, moves = derivative(landing, (s,), (torch.ones_like(s),))
    with torch.no_grad():
        wanted = known(there, s, labels, want="velocity")
    return squared_errors(moves, torch.where(spread(s, x) == spread(t, x), velocity, wanted))


@dataclass(frozen=True)
class MeanFlowConfig:
    """loss: meanflow, improved or lagrangian. p, c: see `losses.adaptive`, of sums over pixels.

    Levels are sigmoids of normals of these means and deviations; same: share of rows with r = t, which are plain flow
    matching; swap: see `two_levels`. warmup: share of the budget over which the derivative is brought in. The defaults
    are those of CIFAR-10 in the released code.
    """

    loss: str = "meanflow"
    p: float = 0.75
    c: float = 1e-3
    t_mean: float = -0.6
    t_std: float = 1.6
    r_mean: float = -4.0
    r_std: float = 1.6
    same: float = 0.25
    swap: bool = False
    warmup: float = 0.0

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise OnestepError(f"unknown loss {self.loss!r} of mean flows{near_miss(self.loss, LOSSES)}")
        if not (0 <= self.same <= 1 and 0 <= self.warmup <= 1 and self.c > 0 and self.p >= 0):
            raise OnestepError("same and warmup are shares between 0 and 1, c is positive and p not negative")


def meanflow(nets: Nets, cfg: MeanFlowConfig):
    """Objective of a mean flow of data: its average velocity by its own derivative (Geng et al. 2025)."""
    return _objective(nets.student, None, cfg)


def meanflow_distillation(nets: Nets, cfg: MeanFlowConfig):
    """Objective of a mean flow of its teacher's trajectories: velocities are the teacher's, not those of the data."""
    return _objective(nets.student, nets.teacher.on(FLOW), cfg)


def _objective(student: Denoiser, teacher: Denoiser | None, cfg: MeanFlowConfig):
    flow = FlowMap(student)

    def objective(batch, draw):
        noise, labels = draw.normal("noise", batch.images.shape[1:]), batch.labels
        first, second = (
            torch.sigmoid(mean + std * draw.normal(name, ()))
            for name, mean, std in (("t", cfg.t_mean, cfg.t_std), ("r", cfg.r_mean, cfg.r_std))
        )
        t, r = two_levels(first, second, draw.uniform("same") < cfg.same, cfg.swap)
        x, velocity = FLOW.mix(batch.images, noise, t), noise - batch.images
        if teacher:
            with torch.no_grad():
                velocity = teacher(x, t, labels, want="velocity")
        if cfg.loss == "lagrangian":
            errors = lagrangian_errors(flow, teacher or student, x, t, r, velocity, labels)
        else:
            share = min(1.0, draw.progress / cfg.warmup) if cfg.warmup else 1.0
            with torch.no_grad():
                along = velocity if cfg.loss == "meanflow" else flow.average(x, t, t, labels)
            wanted = target(flow, x, t, r, velocity, along, labels, share)
            errors = squared_errors(flow.average(x, t, r, labels), wanted)
        yield adaptive(errors, cfg.p, cfg.c).mean(), "student"

    return objective


def _as_flow_map(cfg: MeanFlowConfig, net, native, teacher) -> Denoiser:
    return Denoiser(net, native or Flow(plain=True)).on(FLOW)


register(Method("meanflow", 1, MeanFlowConfig, meanflow, _as_flow_map, training={"lr": 6e-4}, two_times=True))
register(
    Method(
        "meanflow-distillation",
        1,
        MeanFlowConfig,
        meanflow_distillation,
        _as_flow_map,
        needs_teacher=True,
        training={"lr": 6e-4},
        follows_teacher=True,
        two_times=True,
    )
)
