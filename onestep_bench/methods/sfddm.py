"""SFDDM (arXiv:2405.14961): one fold of distillation from a teacher on T levels to a student on any T' < T.

The student's path is a sub-sequence of the teacher's, so with the same (x0, eps) both see the same noisy image: the
student can be matched to the teacher's answer at every one of its levels directly, in one fold, where progressive
distillation halves the steps fold by fold. Matched are the prediction and the features before the output head.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onestep_bench.denoiser import DDPM, Denoiser
from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.methods import Method, Nets, register
from onestep_bench.paths import VP, alphas_cumprod, spread


def even_map(T: int, T_student: int) -> list[int]:
    """The published map phi_t = floor(T/T') t, t = 0..T'-1 (Sec. 3.2). It stops short of pure noise for small T'."""
    _check_levels(T, T_student)
    return [T // T_student * t for t in range(T_student)]


def full_map(T: int, T_student: int) -> list[int]:
    """Evenly spaced indices that end at T-1, pure noise, where sampling starts; [T-1] for a single level."""
    _check_levels(T, T_student)
    if T_student == 1:
        return [T - 1]
    return [round(t * (T - 1) / (T_student - 1)) for t in range(T_student)]


def trailing_map(T: int, T_student: int) -> list[int]:
    """The last level of each of T' equal parts: ends at T-1, and spends no step at the clean end as `full_map` does."""
    _check_levels(T, T_student)
    return [round((t + 1) * T / T_student) - 1 for t in range(T_student)]


def _check_levels(T: int, T_student: int) -> None:
    if not 1 <= T_student <= T:
        raise OnestepError(f"a student of {T_student} levels does not fit a teacher of {T}; use 1 to {T}")


def sub_path(path: VP, indices: Sequence[int]) -> VP:
    """The path with levels `indices` (0-based, strictly rising) of `path`.

    Raises OnestepError for indices that do not rise or lie outside 0..T-1.
    """
    T = len(path.alphas_cumprod)
    indices = list(indices)
    rising = all(a < b for a, b in itertools.pairwise(indices))
    if not indices or not rising or indices[0] < 0 or indices[-1] >= T:
        raise OnestepError(f"a map must rise strictly within 0..{T - 1}, not {indices}")
    return VP(path.alphas_cumprod[indices])


def sfddm_loss(student_out: Tensor, teacher_out: Tensor, student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """mean |out_s - out_T| + mean |h_s - h_T| (Eq. 11, weight 1:1, l1 as released): a scalar.

    out: native predictions (n, c, h, w); features: what enters the output head, (n, k, h, w).
    """
    return (student_out - teacher_out).abs().mean() + (student_features - teacher_features).abs().mean()


@contextmanager
def head_features(denoiser: Denoiser) -> Iterator[list[Tensor]]:
    """Collect what enters the network's output head (before its last normalisation) at every call, through a hook."""
    features: list[Tensor] = []
    handle = denoiser.net.head_norm.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    try:
        yield features
    finally:
        handle.remove()


@dataclass(frozen=True)
class SFDDMConfig:
    """levels, schedule: the teacher's discrete path, on which a teacher of another kind is seen.

    student_levels: T'. map: 'full', 'trailing', 'even' (as published), or 'custom' with `indices`. condition: 'noise',
    the network is told the true noise level as the teacher's is, or 'index', its own index t (as published).
    predicts: what is matched, and what an index-conditioned student predicts: v, or eps as published. The error of
    eps says next to nothing about the image near pure noise, where a student of few levels starts.
    A student with the teacher's weights, told the true level, *is* the teacher: its loss is zero from the first step.
    """

    student_levels: int = 16
    levels: int = 1024
    schedule: str = "sigmoid"
    map: str = "full"
    indices: tuple[int, ...] = ()
    condition: str = "noise"
    predicts: str = "v"

    def __post_init__(self):
        if self.map not in _MAPS and self.map != "custom":
            raise OnestepError(f"unknown map {self.map!r}{near_miss(self.map, [*_MAPS, 'custom'])}")
        if self.condition not in ("noise", "index"):
            raise OnestepError(f"condition is 'noise' or 'index', not {self.condition!r}")
        if self.predicts not in ("eps", "v"):
            raise OnestepError(f"predicts is 'eps' or 'v', not {self.predicts!r}")
        if self.map == "custom" and len(self.indices) != self.student_levels:
            raise OnestepError(f"a custom map for {self.student_levels} levels has {len(self.indices)} indices")

    def path(self) -> VP:
        """The student's path."""
        chosen = self.indices if self.map == "custom" else _MAPS[self.map](self.levels, self.student_levels)
        return sub_path(VP(alphas_cumprod(self.schedule, self.levels)), chosen)


_MAPS = {"even": even_map, "full": full_map, "trailing": trailing_map}


def sfddm(nets: Nets, cfg: SFDDMConfig):
    """Objective of one fold to any number of steps: match prediction and head features at a random level."""
    path = nets.student.path
    student, teacher = nets.student, nets.teacher.on(path)
    project = nets.auxiliary.get("projection", nn.Identity())
    trained = ("student", *nets.auxiliary)

    def objective(batch, draw):
        t = draw.integers("t", 1, cfg.student_levels + 1).to(batch.images.dtype)
        x = path.mix(batch.images, draw.normal("eps", batch.images.shape[1:]), t)
        with torch.no_grad(), head_features(teacher) as wanted:
            target = _output(teacher, x, t, batch.labels, cfg.predicts)
        with head_features(student) as features:
            output = _output(student, x, t, batch.labels, cfg.predicts)
        # Taken from inside networks that may compute in bfloat16.
        ours, theirs = features[0].float(), wanted[0].float()
        yield sfddm_loss(output, target, project(ours), theirs), trained

    return objective


def _output(denoiser: Denoiser, x: Tensor, t: Tensor, labels: Tensor | None, predicts: str) -> Tensor:
    """eps, or v = alpha eps - sigma x0, on the student's path."""
    if predicts == "eps":
        return denoiser(x, t, labels, want="eps")
    x0 = denoiser(x, t, labels, want="x0")
    return (spread(denoiser.path.alpha(t), x) * x - x0) / spread(denoiser.path.sigma(t), x)


def _student(cfg: SFDDMConfig, net, native, teacher) -> Denoiser:
    path = cfg.path()
    if cfg.condition == "index":
        return Denoiser(net, DDPM(path, cfg.predicts))
    return Denoiser(net, native or teacher.native, path)


def _projection(nets: Nets, cfg: SFDDMConfig) -> dict[str, nn.Module]:
    """A learned 1x1 convolution between features of unequal width: our extension, to reach other sizes."""
    patches = nets.student.net.patch, nets.teacher.net.patch
    if patches[0] != patches[1]:
        raise OnestepError(
            f"sfddm compares features place by place, but the student's network cuts its images into patches of side "
            f"{patches[0]} and the teacher's into {patches[1]}; choose sizes of one patch"
        )
    ours, theirs = (denoiser.net.head_norm.weight.shape[0] for denoiser in (nets.student, nets.teacher))
    return {} if ours == theirs else {"projection": nn.Conv2d(ours, theirs, 1)}


register(
    Method(
        "sfddm",
        1,
        SFDDMConfig,
        sfddm,
        _student,
        needs_teacher=True,
        auxiliary=_projection,
        training={"lr": 2e-4},
        follows_teacher=True,
    )
)
