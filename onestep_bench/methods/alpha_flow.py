"""alpha-Flow and shortcut models: a jump is two jumps, and no derivative is needed.

From level t to r by way of a level s between: the average velocity of the whole is the mean of those of its parts. The
first part, a share alpha of the way, goes straight by a velocity that is known, the second by the network itself.
alpha-Flow (Zhang et al. 2025, arXiv:2510.20771) goes first by the velocity of the data, and moves alpha from 1, where
it is flow matching over any distance, towards 0, where it is MeanFlow. A shortcut model (Frans et al. 2024,
arXiv:2410.12557) goes first by its own average velocity and by half of the way, in jumps of 1, 1/2, 1/4 ... of it.
Progressive self-distillation (Boffi et al. 2025, arXiv:2505.18825) does so between any levels, and parts the way
anywhere.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.flow_map import FlowMap, flow_student, total_derivative
from onestep_bench.losses import adaptive
from onestep_bench.methods import Method, Nets, move_towards, register
from onestep_bench.paths import FLOW, spread

# Velocities and the images between two jumps are cut there, as in the released shortcut models.
CUT = 4.0

CURVES = ("sigmoid", "linear")


def composed(
    flow: FlowMap,
    x: Tensor,
    t: Tensor,
    r: Tensor,
    velocity: Tensor,
    alpha: float | Tensor,
    labels: Tensor | None = None,
    *,
    cut: float = math.inf,
) -> Tensor:
    """alpha w + (1 - alpha) u(x_s, s, r), x_s = x - (t - s) w: the average velocity by way of s = t - alpha (t - r).

    x at t, and the velocity w of the first part, (n, c, h, w); t >= r (n,); 0 < alpha <= 1, one number or (n,). cut:
    bound of x_s. No gradient. alpha-Flow's Algorithm 1 (its Definition 1 has a plus where time falls).
    """
    way = alpha * (t - r)
    with torch.no_grad():
        if not isinstance(alpha, Tensor) and alpha == 1:
            return velocity
        between = (x - spread(way, x) * velocity).clamp(-cut, cut)
        share = spread(alpha, x) if isinstance(alpha, Tensor) else alpha
        return share * velocity + (1 - share) * flow.average(between, t - way, r, labels)


def parted(flow: FlowMap, x: Tensor, t: Tensor, r: Tensor, alpha: Tensor, labels: Tensor | None = None) -> Tensor:
    """The average velocity from t to r as two jumps of the map itself make it, the first a share alpha (n,) of the way.

    Arguments as in `composed`. No gradient.
    """
    with torch.no_grad():
        first = flow.average(x, t, t - alpha * (t - r), labels)
        return composed(flow, x, t, r, first, alpha, labels)


def shortcut_target(flow: FlowMap, x: Tensor, t: Tensor, gap: Tensor, labels: Tensor | None = None) -> Tensor:
    """The velocity of a jump of length `gap` as two halves of it make it, cut to +-4 (Frans et al. 2024)."""
    with torch.no_grad():
        first = flow.average(x, t, t - gap / 2, labels)
        return composed(flow, x, t, t - gap, first, 0.5, labels, cut=CUT).clamp(-CUT, CUT)


def alpha_loss(u: Tensor, wanted: Tensor, scale: Tensor | float, eps: float) -> Tensor:
    """scale e / sg(e + eps), e the mean square of u - wanted over each image: (n,). scale: 1, or alpha's (n,)."""
    return scale * adaptive((u - wanted).square().mean((1, 2, 3)), 1.0, eps)


def alpha_at(
    progress: float, start: float, end: float, least: float, gamma: float = 25.0, curve: str = "sigmoid"
) -> float:
    """alpha, from 1 to 0 between `start` and `end` of the budget; 1 within `least` of it, and 0 below `least`.

    curve: by a 'sigmoid' of slope gamma, or 'linear'. alpha-Flow's curriculum.
    """
    place = (progress - start) / (end - start)
    # Of a large negative number, where the exponential of its opposite would be infinite.
    alpha = 1 - place if curve == "linear" else 0.5 * (1 - math.tanh(gamma * (place - 0.5) / 2))
    return 1.0 if alpha > 1 - least else 0.0 if alpha < least else alpha


@dataclass(frozen=True)
class AlphaFlowConfig:
    """Levels are the larger and the smaller of two sigmoids of N(mean, std^2); same: share of rows with r = t.

    start, end, least, curve: see `alpha_at`. derivative: whether MeanFlow's target, with its derivative, takes over
    below `least`; else alpha stays there. eps: of the weight. cut: bound of composed velocities, infinite for none.
    """

    mean: float = -0.4
    std: float = 1.0
    same: float = 0.25
    start: float = 0.0
    end: float = 1.0
    least: float = 5e-3
    derivative: bool = False
    eps: float = 1e-3
    cut: float = math.inf
    curve: str = "sigmoid"

    def __post_init__(self):
        if self.curve not in CURVES:
            raise OnestepError(f"unknown curve {self.curve!r} of alpha{near_miss(self.curve, CURVES)}")
        if not (0 <= self.same <= 1 and self.start < self.end and 0 < self.least < 0.5 and self.eps > 0):
            raise OnestepError("same lies in [0, 1], start before end, least in (0, 0.5), and eps is positive")


