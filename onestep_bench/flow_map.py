"""FlowMap: a denoiser as a map between any two levels of its path, and its derivatives along a trajectory.

A denoiser answers where a trajectory of the probability-flow ODE goes from here; a flow map, where it is at another
level. Its network is told a second time, the gap: how far the answer is to carry. At gap 0 it is the denoiser, so that
one network is sampled in one step or in many; a denoiser of one time is the flow map whose every jump is straight.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from onestep_bench.denoiser import Denoiser, Flow, Native
from onestep_bench.losses import same_dropout
from onestep_bench.paths import FLOW, Path, spread


def flow_time(path: Path, t: Tensor) -> Tensor:
    """The level of FLOW, in [0, 1], that holds the same image as level t of `path`: of equal noise-to-signal ratio."""
    return t if path == FLOW else FLOW.t_at(path.ratio(t))


@dataclass(frozen=True)
class FlowMap:
    """The two-time view of a denoiser, on its path. Levels s, t: scalars or (n,), noise above data."""

    denoiser: Denoiser

    def jump(self, x: Tensor, t: Tensor | float, s: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """Where the trajectory through x (n, c, h, w) at level t > 0 is at level s: (n, c, h, w).

        The DDIM step from t to s (Song et al. 2021, Eq. 12) by the x0 of a network that is told how far it goes, which
        is the jump of CTM (arXiv:2310.02279) on VE and of IMM (arXiv:2503.07565) on its path; at s = t it is x.
        """
        path = self.denoiser.path
        t, s = (torch.as_tensor(level, device=x.device, dtype=x.dtype) for level in (t, s))
        x0 = self.denoiser(x, t, labels, want="x0", **self._told(path, t, s))
        t, s = spread(t, x), spread(s, x)
        kept = path.sigma(s) / path.sigma(t)
        return kept * x + (path.alpha(s) - kept * path.alpha(t)) * x0

    def average(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None) -> Tensor:
        """The velocity with which a straight line leads from x at t to the trajectory's place at s: (n, c, h, w).

        u with jump(x, t, s) = x - (t - s) u on the FLOW path, of which the denoiser must be (MeanFlow,
        arXiv:2505.13447, Eq. 3); at s = t the velocity.
        """
        return self.denoiser(x, t, labels, want="velocity", **self._told(FLOW, t, s))

    def _told(self, path: Path, t: Tensor, s: Tensor) -> dict:
        # In FLOW's time whatever the path, so that a network is told the same of the same jump.
        return {"gap": flow_time(path, t) - flow_time(path, s)} if getattr(self.denoiser, "two_times", False) else {}


def flow_student(config, net: nn.Module, native: Native | None, teacher: Denoiser | None) -> Denoiser:
    """`net` as a student on FLOW, see `Method.student`: with random weights a velocity that is told t itself."""
    return Denoiser(net, native or Flow(plain=True)).on(FLOW)


def derivative(
    function: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """(function, its derivative in a direction) by forward-mode differentiation, one pass that carries both.

    at, along: arguments of the function, and the change of each. Differentiable itself, where gradients are on.
    In full precision, and not of what is compiled: of the function itself. Draws the dropout mask that the next pass
    will draw.
    """
    device = at[0].device
    plain = torch.autocast(device.type, enabled=False), torch.compiler.set_stance("force_eager")
    # By dual numbers and not torch.func.jvp, which is made of them: within that, hooks that count passes see wrappers.
    with same_dropout(device), plain[0], plain[1], forward_ad.dual_level():
        value = function(*map(forward_ad.make_dual, at, along))
        primal, tangent = forward_ad.unpack_dual(value)
        return primal, torch.zeros_like(primal) if tangent is None else tangent


@torch.no_grad()
def total_derivative(
    flow: FlowMap, x: Tensor, t: Tensor, s: Tensor, velocity: Tensor, labels: Tensor | None = None
) -> Tensor:
    """d/dt of the average velocity u(x_t, t, s) along a trajectory that passes x with `velocity`, s fixed, no gradient.

    x, velocity (n, c, h, w) on FLOW; t, s (n,). MeanFlow's Eq. 8: the derivative of u along (v, 1, 0) in (x, t, s).
    """
    along = velocity, torch.ones_like(t), torch.zeros_like(s)
    return derivative(lambda x, t, s: flow.average(x, t, s, labels), (x, t, s), along)[1]
