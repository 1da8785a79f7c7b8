"""Mean flows: a network of the average velocity between two levels, learned through its derivative in time.

The average velocity u(x_t, t, r) leads in one step from level t to level r, and along a trajectory it obeys
u = v - (t - r) du/dt. MeanFlow (Geng et al. 2025, arXiv:2505.13447) regresses on the right side, with the velocity of
the straight line from an image to its noise for v. Improved mean flow (arXiv:2512.02012) takes the derivative along the
network's own velocity, so that the target is no longer a noisy one of itself. Self-distillation (Boffi et al. 2025,
arXiv:2505.18825) asks that where a jump arrives it moves on with the velocity that is known there (Lagrangian), or
stays as its start moves along the flow (Eulerian).
All of them from random weights or a teacher's; with a teacher, its velocity may stand for that of the data. With
classes, the velocity may be a guided one, so that one pass has what guidance costs two.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from onestep_bench.denoiser import Denoiser
from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.flow_map import FlowMap, derivative, flow_student, total_derivative
from onestep_bench.losses import adaptive
from onestep_bench.methods import Method, Nets, register
from onestep_bench.paths import FLOW, spread

LOSSES = ("meanflow", "improved", "lagrangian", "eulerian")


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


def step_errors(u: Tensor, step: Tensor, p: float, c: float) -> Tensor:
    """|u - sg(u + g / (|g| + c)^p)|^2, summed over each image: (n,).

    step: g (n, c, h, w), by which u is to be changed, |g| the root of its sum of squares. At p 1 no image moves u by
    more than 1, however wrong it is; `adaptive` weighs the squared errors instead. As NVlabs/FastGen has it.
    """
    size = spread(step.square().sum((1, 2, 3)).sqrt(), step)
    return squared_errors(u, (u + step / (size + c) ** p).detach())


def guided(velocity: Tensor, without: Tensor, within: Tensor | float, omega, kappa, guides: Tensor) -> Tensor:
    """omega v + (1 - omega - kappa) u(no label) + kappa u(label), where `guides` (n,) is true; elsewhere v.

    Classifier-free guidance inside the target (MeanFlow's Sec. 4.2 and appendix). velocity v; without, within: the
    network's velocities there without and with the label, (n, c, h, w). omega, kappa: numbers or (n, 1, 1, 1). Improved
    mean flow's own, v + (1 - 1/w)(u(label) - u(no label)), is omega 1 and kappa 1 - 1/w.
    """
    mixed = omega * velocity + (1 - omega - kappa) * without + kappa * within
    return torch.where(guides.reshape(-1, 1, 1, 1), mixed, velocity)


def lagrangian_errors(
    flow: FlowMap,
    known,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    velocity: Tensor,
    labels: Tensor | None = None,
    through: bool = False,
) -> Tensor:
    """|d/ds X - sg v(sg X, s)|^2 of X = jump(x, t, s), summed over each image (Boffi et al. 2025): (n,).

    known: the denoiser on FLOW whose velocity v is held to be known: the student itself, or a teacher. Where s = t,
    d/ds X is the network's velocity, and what it learns from is `velocity` (n, c, h, w): flow matching. t >= s (n,).
    through: without the stop-gradients.
    """

    def landing(s: Tensor) -> Tensor:
        return x - spread(t - s, x) * flow.average(x, t, s, labels)

    there, moves = derivative(landing, (s,), (torch.ones_like(s),))
    with torch.set_grad_enabled(through and torch.is_grad_enabled()):
        wanted = known(there, s, labels, want="velocity")
    return squared_errors(moves, torch.where(spread(s, x) == spread(t, x), velocity, wanted))


def eulerian_errors(
    flow: FlowMap,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    along: Tensor,
    labels: Tensor | None = None,
    through: bool = False,
) -> Tensor:
    """|dX/dt + sg (dX/dx v)|^2 of X = jump(x, t, s), summed over each image (Boffi et al. 2025): (n,).

    along: v (n, c, h, w), without gradient: the velocity with which x is known to move; what the network's velocity is
    to be where s = t. t >= s (n,). through: gradients go through dX/dx too, so that the error is linear in the map.
    """

    def landing(x: Tensor, t: Tensor) -> Tensor:
        return x - spread(t - s, x) * flow.average(x, t, s, labels)

    ones = torch.ones_like(t)
    if through:
        return squared_errors(derivative(landing, (x, t), (along, ones))[1], torch.zeros_like(x))
    with torch.no_grad():
        carried = derivative(lambda x: landing(x, t), (x,), (along,))[1]
    return squared_errors(derivative(lambda t: landing(x, t), (t,), (ones,))[1], -carried)


@dataclass(frozen=True)
class MeanFlowConfig:
    """loss: meanflow, improved, lagrangian or eulerian. p, c: see `losses.adaptive`, of sums over pixels.

    Levels are sigmoids of normals of these means and deviations; same: share of rows with r = t, which are plain flow
    matching; swap: see `two_levels`. warmup: share of the budget over which the derivative is brought in. The defaults
    are those of CIFAR-10 in the released code.
    explicit: see `step_errors`, with p and c, of g / sqrt(dim); through: see `lagrangian_errors`, `eulerian_errors`.
    drop: share of rows that are told no class; with it, omega and kappa: see `guided`, at levels from guide_from to
    guide_to.
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
    explicit: bool = False
    through: bool = False
    drop: float = 0.0
    omega: float = 1.0
    kappa: float = 0.0
    guide_from: float = 0.0
    guide_to: float = 1.0

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise OnestepError(f"unknown loss {self.loss!r} of mean flows{near_miss(self.loss, LOSSES)}")
        if not (0 <= self.same <= 1 and 0 <= self.warmup <= 1 and self.c > 0 and self.p >= 0):
            raise OnestepError("same and warmup are shares between 0 and 1, c is positive and p not negative")
        self_distilled = self.loss in ("lagrangian", "eulerian")
        if (self.explicit and self_distilled) or (self.through and not self_distilled):
            raise OnestepError("explicit is for losses meanflow and improved, through for lagrangian and eulerian")
        if not (0 <= self.drop < 1 and self.guide_from <= self.guide_to):
            raise OnestepError("drop is a share below 1, and guide_from is not above guide_to")
        if not self.drop and (self.omega, self.kappa) != (1.0, 0.0):
            raise OnestepError("guidance asks the student without a class, which it learns from a drop above 0, as 0.1")


def meanflow(nets: Nets, cfg: MeanFlowConfig):
    """Objective of a mean flow of data: its average velocity by its own derivative (Geng et al. 2025)."""
    return _objective(nets.student, None, cfg)


def meanflow_distillation(nets: Nets, cfg: MeanFlowConfig):
    """Objective of a mean flow of its teacher's trajectories: velocities are the teacher's, not those of the data."""
    return _objective(nets.student, nets.teacher.on(FLOW), cfg)


def _objective(student: Denoiser, teacher: Denoiser | None, cfg: MeanFlowConfig):
    flow = FlowMap(student)
    if cfg.drop and not student.num_classes:
        raise OnestepError("drop leaves out classes, and this student is told none; train it with conditional=True")

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
        if cfg.drop:
            kept = draw.uniform("drop") >= cfg.drop
            labels = F.one_hot(labels, student.num_classes).to(x) * kept[:, None]
            velocity = _guided(flow, x, t, velocity, labels, kept, cfg)
        if cfg.loss == "lagrangian":
            errors = lagrangian_errors(flow, teacher or student, x, t, r, velocity, labels, cfg.through)
        elif cfg.loss == "eulerian":
            along = velocity if teacher else _own(flow, x, t, r, velocity, labels)
            errors = eulerian_errors(flow, x, t, r, along, labels, cfg.through)
        else:
            share = min(1.0, draw.progress / cfg.warmup) if cfg.warmup else 1.0
            with torch.no_grad():
                along = velocity if cfg.loss == "meanflow" else flow.average(x, t, t, labels)
            wanted = target(flow, x, t, r, velocity, along, labels, share)
            u = flow.average(x, t, r, labels)
            errors = squared_errors(u, wanted)
        if cfg.explicit:
            losses = step_errors(u, (wanted - u.detach()) / math.sqrt(x[0].numel()), cfg.p, cfg.c)
        else:
            losses = adaptive(errors, cfg.p, cfg.c)
        yield losses.mean(), "student"

    return objective


@torch.no_grad()
def _guided(flow: FlowMap, x, t, velocity, labels, kept, cfg: MeanFlowConfig) -> Tensor:
    if (cfg.omega, cfg.kappa) == (1.0, 0.0):
        return velocity
    without = flow.average(x, t, t, torch.zeros_like(labels))
    within = flow.average(x, t, t, labels) if cfg.kappa else 0.0
    guides = kept & (cfg.guide_from <= t) & (t <= cfg.guide_to)
    return guided(velocity, without, within, cfg.omega, cfg.kappa, guides)


@torch.no_grad()
def _own(flow: FlowMap, x, t, r, velocity, labels) -> Tensor:
    return torch.where(spread(r, x) == spread(t, x), velocity, flow.average(x, t, t, labels))


register(Method("meanflow", 1, MeanFlowConfig, meanflow, flow_student, training={"lr": 6e-4}, two_times=True))
register(
    Method(
        "meanflow-distillation",
        1,
        MeanFlowConfig,
        meanflow_distillation,
        flow_student,
        needs_teacher=True,
        training={"lr": 6e-4},
        follows_teacher=True,
        two_times=True,
    )
)
