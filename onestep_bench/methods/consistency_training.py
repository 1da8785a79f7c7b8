"""Consistency training: a consistency model without a teacher, as first published (CT) and as improved (iCT).

A consistency function answers alike at two neighbouring levels of one trajectory. Without a teacher the trajectory is
the straight line from an image to its noise, and the levels come closer as training goes on, N(k) of them after k
steps (Song et al. 2023, arXiv:2303.01469, Algorithm 3). Improved (Song and Dhariwal 2023, arXiv:2310.14189): the
student is its own target, N doubles, levels are drawn log-normally, and a pseudo-Huber distance is weighed by the gap.
"""

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from onestep_bench import losses
from onestep_bench.denoiser import EDM, Denoiser
from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.methods import Method, Nets, move_towards, register
from onestep_bench.paths import VE
from onestep_bench.samplers import karras_intervals


def doubling(progress: float, first: int, last: int) -> int:
    """Intervals min(first 2^floor(progress (log2(last/first) + 1)), last): each number for an equal share (iCT)."""
    # What rounding leaves just below a whole number is that number.
    return min(first * 2 ** math.floor(progress * (math.log2(last / first) + 1) + 1e-9), last)


def root(progress: float, first: int, last: int) -> int:
    """Intervals ceil(sqrt(progress ((last + 1)^2 - first^2) + first^2) - 1), at least 1 (CT, App. C)."""
    grown = math.sqrt(progress * ((last + 1) ** 2 - first**2) + first**2)
    return max(1, math.ceil(grown - 1 - 1e-9))


GROWTHS = {"doubling": doubling, "root": root}


def decay_at(start: float, first: int, intervals: int) -> float:
    """The target's decay exp(first ln(start) / intervals): nearer to 1 where levels are nearer (CT, App. C)."""
    return start ** (first / intervals)


def probabilities(levels: Tensor, mean: float, std: float) -> Tensor:
    """Of each interval between falling levels (N + 1,), that ln t ~ N(mean, std^2) falls in it: (N,), of sum 1.

    At std 0 all are equal.
    """
    if not std:
        return torch.full_like(levels[1:], 1 / (len(levels) - 1))
    share = torch.erf((levels.log() - mean) / (std * math.sqrt(2)))
    return -share.diff() / (share[0] - share[-1])


def answers(
    student, target, x_t: Tensor, x_r: Tensor, t: Tensor, r: Tensor, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(f(x_t, t), sg f_target(x_r, r)), which are to agree: (n, c, h, w) each, with the same dropout.

    student and target on VE; x_t, x_r (n, c, h, w) of one trajectory at levels t > r > 0 (n,).
    """
    with torch.no_grad(), losses.same_dropout(x_t.device):
        wanted = target(x_r, r, labels, want="x0")
    return student(x_t, t, labels, want="x0"), wanted


def errors(out: Tensor, wanted: Tensor, distance: str | losses.Distance) -> Tensor:
    """Distance of each row (n,), as `losses.distance` names it: iCT's is 'pseudo-huber'."""
    return losses.by_row(losses.distance(distance), out, wanted)


@dataclass(frozen=True)
class ConsistencyTrainingConfig:
    """iCT's at the defaults, published with RAdam; CT's are growth root, first 2, last 150, p_std 0, distance
    lpips@224, weighting uniform and target_decay 0.9.

    growth: how the intervals between levels grow from `first` to `last`, doubling or root. p_mean, p_std: of ln t,
    in whole intervals; at p_std 0 all are drawn alike. distance: see `errors`; weighting: see `losses.weighting`.
    target_decay: of the EMA that is the target network, at the first number of levels; 0: the student is its own
    target.
    """

    growth: str = "doubling"
    first: int = 10
    last: int = 1280
    p_mean: float = -1.1
    p_std: float = 2.0
    distance: str = "pseudo-huber"
    weighting: str = "gap"
    target_decay: float = 0.0

    def __post_init__(self):
        if self.growth not in GROWTHS:
            raise OnestepError(f"unknown growth {self.growth!r} of levels{near_miss(self.growth, GROWTHS)}")
        if not 1 <= self.first <= self.last:
            raise OnestepError(f"intervals grow from 1 or more, not from first={self.first} to last={self.last}")
        if not (self.p_std >= 0 and 0 <= self.target_decay < 1):
            raise OnestepError("p_std is not negative, and target_decay lies in [0, 1)")
        losses.weighting(self.weighting)
        losses.distance(self.distance)


def consistency_training(nets: Nets, cfg: ConsistencyTrainingConfig):
    """Objective of consistency training: two neighbouring levels of the line from an image to its noise."""
    student, target = nets.student, nets.auxiliary.get("target")
    grown, weight = GROWTHS[cfg.growth], losses.weighting(cfg.weighting)

    def objective(batch, draw):
        intervals = grown(draw.progress, cfg.first, cfg.last)
        if target and draw.first:  # once a step, however many micro-batches it has
            move_towards(target, student, decay_at(cfg.target_decay, cfg.first, intervals))
        with batch.images.device:  # made there: what is copied over would be waited for
            levels = karras_intervals(intervals)
        shares = probabilities(levels, cfg.p_mean, cfg.p_std).cumsum(0)
        place = torch.searchsorted(shares, draw.uniform("level").double()).clamp(max=intervals - 1)
        t, r = (levels[at].to(batch.images) for at in (place, place + 1))
        eps = draw.normal("eps", batch.images.shape[1:])
        x_t, x_r = (VE.mix(batch.images, eps, level) for level in (t, r))
        out, wanted = answers(student, target or student, x_t, x_r, t, r, batch.labels)
        yield (weight(t, r) * errors(out, wanted, cfg.distance)).mean(), "student"

    return objective


def _target(nets: Nets, cfg: ConsistencyTrainingConfig) -> dict[str, nn.Module]:
    if not cfg.target_decay:
        return {}
    return {"target": copy.deepcopy(nets.student).eval().requires_grad_(False)}


def _student(cfg: ConsistencyTrainingConfig, net, native, teacher) -> Denoiser:
    native = native or EDM()
    if not isinstance(native, EDM):
        raise OnestepError("consistency training needs an EDM network, which is the identity at its lowest level")
    return Denoiser(net, replace(native, boundary=native.ratios[0])).on(VE)


register(
    Method(
        "consistency-training",
        1,
        ConsistencyTrainingConfig,
        consistency_training,
        _student,
        auxiliary=_target,
        # In full precision, since bf16 rounds off more than two close levels differ.
        training={"lr": 1e-4, "batch_size": 1024, "precision": "fp32"},
    )
)
