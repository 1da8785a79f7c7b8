"""2-rectified flow++ (Lee et al. 2024, arXiv:2405.20320): plain reflow, trained better.

Pairs of a teacher, as for any reflow. What the paper changed, each a switch here: levels are drawn where a 2-flow is
hard, near both ends; the loss is Huber's, weighed down where the noise is, with a perceptual one of the image that a
step would lead to; and it starts from the teacher's weights (`init=`), a diffusion model seen as a flow.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from onestep_bench import losses
from onestep_bench.denoiser import Denoiser, Flow
from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.losses import Distance
from onestep_bench.methods import Method, Nets, register
from onestep_bench.paths import FLOW, spread

# Levels and the divisor of the perceptual loss keep that far from the ends.
END = 1e-5
LOSSES = ("l2", "root-l2", "huber", "weighted-huber", "none")


def density(t: Tensor, a: float) -> Tensor:
    """a (e^(a t) + e^(a (1 - t))) / (2 (e^a - 1)): of levels on [0, 1], highest at both ends, symmetric about 1/2."""
    return a * ((a * t).exp() + (a * (1 - t)).exp()) / (2 * math.expm1(a))


def level(uniform: Tensor, mirrored: Tensor, a: float) -> Tensor:
    """Levels (n,) of that density from uniform draws (n,): by its rising half, mirrored where `mirrored` (n,) is true.

    Uniform at a = 0; scaled to (END, 1 - END).
    """
    rising = uniform if not a else torch.log1p(uniform * math.expm1(a)) / a
    return END + (1 - 2 * END) * torch.where(mirrored, 1 - rising, rising)


def velocity_errors(velocity: Tensor, wanted: Tensor, t: Tensor, loss: str) -> Tensor:
    """Error of each row (n,): l2, the mean square; root-l2, its root; huber, (sqrt(|d|^2 + C^2) - C) / dim with
    C = 0.00054 dim; or that times 1 - t, weighted-huber, which is the paper's; none, 0.
    """
    difference = velocity - wanted
    dim = difference[0].numel()
    if loss == "none":
        return torch.zeros_like(t)
    if loss == "l2":
        return difference.square().mean((1, 2, 3))
    if loss == "root-l2":
        return losses.pseudo_huber(difference, 1e-8) / math.sqrt(dim)  # the root itself has no slope at 0
    huber = losses.pseudo_huber(difference, 0.00054 * dim) / dim
    return (1 - t) * huber if loss == "weighted-huber" else huber


def perceptual(
    velocity: Tensor, x: Tensor, t: Tensor, data: Tensor, distance: Distance, *, over_t: bool = True
) -> Tensor:
    """D(x_t - t v, x0) of each row, over t or not: of the image to which a straight step would lead. (n,)."""
    found = losses.by_row(distance, x - spread(t, x) * velocity, data)
    return found / t if over_t else found


@dataclass(frozen=True)
class RFPPConfig:
    """density: a of the levels' density, 0 for uniform ones; loss: see `velocity_errors`.

    distance: a perceptual distance beside it, as 'lpips'; '' for none. over_t: whether that is divided by t. The
    paper's best is 'weighted-huber' and 'lpips' over t; plain reflow is density 0 and loss l2.
    """

    density: float = 4.0
    loss: str = "weighted-huber"
    distance: str = ""
    over_t: bool = True

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise OnestepError(f"unknown loss {self.loss!r} of reflow{near_miss(self.loss, LOSSES)}")
        if self.loss == "none" and not self.distance:
            raise OnestepError("loss 'none' leaves nothing to learn from; name a distance, such as 'lpips', or a loss")
        if not 0 <= self.density <= 100:
            raise OnestepError(f"density is a number from 0, uniform, to 100, not {self.density:g}")


def rectified_flow_plus(nets: Nets, cfg: RFPPConfig):
    """Objective of a 2-rectified flow++: reflow with levels, loss and start of its own (Lee et al. 2024)."""
    student = nets.student
    distance = losses.distance(cfg.distance) if cfg.distance else None

    def objective(batch, draw):
        data, noise = batch.images, batch.noise
        t = level(draw.uniform("t"), draw.uniform("mirrored") < 0.5, cfg.density)
        x = FLOW.mix(data, noise, t)
        velocity = student(x, t, batch.labels, want="velocity")
        errors = velocity_errors(velocity, noise - data, t, cfg.loss)
        if distance:
            errors = errors + perceptual(velocity, x, t, data, distance, over_t=cfg.over_t)
        yield errors.mean(), "student"

    return objective


def _as_flow(cfg: RFPPConfig, net, native, teacher) -> Denoiser:
    # A teacher's weights, mostly those of a diffusion model, are seen on the flow path.
    return Denoiser(net, native or Flow()).on(FLOW)


register(Method("2-rf++", 1, RFPPConfig, rectified_flow_plus, _as_flow, data="pairs", training={"lr": 2e-4}))
