"""Continuous-time consistency models (Lu and Song 2024, arXiv:2410.11081): trained (sCT) or distilled (sCD).

A consistency function stays the same along a trajectory, so its derivative there is 0. On the TrigFlow path
x_t = cos(t) x0 + sin(t) z, with z of the data's deviation, the function is cos(t) x - sin(t) DATA F(x, t), and what F
has to be changed by is its tangent g: normalised, warmed up, and weighted by a variance that is learned beside. Any
denoiser is seen so by `trig_output`; the student stays one, on VE. Both start from a teacher's weights; sCD goes along
the teacher's trajectories, sCT along straight lines from an image to its noise.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onestep_bench.denoiser import EDM, Denoiser
from onestep_bench.errors import OnestepError
from onestep_bench.flow_map import derivative
from onestep_bench.methods import Method, Nets, register
from onestep_bench.paths import VE, spread

# sigma_data, as EDM has it.
DATA = 0.5
_FEATURES = 16


def trig_output(denoiser, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
    """F(x, t) = (cos(t) x - D) / (DATA sin(t)), D the denoiser's x0 for x on TrigFlow: (n, c, h, w).

    denoiser on VE; x (n, c, h, w); t (n,) in (0, pi/2), tan(t) = sigma / DATA.
    """
    cos, sin = spread(t.cos(), x), spread(t.sin(), x)
    x0 = denoiser(x / cos, DATA * t.tan(), labels, want="x0")
    return (cos * x - x0) / (DATA * sin)


def tangent(
    denoiser, x: Tensor, t: Tensor, moves: Tensor, share: float, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(g, J): the tangent of the consistency function times cos(t), and the derivative of F in it. No gradient.

    g = -cos^2 (DATA F - dx/dt) - share (cos sin x + DATA J), J the derivative of F along (cos sin dx/dt, cos sin): the
    paper's Algorithm 1. moves: dx/dt (n, c, h, w). share: of the part that is not stable at first, 1 after the warm-up.
    """
    cos, sin = t.cos(), t.sin()
    both = spread(cos * sin, x)
    with torch.no_grad():
        along = both * moves, cos * sin
        output, change = derivative(lambda x, t: trig_output(denoiser, x, t, labels), (x, t), along)
        g = -(spread(cos, x) ** 2) * (DATA * output - moves) - share * (both * x + DATA * change)
    return g, change


def normalised(g: Tensor, c: float) -> Tensor:
    """g / (|g| + c), |g| the root of the mean square over each image."""
    return g / (spread(g.square().mean((1, 2, 3)).sqrt(), g) + c)


def weighted(error: Tensor, log_variance: Tensor, prior: Tensor | float) -> Tensor:
    """prior e / exp(l) + l of mean squared errors e (n,): that of EDM2 (Karras et al. 2024, arXiv:2312.02696)."""
    return prior * error / log_variance.exp() + log_variance


@dataclass(frozen=True)
class SCMConfig:
    """ln sigma ~ N(p_mean, p_std^2). c: of the tangent's normalisation; warmup: share of the budget to bring in J."""

    p_mean: float = -1.0
    p_std: float = 1.4
    c: float = 0.1
    warmup: float = 0.1

    def __post_init__(self):
        if not (self.p_std > 0 and self.c >= 0 and 0 <= self.warmup <= 1):
            raise OnestepError("p_std is positive, c not negative, and warmup a share between 0 and 1")


def sct(nets: Nets, cfg: SCMConfig):
    """Objective of a continuous-time consistency model of data, without a teacher (Lu and Song 2024)."""
    return _objective(nets, None, cfg)


def scd(nets: Nets, cfg: SCMConfig):
    """Objective of a continuous-time consistency model of its teacher's trajectories (Lu and Song 2024)."""
    return _objective(nets, nets.teacher.on(VE), cfg)


def _objective(nets: Nets, teacher: Denoiser | None, cfg: SCMConfig):
    student, variance = nets.student, nets.auxiliary["variance"]

    def objective(batch, draw):
        data, labels = batch.images, batch.labels
        sigma = (cfg.p_mean + cfg.p_std * draw.normal("sigma", ())).exp()
        noise, t = DATA * draw.normal("noise", data.shape[1:]), torch.atan(sigma / DATA)
        cos, sin = spread(t.cos(), data), spread(t.sin(), data)
        x, moves = cos * data + sin * noise, cos * noise - sin * data
        if teacher:
            with torch.no_grad():
                moves = DATA * trig_output(teacher, x, t, labels)
        share = min(1.0, draw.progress / cfg.warmup) if cfg.warmup else 1.0
        g = normalised(tangent(student, x, t, moves, share, labels)[0], cfg.c)
        output = trig_output(student, x, t, labels)
        error = (output - output.detach() - g).square().mean((1, 2, 3))
        log_variance = variance(_features(sigma)).flatten()
        yield weighted(error, log_variance, 1 / sigma).mean(), ("student", "variance")

    return objective


def _features(sigma: Tensor) -> Tensor:
    """Cosines and sines of ln(sigma), (n, features)."""
    angles = sigma.log()[:, None] * torch.linspace(0.1, 1, _FEATURES // 2, device=sigma.device)
    return torch.cat([angles.cos(), angles.sin()], 1)


def _variance(nets: Nets, cfg: SCMConfig) -> dict[str, nn.Module]:
    layer = nn.Linear(_FEATURES, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return {"variance": layer}


def _as_consistency(cfg: SCMConfig, net, native, teacher) -> Denoiser:
    return Denoiser(net, native or EDM(DATA)).on(VE)


_TRAINING = {"lr": 1e-4, "betas": (0.9, 0.99)}

register(Method("sct", 1, SCMConfig, sct, _as_consistency, auxiliary=_variance, training=_TRAINING))
register(
    Method(
        "scd",
        1,
        SCMConfig,
        scd,
        _as_consistency,
        needs_teacher=True,
        auxiliary=_variance,
        training=_TRAINING,
        follows_teacher=True,
    )
)
