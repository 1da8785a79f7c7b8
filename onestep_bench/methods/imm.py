"""Inductive moment matching (Zhou et al. 2025, arXiv:2503.07565): jumps that agree in distribution.

Two jumps to level s, one from t and one from a level r a little nearer, are to end in the same distribution: not image
by image but as groups of images, by the distance of their moments in a kernel (MMD). With groups of one it is
consistency training; larger ones tell apart what a mean cannot. The jump is the DDIM step by the network's x0, so that
EDM's preconditioning is IMM's, and a teacher's weights may be the start. Its training code was never released: this is
the paper's formula.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from onestep_bench.denoiser import EDM, Denoiser
from onestep_bench.errors import OnestepError
from onestep_bench.flow_map import FlowMap
from onestep_bench.losses import same_dropout
from onestep_bench.methods import Method, Nets, register
from onestep_bench.paths import VE, spread

# Standard deviation of the noise at t = 1 on IMM's path, x_t = (1 - t) x0 + DATA t eps: that of the data.
DATA = 0.5


def sigma_of(t: Tensor) -> Tensor:
    """The level of VE at IMM's level t, where x_t / (1 - t) is the same image."""
    return DATA * t / (1 - t)


def log_snr(t: Tensor) -> Tensor:
    """ln of the squared signal-to-noise ratio that IMM's weight is of, (1 - t) / t without the data's deviation."""
    return 2 * ((1 - t) / t).log()


def nearer_level(t: Tensor, s: Tensor, low: float, high: float, k: float) -> Tensor:
    """r(s, t) = max(s, eta^-1(eta(t) - (eta(high) - eta(low)) / 2^k)), eta = t / (1 - t): in the precision of t."""
    ratio = t / (1 - t) - (high / (1 - high) - low / (1 - low)) * 2.0**-k
    ratio = ratio.clamp(min=0)  # of a step longer than the way to 0, whose level would else lie beyond 1
    return torch.maximum(s, ratio / (1 + ratio))


def jump(flow: FlowMap, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None) -> Tensor:
    """f_(s,t)(x): the jump of a flow map on VE as IMM's path has it, where x_t is (n, c, h, w) and t > s (n,)."""
    return spread(1 - s, x) * flow.jump(x / spread(1 - t, x), sigma_of(t), sigma_of(s), labels)


def network_share(t: Tensor, s: Tensor) -> Tensor:
    """|C|, by which the network's raw output is multiplied in f_(s,t) under EDM's preconditioning: (n,)."""
    return DATA * (t - s) / ((1 - t) ** 2 + t**2).sqrt()


def group_mmd(p: Tensor, q: Tensor, share: Tensor) -> Tensor:
    """Squared MMD of each group of p and q, both (groups, m, ...), with the Laplace kernel: (groups,).

    k(a, b) = exp(-|a - b| / (share dim)), share (groups,); all pairs count, those of one with itself too.
    """
    p, q = p.flatten(2), q.flatten(2)
    width = share.clamp(min=1e-8).reshape(-1, 1, 1) * p.shape[2]  # 0 where s = t, which floats do draw

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = (a[:, :, None] - b[:, None]).square().sum(3)
        # A distance has no slope at 0, where each image meets itself.
        return torch.exp(-squared.clamp(min=1e-16).sqrt() / width)

    return (kernel(p, p) + kernel(q, q) - 2 * kernel(p, q)).mean((1, 2))


def weight(t: Tensor, a: float, b: float) -> Tensor:
    """1/2 sigmoid(b - l) (-dl/dt) alpha^a / (alpha^2 + t^2), alpha = 1 - t, l = 2 ln(alpha/t): of the level t (n,)."""
    alpha = 1 - t
    return 0.5 * torch.sigmoid(b - log_snr(t)) * 2 / (t * alpha) * alpha**a / (alpha**2 + t**2)


@dataclass(frozen=True)
class IMMConfig:
    """members: images of a group, which share their levels. k: r lies 2^-k of the whole range nearer than t.

    Levels are between low and high; a, b: of `weight`. The defaults are those of CIFAR-10.
    """

    members: int = 4
    k: float = 15.0
    low: float = 0.006
    high: float = 0.994
    a: float = 1.0
    b: float = 5.0

    def __post_init__(self):
        if self.members < 1:
            raise OnestepError(f"a group has at least 1 member, not {self.members}")
        if not 0 < self.low < self.high < 1:
            raise OnestepError(f"levels rise between 0 and 1, not from low={self.low:g} to high={self.high:g}")


def imm(nets: Nets, cfg: IMMConfig):
    """Objective of inductive moment matching: jumps from two levels end in one distribution (Zhou et al. 2025)."""
    flow = FlowMap(nets.student)

    def of_groups(values: Tensor) -> Tensor:
        return values[:: cfg.members].repeat_interleave(cfg.members).double()

    def objective(batch, draw):
        data, labels = batch.images, batch.labels
        t = of_groups(draw.uniform("t", cfg.low, cfg.high))
        s = cfg.low + of_groups(draw.uniform("s")) * (t - cfg.low)
        r = nearer_level(t, s, cfg.low, cfg.high, cfg.k)
        noise = DATA * draw.normal("noise", data.shape[1:])
        # In double precision until the network: t and r may differ in the fifth digit.
        x_t, x_r = (spread(1 - level, data) * data + spread(level, data) * noise for level in (t, r))
        with torch.no_grad(), same_dropout(data.device):
            wanted = jump(flow, x_r, r, s, labels)
        made = jump(flow, x_t, t, s, labels)
        p, q = (images.unflatten(0, (-1, cfg.members)) for images in (made, wanted))
        first = slice(None, None, cfg.members)
        errors = weight(t, cfg.a, cfg.b)[first] * group_mmd(p, q, network_share(t, s)[first])
        yield errors.mean().float(), "student"

    return objective


def _as_flow_map(cfg: IMMConfig, net, native, teacher) -> Denoiser:
    return Denoiser(net, native or EDM(DATA)).on(VE)


register(
    Method(
        "imm",
        1,
        IMMConfig,
        imm,
        _as_flow_map,
        training={"lr": 1e-4},
        group=lambda config: config.members,
        two_times=True,
    )
)
