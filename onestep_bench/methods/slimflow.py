"""SlimFlow (arXiv:2407.12718): Annealing Reflow, then Flow-Guided Distillation.

Both train on pairs (noise, image) of a large teacher. Annealing Reflow trains a small flow from random weights,
blending the pairs' noise with fresh noise, all of it at first and none at the end: that bridges ordinary
flow matching, which suits random weights, and reflow, which straightens. Flow-Guided Distillation turns the result
into a one-step student and regularises it with two-step targets of the flow itself, made on the fly.
Plain reflow is `anneal="constant"` with `constant=0`; plain distillation is `guidance=0`.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from onestep_bench import losses
from onestep_bench.denoiser import NOISE_END, Denoiser, Flow
from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.losses import Distance
from onestep_bench.methods import Method, Nets, register
from onestep_bench.paths import FLOW

_SCHEDULES = {
    "linear": lambda k: 1 - min(1.0, k),
    "exp": lambda k: math.exp(-k),
    "cos": lambda k: (1 + math.cos(math.pi * min(1.0, k))) / 2,
}


def beta(schedule: str, progress: float, constant: float = 0.0) -> float:
    """Share of fresh noise at `progress` = k/K of the annealing: 1 is flow matching, 0 is reflow (Sec. 3.2).

    schedule: linear, exp, cos, or constant, which is `constant` throughout. Raises OnestepError for another.
    """
    if schedule == "constant":
        return constant
    if schedule not in _SCHEDULES:
        raise OnestepError(f"unknown annealing schedule {schedule!r}{near_miss(schedule, [*_SCHEDULES, 'constant'])}")
    return _SCHEDULES[schedule](progress)


def anneal(noise: Tensor, fresh: Tensor, beta: float) -> Tensor:
    """Blend of the pair's noise and fresh noise, sqrt(1-b^2) noise + b fresh: standard normal for every b (Eq. 9)."""
    return math.sqrt(1 - beta**2) * noise + beta * fresh


def reflow_loss(student, data: Tensor, noise: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
    """The rectified-flow loss on pairs (noise, data), each (n, c, h, w); t (n,). A scalar."""
    return losses.velocity_loss(student, data, noise, t, labels)


def distillation_loss(
    student, data: Tensor, noise: Tensor, distance: str | Distance, labels: Tensor | None = None
) -> Tensor:
    """D(z - v_s(x_t, t), x) at the noise end t of the pair's own path (Sec. 3.3, L_distill): a scalar.

    data, noise (n, c, h, w); distance: a name of `losses.distance` or a function of two image batches. The paper
    writes v_s(z, 1); like the released code this asks at t = 1 - 1e-3, where x_t holds a thousandth of the data.
    """
    t = noise.new_full((len(noise),), NOISE_END)
    velocity = student(FLOW.mix(data, noise, t), t, labels, want="velocity")
    return losses.distance(distance)(noise - velocity, data)


def two_step_target(
    teacher, noise: Tensor, first_velocity: Tensor, tau: Tensor, labels: Tensor | None = None
) -> Tensor:
    """Mean velocity of two Euler steps from noise to data, the first of length tau (Sec. 3.3, L_2step).

    x_m = z - tau u; returns tau u + (1 - tau) v_T(x_m, 1 - tau), (n, c, h, w).
    noise, first_velocity u: (n, c, h, w); tau (n,).
    """
    step = tau.reshape(-1, 1, 1, 1)
    middle = noise - step * first_velocity
    return step * first_velocity + (1 - step) * teacher(middle, 1 - tau, labels, want="velocity")


def guidance_loss(
    student,
    teacher,
    noise: Tensor,
    tau: Tensor,
    distance: str | Distance,
    first_step: str,
    labels: Tensor | None = None,
) -> Tensor:
    """L_2step: D between the student's one-step image and the two-step target's, from fresh noise: a scalar.

    first_step: who makes the first of the two steps; 'student' (detached; as released, and cheaper) or 'teacher'
    (as the paper's equations have it). Raises OnestepError for another.
    """
    if first_step not in ("student", "teacher"):
        raise OnestepError(f"first_step is 'student' or 'teacher', not {first_step!r}")
    t = noise.new_full((len(noise),), NOISE_END)
    velocity = student(noise, t, labels, want="velocity")
    first = velocity.detach() if first_step == "student" else teacher(noise, t, labels, want="velocity")
    target = two_step_target(teacher, noise, first, tau, labels)
    return losses.distance(distance)(noise - velocity, noise - target.detach())


@torch.no_grad()
def straightness(flow, noise: Tensor, steps: int = 20, labels: Tensor | None = None) -> Tensor:
    """How far trajectories bend: E || (z - x) - v(x_t, t) ||^2 at each of `steps` Euler levels (steps,), float64.

    Liu et al. 2022, Sec. 2.2: zero everywhere if and only if one step is exact. Mean over batch and dimensions;
    flow on the FLOW path, noise (n, c, h, w).
    """
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=noise.device)
    x, velocities = noise.double(), []
    for t, t_next in itertools.pairwise(times):
        velocities.append(flow(x, t, labels, want="velocity"))
        x = x + (t_next - t) * velocities[-1]
    return torch.stack([(noise - x - velocity).square().mean() for velocity in velocities])


