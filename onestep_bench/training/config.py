"""What every method trains with, unless the method or the caller says otherwise."""

import math
from dataclasses import dataclass

from onestep_bench.errors import OnestepError


@dataclass(frozen=True)
class TrainConfig:
    """What every method trains with, unless the method or the caller says otherwise.

    kimg: budget, thousands of images seen. warmup_kimg: linear warm-up of the learning rate. lr_decay: 'constant' or
    'cosine' (to zero at the end of the budget). clip: gradient norm, 0 for none. accumulate: micro-batches a step.
    ema_halflife_kimg: half-life of the weights' average; its decay is capped by (1+n)/(10+n) at step n, so that the
    random start is forgotten. ema_rampup: if positive, the half-life is at most this share of the images seen so far
    (0.05 in EDM's and GDD's code). hflip: mirror images (and their pairs' noise with them), each with probability 1/2.
    """

    kimg: float
    batch_size: int = 128
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_kimg: float = 0.0
    lr_decay: str = "constant"
    clip: float = 0.0
    accumulate: int = 1
    ema_halflife_kimg: float = 500.0
    ema_rampup: float = 0.0
    hflip: bool = False

    def __post_init__(self):
        # JSON and YAML know lists only.
        object.__setattr__(self, "betas", tuple(self.betas))
        # Written so that NaN is refused too.
        if not (0 < self.kimg < math.inf and self.batch_size > 0 and self.lr > 0 and self.ema_halflife_kimg > 0):
            raise OnestepError("kimg, batch_size, lr and ema_halflife_kimg must be positive numbers")
        if not 0 <= self.ema_rampup < math.inf:
            raise OnestepError(f"ema_rampup is a share of the images seen, 0 for none, not {self.ema_rampup}")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise OnestepError(f"accumulate={self.accumulate} must divide batch_size={self.batch_size}")
        if self.lr_decay not in ("constant", "cosine"):
            raise OnestepError(f"lr_decay is 'constant' or 'cosine', not {self.lr_decay!r}")

    @property
    def steps(self) -> int:
        """Optimiser steps in the budget, at least 1."""
        return max(1, round(self.kimg * 1000 / self.batch_size))

    def rate(self, step: int) -> float:
        """Learning rate of a step (0-based)."""
        warmup = self.warmup_kimg * 1000 / self.batch_size
        rate = self.lr * min(1.0, (step + 1) / warmup) if warmup else self.lr
        if self.lr_decay == "constant":
            return rate
        return rate * (1 + math.cos(math.pi * step / self.steps)) / 2

    def ema_decay(self, step: int) -> float:
        """Share of the average that a step (0-based) keeps."""
        halflife = self.ema_halflife_kimg * 1000
        if self.ema_rampup:
            halflife = min(halflife, self.ema_rampup * (step + 1) * self.batch_size)
        return min(0.5 ** (self.batch_size / halflife), (1 + step) / (10 + step))
