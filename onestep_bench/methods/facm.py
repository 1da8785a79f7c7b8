"""Flow-anchored consistency models (arXiv:2507.03738): a jump to the data, held in place by the velocity.

A consistency function, by the derivative of its average velocity u(x_t, t, 0), and flow matching of the same network
beside: the anchor without which the first is not stable. The network is told which of the two it is asked, here by the
gap (the paper's auxiliary time), so that the anchor is the flow map's velocity. The paper's time is 1 at the data.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from onestep_bench.denoiser import Denoiser
from onestep_bench.errors import OnestepError
from onestep_bench.flow_map import FlowMap, flow_student, total_derivative
from onestep_bench.losses import adaptive
from onestep_bench.methods import Method, Nets, register
from onestep_bench.paths import FLOW, spread


def anchor_errors(u: Tensor, velocity: Tensor) -> Tensor:
    """<(u - v)^2> + 1 - the mean cosine between them, over channels: (n,). u, v (n, c, h, w)."""
    return (u - velocity).square().mean((1, 2, 3)) + 1 - F.cosine_similarity(u, velocity, dim=1).mean((1, 2))


def consistency_errors(u: Tensor, velocity: Tensor, change: Tensor, t: Tensor, p: float) -> Tensor:
    """sin(pi t / 2) e / sg(e + 1e-3)^(1/2) with e = <(u - sg(u - (1 - (1 - t)^p) g))^2>: (n,).

    g = u - v + t du/dt, cut to +-1: what is wrong with u = u(x_t, t, 0) (n, c, h, w) on a trajectory of velocity v
    along which it changes by `change`, du/dt. The weight of g, 1 at the noise, falls towards the data.
    """
    g = (u - velocity + spread(t, u) * change).clamp(-1, 1)
    wanted = (u - spread(1 - (1 - t) ** p, u) * g).detach()
    return torch.sin(math.pi / 2 * t) * adaptive((u - wanted).square().mean((1, 2, 3)), 0.5, 1e-3)


@dataclass(frozen=True)
class FACMConfig:
    """Levels are sigmoids of N(mean, std^2). p: see `consistency_errors`."""

    mean: float = 0.0
    std: float = 1.0
    p: float = 0.5

    def __post_init__(self):
        if not (self.std > 0 and self.p > 0):
            raise OnestepError("std and p are positive")


def facm(nets: Nets, cfg: FACMConfig):
    """Objective of a flow-anchored consistency model of data (arXiv:2507.03738)."""
    return _objective(nets.student, None, cfg)


def facm_distillation(nets: Nets, cfg: FACMConfig):
    """Objective of a flow-anchored consistency model of its teacher's trajectories (arXiv:2507.03738)."""
    return _objective(nets.student, nets.teacher.on(FLOW), cfg)


def _objective(student: Denoiser, teacher: Denoiser | None, cfg: FACMConfig):
    flow = FlowMap(student)

    def objective(batch, draw):
        noise, labels = draw.normal("noise", batch.images.shape[1:]), batch.labels
        t = torch.sigmoid(cfg.mean + cfg.std * draw.normal("t", ()))
        x, velocity = FLOW.mix(batch.images, noise, t), noise - batch.images
        if teacher:
            with torch.no_grad():
                velocity = teacher(x, t, labels, want="velocity")
        end = torch.zeros_like(t)
        change = total_derivative(flow, x, t, end, velocity, labels)
        errors = consistency_errors(flow.average(x, t, end, labels), velocity, change, t, cfg.p)
        yield (errors + anchor_errors(flow.average(x, t, t, labels), velocity)).mean(), "student"

    return objective


register(Method("facm", 1, FACMConfig, facm, flow_student, two_times=True))
register(
    Method(
        "facm-distillation",
        1,
        FACMConfig,
        facm_distillation,
        flow_student,
        needs_teacher=True,
        follows_teacher=True,
        two_times=True,
    )
)