@dataclass(frozen=True)
class ReflowConfig:
    """anneal: schedule of `beta`; constant: its value when the schedule is constant.

    anneal_fraction: K as a share of the budget (the paper anneals for 300k of 800k steps).
    """

    anneal: str = "linear"
    constant: float = 0.0
    anneal_fraction: float = 0.375

    def __post_init__(self):
        if not self.anneal_fraction > 0:
            raise OnestepError("anneal_fraction must be positive; to anneal nothing, use anneal='constant'")


def annealing_reflow(nets: Nets, cfg: ReflowConfig):
    """Objective of SlimFlow's 2-flow: the velocity of pairs, whose noise is fresh at first."""

    def objective(batch, draw):
        fresh, t = draw.normal("fresh", batch.images.shape[1:]), draw.uniform("t", 0, NOISE_END)
        noise = anneal(batch.noise, fresh, beta(cfg.anneal, draw.progress / cfg.anneal_fraction, cfg.constant))
        yield reflow_loss(nets.student, batch.images, noise, t, batch.labels), "student"

    return objective


@dataclass(frozen=True)
class DistillationConfig:
    """distance: l2, l1, lpips or a sum of them; guidance: weight of the two-step term, 0 for plain distillation.

    first_step: see `guidance_loss`; tau is uniform on (tau_low, tau_high).
    """

    distance: str = "l2"
    guidance: float = 1.0
    first_step: str = "student"
    tau_low: float = 0.2
    tau_high: float = 0.8


def flow_guided_distillation(nets: Nets, cfg: DistillationConfig):
    """Objective of SlimFlow's one-step student; the teacher is the EMA of the 2-flow the student starts from."""
    teacher = nets.teacher.on(FLOW)

    def objective(batch, draw):
        loss = distillation_loss(nets.student, batch.images, batch.noise, cfg.distance, batch.labels)
        if cfg.guidance:
            noise = draw.normal("noise", batch.images.shape[1:])
            tau = draw.uniform("tau", cfg.tau_low, cfg.tau_high)
            loss = loss + cfg.guidance * guidance_loss(
                nets.student, teacher, noise, tau, cfg.distance, cfg.first_step, batch.labels
            )
        yield loss, "student"

    return objective


def _as_flow(cfg, net, native, teacher) -> Denoiser:
    # Weights of another kind of network (an EDM's, say) are seen on the flow path.
    return Denoiser(net, native or Flow()).on(FLOW)


_TRAINING = {"lr": 2e-4, "betas": (0.9, 0.999), "clip": 1.0}

register(Method("annealing-reflow", 1, ReflowConfig, annealing_reflow, _as_flow, data="pairs", training=_TRAINING))
register(
    Method(
        "flow-guided-distillation",
        1,
        DistillationConfig,
        flow_guided_distillation,
        _as_flow,
        data="pairs",
        needs_teacher=True,
        training=_TRAINING,
    )
)
