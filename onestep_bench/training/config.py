"""What every method trains with, unless the method or the caller says otherwise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onestep_bench.errors import OnestepError, near_miss

OPTIMIZERS = ("adam", "radam", "adamw")
DECAYS = ("constant", "linear", "cosine")
PRECISIONS = ("auto", "bf16", "tf32", "fp32")


@dataclass(frozen=True)
class TrainConfig:
    """What every method trains with, unless the method or the caller says otherwise.

    kimg: budget, thousands of images seen. warmup_kimg: linear warm-up of the learning rate. lr_decay: 'constant', or
    to zero at the end of the budget 'linear' or 'cosine'. optimizer: of `OPTIMIZERS`, as torch has them; weight_decay:
    of 'adam' and 'radam' added to the gradient, of 'adamw' (Loshchilov and Hutter 2019) taken from the weights. Both
    are those of every network, lr and betas the student's. clip: gradient norm, 0 for none. accumulate: micro-batches a
    step. dropout: of the student; None is its size's, or that of the model it starts from. precision: see `precision`.
    ema_halflife_kimg: half-life of the weights' average, which is the model; 0 is no average but the weights as they
    are. Its decay is capped by (1+n)/(10+n) at step n, so that the random start is forgotten. ema_rampup: if positive,
    the half-life is at most this share of the images seen so far (0.05 in EDM's and GDD's code). emas: half-lives of
    further averages that are kept beside it, for `Model.averages`; they decide nothing about it.
    hflip: mirror images (and their pairs' noise with them), each with probability 1/2. augment: probability of each of
    EDM's augmentations (Karras et al. 2022, App. F.2), which the network is told of; 0 for none.
    """

    kimg: float
    batch_size: int = 128
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    optimizer: str = "adam"
    weight_decay: float = 0.0
    warmup_kimg: float = 0.0
    lr_decay: str = "constant"
    clip: float = 0.0
    accumulate: int = 1
    dropout: float | None = None
    precision: str | dict[str, str] = "auto"
    ema_halflife_kimg: float = 500.0
    ema_rampup: float = 0.0
    emas: tuple[float, ...] = ()
    hflip: bool = False
    augment: float = 0.0

    def __post_init__(self):
        # JSON and YAML know lists only, and write 0 for 0.0.
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "emas", _half_lives(self.emas, self.ema_halflife_kimg))
        object.__setattr__(self, "dropout", None if self.dropout is None else _share("dropout", self.dropout))
        # Written so that NaN is refused too.
        if not (0 < self.kimg < math.inf and self.batch_size > 0 and self.lr > 0):
            raise OnestepError("kimg, batch_size and lr must be positive numbers")
        for name in ("ema_halflife_kimg", "weight_decay", "warmup_kimg", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise OnestepError(f"{name} is a number of 0 or more, 0 for none, not {getattr(self, name)}")
        if not 0 <= self.ema_rampup < math.inf:
            raise OnestepError(f"ema_rampup is a share of the images seen, 0 for none, not {self.ema_rampup}")
        if not 0 <= self.augment <= 1:
            raise OnestepError(f"augment is a probability, from 0 to 1, not {self.augment}")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise OnestepError(f"accumulate={self.accumulate} must divide batch_size={self.batch_size}")
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("lr_decay", self.lr_decay, DECAYS)
        for value in self.precision.values() if isinstance(self.precision, dict) else [self.precision]:
            _check_choice("precision", value, PRECISIONS)

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
        if self.lr_decay == "linear":
            return rate * (1 - step / self.steps)
        return rate * (1 + math.cos(math.pi * step / self.steps)) / 2

    def ema_decay(self, step: int, halflife_kimg: float | None = None) -> float:
        """Share that a step (0-based) keeps of the average of a half-life, by default that which is the model."""
        halflife = 1000 * (self.ema_halflife_kimg if halflife_kimg is None else halflife_kimg)
        if not halflife:
            return 0.0
        if self.ema_rampup:
            halflife = min(halflife, self.ema_rampup * (step + 1) * self.batch_size)
        return min(0.5 ** (self.batch_size / halflife), (1 + step) / (10 + step))


def _check_choice(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise OnestepError(f"unknown {name} {value!r}{near_miss(str(value), known)}")


def _share(name: str, value: object) -> float:
    # A bool is a number, too.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise OnestepError(f"{name} is a share from 0 to below 1, not {value!r}")
    return float(value)


def _half_lives(given: object, own: float) -> tuple[float, ...]:
    """Further averages. Raises OnestepError unless they are different numbers and not that of the model itself."""
    try:
        found = tuple(float(value) for value in given)
    except (TypeError, ValueError):
        found = (math.nan,)
    if not all(0 <= value < math.inf for value in found):
        raise OnestepError(f"emas is a list of half-lives in kimg, 0 for the weights as they are, not {given!r}")
    if len({*found, float(own)}) <= len(found):
        raise OnestepError(f"emas must differ from each other and from ema_halflife_kimg={own:g}, not {given!r}")
    return found
