"""Knowledge distillation: a one-step student by plain regression on the teacher's pairs (Luhman and Luhman 2021).

arXiv:2101.02388. The simplest instance-based rival: each noise must give the very image the teacher made of it.
"""

from dataclasses import dataclass

from torch import Tensor

from onestep_bench import losses
from onestep_bench.denoiser import Denoiser
from onestep_bench.losses import Distance
from onestep_bench.methods import Method, Nets, register
from onestep_bench.samplers import one_step


def regression_loss(
    student, noise: Tensor, data: Tensor, distance: str | Distance, labels: Tensor | None = None
) -> Tensor:
    """D(G(z), x) on pairs of noise z and image x, each (n, c, h, w): a scalar."""
    return losses.distance(distance)(one_step(student, noise, labels), data)


@dataclass(frozen=True)
class KDConfig:
    """distance: l2 (as published), l1, lpips or a sum of them."""

    distance: str = "l2"


def kd(nets: Nets, cfg: KDConfig):
    """Objective: one-step regression from pure noise on the teacher's image of it."""

    def objective(batch, draw):
        yield regression_loss(nets.student, batch.noise, batch.images, cfg.distance, batch.labels), "student"

    return objective


def _student(cfg: KDConfig, net, native, teacher) -> Denoiser:
    return Denoiser(net, native or teacher.native)


register(Method("kd", 1, KDConfig, kd, _student, data="pairs", needs_teacher=True))
