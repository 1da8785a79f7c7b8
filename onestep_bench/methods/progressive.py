"""Progressive distillation (Salimans and Ho 2022, arXiv:2202.00512): the multi-fold rival of SFDDM.

One fold halves the steps: a student of N steps learns to do in one DDIM step what its teacher, of 2N steps, does in
two. A chain of folds is a chain of `train` calls, each starting from the last; the store counts the whole chain's cost.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from onestep_bench.denoiser import Denoiser
from onestep_bench.errors import OnestepError
from onestep_bench.methods import Method, Nets, register
from onestep_bench.paths import VE, VP, Path, alphas_cumprod, spread
from onestep_bench.samplers import ddim_times, karras_intervals

KARRAS = "karras"


def two_step_target(teacher, x: Tensor, t: Tensor, middle: Tensor, end: Tensor, labels: Tensor | None = None) -> Tensor:
    """The x0 for which one DDIM step from t to `end` lands where the teacher's two, by way of `middle`, do (Alg. 2).

    x: (n, c, h, w) at levels t; t, middle, end: (n,), t > middle > end >= 0; teacher on the same path.
    """
    path: Path = teacher.path
    x0 = teacher(x, t, labels, want="x0")
    x_middle = path.mix(x0, path.from_x0(x, x0, t), middle)
    x0 = teacher(x_middle, middle, labels, want="x0")
    x_end = path.mix(x0, path.from_x0(x_middle, x0, middle), end)
    kept = spread(path.sigma(end) / path.sigma(t), x)  # share of the noise that a step leaves
    return (x_end - kept * x) / (spread(path.alpha(end), x) - kept * spread(path.alpha(t), x))


def weight(name: str, path: Path, t: Tensor) -> Tensor:
    """Weight of the x0 error at levels t (n,): 'truncated-snr' max(SNR, 1), or 'snr+1' (Sec. 4)."""
    snr = path.ratio(t) ** -2
    return snr.clamp(min=1) if name == "truncated-snr" else snr + 1


@dataclass(frozen=True)
class ProgressiveConfig:
    """steps: the student's N, half its teacher's. levels, schedule: the discrete path of the whole chain.

    schedule 'karras' is no discrete path: steps are then N intervals of EDM's grid from 80 to 0.002, on VE, as in the
    re-run on CIFAR-10 by Song et al. 2023 (arXiv:2303.01469, App. C): the same target, and the weight 'truncated-snr'.
    Its students walk their own grid by the sampler 'ddim-intervals'.
    """

    steps: int = 16
    levels: int = 1024
    schedule: str = "sigmoid"
    weight: str = "truncated-snr"

    def __post_init__(self):
        if self.weight not in ("truncated-snr", "snr+1"):
            raise OnestepError(f"weight is 'truncated-snr' or 'snr+1', not {self.weight!r}")
        self.times()  # raises where the teacher's steps do not fit

    def times(self) -> Tensor:
        """The teacher's levels, (2 steps + 1,) float64, of which the student walks every other one."""
        if self.schedule == KARRAS:
            return karras_intervals(2 * self.steps)
        return ddim_times(2 * self.steps, self.levels)

    def path(self) -> Path:
        """The path of the whole chain."""
        return VE if self.schedule == KARRAS else VP(alphas_cumprod(self.schedule, self.levels))


def progressive(nets: Nets, cfg: ProgressiveConfig):
    """Objective of one fold of progressive distillation: one DDIM step matches two of the teacher."""
    student = nets.student
    teacher, path = nets.teacher.on(student.path), student.path
    times = cfg.times().to(next(student.parameters()))

    def objective(batch, draw):
        step = 2 * draw.integers("step", 0, cfg.steps)
        t, middle, end = times[step], times[step + 1], times[step + 2]
        x = path.mix(batch.images, draw.normal("eps", batch.images.shape[1:]), t)
        with torch.no_grad():
            target = two_step_target(teacher, x, t, middle, end, batch.labels)
        error = (student(x, t, batch.labels, want="x0") - target).square().mean((1, 2, 3))
        yield (weight(cfg.weight, path, t) * error).mean(), "student"

    return objective


def _student(cfg: ProgressiveConfig, net, native, teacher) -> Denoiser:
    return Denoiser(net, native or teacher.native, cfg.path())


register(Method("progressive", 1, ProgressiveConfig, progressive, _student, needs_teacher=True, follows_teacher=True))