def alpha_flow(nets: Nets, cfg: AlphaFlowConfig):
    """Objective of alpha-Flow: from flow matching over any distance to a mean flow (Zhang et al. 2025)."""
    flow = FlowMap(nets.student)

    def objective(batch, draw):
        noise, labels = draw.normal("noise", batch.images.shape[1:]), batch.labels
        one, other = (torch.sigmoid(cfg.mean + cfg.std * draw.normal(name, ())) for name in ("t", "r"))
        t = torch.maximum(one, other)
        r = torch.where(draw.uniform("same") < cfg.same, t, torch.minimum(one, other))
        x, velocity = FLOW.mix(batch.images, noise, t), noise - batch.images
        alpha = alpha_at(draw.progress, cfg.start, cfg.end, cfg.least, curve=cfg.curve)
        alpha = alpha or (0.0 if cfg.derivative else cfg.least)
        u = flow.average(x, t, r, labels)
        yield alpha_flow_loss(flow, u, x, t, r, velocity, alpha, cfg.eps, cfg.cut, labels).mean(), "student"

    return objective


def alpha_flow_loss(
    flow: FlowMap,
    u: Tensor,
    x: Tensor,
    t: Tensor,
    r: Tensor,
    velocity: Tensor,
    alpha: float,
    eps: float,
    cut: float = math.inf,
    labels: Tensor | None = None,
) -> Tensor:
    """The weighted error of u = u(x_t, t, r): (n,). alpha 0 is MeanFlow, and rows r = t are flow matching, at any.

    Arguments as in `composed`; eps as in `alpha_loss`; cut: bound of composed velocities.
    """
    if alpha:
        wanted = composed(flow, x, t, r, velocity, alpha, labels).clamp(-cut, cut)
    else:
        wanted = velocity - spread(t - r, x) * total_derivative(flow, x, t, r, velocity, labels)
    wanted = torch.where(spread(r, x) == spread(t, x), velocity, wanted)
    return alpha_loss(u, wanted, torch.where(r == t, 1.0, alpha or 1.0), eps)


@dataclass(frozen=True)
class ShortcutConfig:
    """halvings: the smallest jump is 2^-halvings, of flow matching; every: one row in so many learns from two jumps.

    target_decay: of the EMA of the student that makes them.
    """

    halvings: int = 7
    every: int = 8
    target_decay: float = 0.999

    def __post_init__(self):
        if not (self.halvings >= 1 and self.every >= 1 and 0 <= self.target_decay < 1):
            raise OnestepError("halvings and every are at least 1, and target_decay lies in [0, 1)")


def shortcut(nets: Nets, cfg: ShortcutConfig):
    """Objective of a shortcut model: a jump is two of half its length (Frans et al. 2024)."""
    flow, averaged = FlowMap(nets.student), nets.auxiliary["target"]
    target, least = FlowMap(averaged), 2.0**-cfg.halvings

    def objective(batch, draw):
        if draw.first:  # once a step, however many micro-batches it has
            move_towards(averaged, nets.student, cfg.target_decay)
        noise, images = draw.normal("noise", batch.images.shape[1:]), batch.images
        double = slice(None, None, cfg.every)  # one row of each group, which are whole
        gap = torch.full_like(images[:, 0, 0, 0], least)
        gap[double] = 0.5 ** draw.integers("gap", 0, cfg.halvings)[double].to(gap)
        t = 1 - gap * (draw.uniform("t") / gap).floor()
        x = FLOW.mix(images, noise, t)
        wanted = noise - images
        labels = None if batch.labels is None else batch.labels[double]
        wanted[double] = shortcut_target(target, x[double], t[double], gap[double], labels).to(wanted)
        yield (flow.average(x, t, t - gap, batch.labels) - wanted).square().mean(), "student"

    return objective


@dataclass(frozen=True)
class ProgressiveConfig:
    """Levels are the larger and the smaller of two uniform draws; same: share of rows with s = t, flow matching."""

    same: float = 0.75

    def __post_init__(self):
        if not 0 <= self.same <= 1:
            raise OnestepError(f"same is a share between 0 and 1, not {self.same:g}")


def progressive_self_distillation(nets: Nets, cfg: ProgressiveConfig):
    """Objective of progressive self-distillation: a jump is two jumps, parted anywhere (Boffi et al. 2025).

    Without the weight that its authors learn for each pair of levels.
    """
    flow = FlowMap(nets.student)

    def objective(batch, draw):
        noise, labels = draw.normal("noise", batch.images.shape[1:]), batch.labels
        one, other = draw.uniform("t"), draw.uniform("s")
        t = torch.maximum(one, other)
        s = torch.where(draw.uniform("same") < cfg.same, t, torch.minimum(one, other))
        x = FLOW.mix(batch.images, noise, t)
        wanted = parted(flow, x, t, s, draw.uniform("middle"), labels)
        wanted = torch.where(spread(s, x) == spread(t, x), noise - batch.images, wanted)
        yield (flow.average(x, t, s, labels) - wanted).square().mean(), "student"

    return objective


def _target(nets: Nets, cfg: ShortcutConfig) -> dict[str, nn.Module]:
    # Among the trained networks, though no loss steps it, so that checkpoints hold it.
    return {"target": copy.deepcopy(nets.student).eval().requires_grad_(False)}


register(Method("alpha-flow", 1, AlphaFlowConfig, alpha_flow, flow_student, two_times=True))
register(
    Method(
        "shortcut",
        1,
        ShortcutConfig,
        shortcut,
        flow_student,
        auxiliary=_target,
        group=lambda config: config.every,
        two_times=True,
    )
)
register(
    Method(
        "progressive-self-distillation",
        1,
        ProgressiveConfig,
        progressive_self_distillation,
        flow_student,
        two_times=True,
    )
)
