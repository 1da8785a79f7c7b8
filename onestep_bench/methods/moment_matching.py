"""Moment matching in a few steps (Salimans et al. 2024, arXiv:2406.04103), the alternating form (Algorithm 2).

A student of k steps denoises data noised to one of its k levels t, and its image x is noised again, as the ancestral
sampler does, to a level s within the step. There the mean image given x_s must be the teacher's: an auxiliary denoiser,
a copy of the teacher that keeps learning what the student makes, tells what it is, and the student moves by the
difference of the two. With one step this is score distillation but for the weight, here a function of the level alone:
where a step ends near its own beginning the student's image is the teacher's, and DMD2's weight infinite.
The paper's levels are even in the cosine schedule's time, these in FLOW's, as the samplers of flow maps have them;
sample it by `ancestral` in `student_steps` steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from onestep_bench.denoiser import Denoiser
from onestep_bench.errors import OnestepError
from onestep_bench.losses import moved
from onestep_bench.methods import Adam, Method, Nets, register
from onestep_bench.networks import critics
from onestep_bench.paths import FLOW, VE, posterior, spread

LEAST = 0.002  # noise-to-signal ratio: EDM's lowest level, below which no denoiser here was trained


def moments_loss(found: Tensor, x: Tensor, wanted: Tensor, sigma: Tensor) -> Tensor:
    """The auxiliary denoiser's loss: mean of (1/sigma^2 + 1/0.5^2) ((F - x)^2 + (F - R)^2), a scalar.

    found F, the student's x and the teacher's wanted R: images (n, c, h, w), at sigma (n,). Half as far from the
    teacher as the regression on x alone would have it, so F - R is half the difference of the moments.
    """
    error = (found - x).square() + (found - wanted).square()
    return (spread(sigma**-2 + 4, x) * error).mean()


def in_units(difference: Tensor, sigma: Tensor) -> Tensor:
    """A difference of images (n, c, h, w) at sigma (n,), over an EDM network's unit, 0.5 sigma/sqrt(sigma^2 + 0.25)."""
    return spread((sigma**-2 + 4).sqrt(), difference) * difference


@dataclass(frozen=True)
class MomentMatchingConfig:
    """student_steps: the k steps that the student is taught. fake_lr: learning rate of the other denoiser over its."""

    student_steps: int = 4
    fake_lr: float = 1.0

    def __post_init__(self):
        if self.student_steps < 1:
            raise OnestepError(f"student_steps is a number of steps, at least 1, not {self.student_steps}")
        if not self.fake_lr > 0:
            raise OnestepError(f"fake_lr must be positive, not {self.fake_lr}")


def moment_matching(nets: Nets, cfg: MomentMatchingConfig):
    """Objective: the student by the difference of two denoisers within its step, then the auxiliary one of them."""
    student, teacher, fake = nets.student, nets.teacher.on(VE), nets.auxiliary["fake"]
    student.eval()  # no dropout
    path = student.path

    def level(place: Tensor) -> Tensor:
        return path.t_at(FLOW.ratio(place)).clamp(max=path.t_max)

    def objective(batch, draw):
        shape, labels, steps = batch.images.shape[1:], batch.labels, cfg.student_steps
        top = (draw.integers("step", 0, steps) + 1) / steps
        t, s = level(top), level(top - draw.uniform("within") / steps)
        s = torch.maximum(s, path.t_at(torch.full_like(s, LEAST)))  # in the step from noise s may be t itself
        x_t = path.mix(batch.images, draw.normal("eps", shape), t)
        x = student(x_t, t, labels, want="x0")
        with torch.no_grad():
            y = posterior(path, x_t, x, draw.normal("fresh", shape), t, s) / spread(path.alpha(s), x)
            sigma = path.ratio(s)
            wanted = teacher(y, sigma, labels, want="x0")
            direction = in_units(fake(y, sigma, labels, want="x0") - wanted, sigma)
        yield moved(x, direction), "student"
        found = fake(y, sigma, labels, want="x0")
        yield moments_loss(found, x.detach(), wanted, sigma), "fake"

    return objective


register(
    Method(
        "moment-matching",
        1,
        MomentMatchingConfig,
        moment_matching,
        lambda cfg, net, native, teacher: Denoiser(net, native or teacher.native),
        needs_teacher=True,
        auxiliary=lambda nets, cfg: critics.fake_and_critic(nets.teacher),
        training={"lr": 1e-4, "batch_size": 256},
        adams=lambda cfg, betas: {"fake": Adam(cfg.fake_lr, betas)},
        follows_teacher=True,
    )
)
