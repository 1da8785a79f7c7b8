"""Gaussian paths x_t = alpha(t) x0 + sigma(t) eps, and the conversions between x0, eps and velocity.

`t` is the noise level: t=0 is data, t=t_max is noise. `velocity` is d x_t / d t at fixed (x0, eps).
What a path does to an image is decided by the noise-to-signal ratio sigma/alpha alone: two paths at equal ratio
hold the same image at another scale. `Path.ratio` and `Path.t_at` are what `Denoiser.on` is made of.

Levels are tensors of any shape; all functions are elementwise and keep the dtype.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from onestep_bench.errors import OnestepError, near_miss


class Path:
    """A Gaussian path. Subclasses give alpha, sigma, their derivatives and the inverse of the ratio.

    Attributes: name; t_max, the level of noise.
    """

    name: str
    t_max: float

    def __eq__(self, other):
        # A copied denoiser (an EMA, one that went through pickle) is still on its path.
        return type(self) is type(other)

    def __hash__(self):
        return hash(type(self))

    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the data at level t."""
        raise TypeError(f"{type(self).__name__} defines no alpha")

    def sigma(self, t: Tensor) -> Tensor:
        """Scale of the noise at level t."""
        raise TypeError(f"{type(self).__name__} defines no sigma")

    def dalpha(self, t: Tensor) -> Tensor:
        """d alpha / d t."""
        raise TypeError(f"{type(self).__name__} defines no dalpha")

    def dsigma(self, t: Tensor) -> Tensor:
        """d sigma / d t."""
        raise TypeError(f"{type(self).__name__} defines no dsigma")

    def t_at(self, ratio: Tensor) -> Tensor:
        """The level whose noise-to-signal ratio is `ratio`."""
        raise TypeError(f"{type(self).__name__} defines no t_at")

    def spec(self) -> dict:
        """JSON-able description from which `path_from` finds or makes the same path."""
        return {"name": self.name}

    def ratio(self, t: Tensor) -> Tensor:
        """Noise-to-signal ratio sigma/alpha at level t; infinite where alpha is 0."""
        return self.sigma(t) / self.alpha(t)

    def prior_std(self, t: Tensor) -> Tensor:
        """Standard deviation of the normal noise a sampler starts from at level t."""
        return self.sigma(t)

    def mix(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha(t) x0 + sigma(t) eps; x0, eps (n, c, h, w), t scalar or (n,)."""
        t = spread(t, x0)
        return self.alpha(t) * x0 + self.sigma(t) * eps

    def velocity(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """d x_t / d t = alpha'(t) x0 + sigma'(t) eps; shapes as in `mix`."""
        t = spread(t, x0)
        return self.dalpha(t) * x0 + self.dsigma(t) * eps

    def from_x0(self, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The eps that goes with x0 at x_t = x. Singular at sigma(t) = 0."""
        t = spread(t, x)
        return (x - self.alpha(t) * x0) / self.sigma(t)

    def from_eps(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The x0 that goes with eps at x_t = x. Singular at alpha(t) = 0."""
        t = spread(t, x)
        return (x - self.sigma(t) * eps) / self.alpha(t)

    def from_velocity(self, x: Tensor, velocity: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x0, eps) that go with a velocity at x_t = x: the inverse of the 2x2 system of `mix` and `velocity`."""
        t = spread(t, x)
        alpha, sigma, dalpha, dsigma = self.alpha(t), self.sigma(t), self.dalpha(t), self.dsigma(t)
        determinant = alpha * dsigma - sigma * dalpha
        return (dsigma * x - sigma * velocity) / determinant, (alpha * velocity - dalpha * x) / determinant


class _Flow(Path):
    """Rectified flow: x_t = (1-t) x0 + t eps, velocity eps - x0 (Liu et al. 2022, arXiv:2209.03003)."""

    name, t_max = "flow", 1.0

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t

    def dalpha(self, t):
        return -torch.ones_like(t)

    def dsigma(self, t):
        return torch.ones_like(t)

    def t_at(self, ratio):
        # 1 - 1/(1+r) and not r/(1+r), which is inf/inf at the noise end.
        return 1 - 1 / (1 + ratio)


class _VE(Path):
    """Variance exploding: x_t = x0 + t eps up to t = 80 (EDM, arXiv:2206.00364)."""

    name, t_max = "ve", 80.0

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return t

    def dalpha(self, t):
        return torch.zeros_like(t)

    def dsigma(self, t):
        return torch.ones_like(t)

    def t_at(self, ratio):
        return ratio


class _LowVE(_VE):
    """VE that ends at another level."""

    def __init__(self, t_max: float):
        self.t_max = t_max

    def __eq__(self, other):
        return type(other) is _LowVE and self.t_max == other.t_max

    def __hash__(self):
        return hash((_LowVE, self.t_max))

    def spec(self):
        return {"name": self.name, "t_max": self.t_max}


def ve_up_to(level: float) -> Path:
    """VE whose noise end is a level: that of a generator which answers there for the image, as SiD's does at 2.5.

    Raises OnestepError for a level that is not above 0.
    """
    if not 0 < level < math.inf:
        raise OnestepError(f"a level of noise is a positive number, not {level}")
    return _LowVE(float(level))


def posterior(path: Path, x: Tensor, x0: Tensor, fresh: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x_s drawn from q(x_s | x_t = x, x0) by standard normal fresh (n, c, h, w); levels s < t, scalar or (n,).

    The ancestral step (Ho et al. 2020, arXiv:2006.11239, Eq. 6), for any path: as much of the noise in x is kept as the
    fresh noise leaves room for. At s = 0 it is x0.
    """
    t, s = spread(t, x), spread(s, x)
    shrunk = (path.ratio(s) / path.ratio(t)) ** 2
    # alpha_s (x / alpha_t - x0) shrunk, written so that it holds where alpha_t is 0.
    kept = path.alpha(t) * path.sigma(s) ** 2 / (path.alpha(s) * path.sigma(t) ** 2)
    return path.alpha(s) * x0 + kept * (x - path.alpha(t) * x0) + path.sigma(s) * (1 - shrunk).sqrt() * fresh


class VP(Path):
    """Variance preserving with T discrete levels (DDPM): t = i + 1 is level i, with alpha^2 = alphas_cumprod[i].

    t = 0 is clean data and t_max = T. Between levels the logarithm of the noise-to-signal ratio is linear in t;
    between t = 0 and 1 the ratio itself is, since its logarithm has no value at clean data.

    alphas_cumprod: T numbers in (0, 1), strictly falling; OnestepError otherwise.
    """

    name = "vp"

    def __init__(self, alphas_cumprod: Sequence[float] | Tensor):
        self.alphas_cumprod = torch.as_tensor(alphas_cumprod, dtype=torch.float64).cpu().clone()
        abar = self.alphas_cumprod
        if abar.ndim != 1 or len(abar) < 1 or not bool(((abar > 0) & (abar < 1)).all() and (abar.diff() < 0).all()):
            raise OnestepError("alphas_cumprod must be numbers in (0, 1), strictly falling; check the schedule or map")
        self.t_max = float(len(abar))
        # Knot j is level j - 1; knot 0 stands for clean data and is used only through the linear first segment.
        self._knots = (1 / abar - 1).sqrt()
        self._first, self._last = self._knots[0].item(), self._knots[-1].item()
        self._resident = {self._knots.device: self._knots}
        # Compared in every step: as text, which nobody has to fetch and a compiler can read.
        self._digest = hashlib.sha256(abar.numpy().tobytes()).hexdigest()

    def __eq__(self, other):
        return self is other or (isinstance(other, VP) and self._digest == other._digest)

    def __hash__(self):
        return hash(self._digest)

    def spec(self):
        return {"name": self.name, "alphas_cumprod": self.alphas_cumprod.tolist()}

    def _knots_on(self, device: torch.device) -> Tensor:
        """The knots, copied to a device once: the host waits for a copy, and for any number that it asks back."""
        if device not in self._resident:
            self._resident[device] = self._knots.to(device)
        return self._resident[device]

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Float64 ratios at both ends of the segment that holds t >= 1, and the place between them."""
        knots = self._knots_on(t.device)
        left = (t.double() - 1).floor().long().clamp(0, max(len(knots) - 2, 0))
        right = (left + 1).clamp(max=len(knots) - 1)
        # `take`, since an index of no dimensions would be asked back as a number.
        return knots.take(left), knots.take(right), t.double() - 1 - left

    def _ratio64(self, t: Tensor) -> Tensor:
        low, high, place = self._segment(t)
        return torch.where(t < 1, t.double() * self._first, low * (high / low) ** place)

    def _slope64(self, t: Tensor) -> Tensor:
        low, high, _ = self._segment(t)
        return torch.where(t < 1, self._first, self._ratio64(t) * torch.log(high / low))

    def ratio(self, t):
        return self._ratio64(t).to(t.dtype)

    def alpha(self, t):
        return (1 + self._ratio64(t) ** 2).rsqrt().to(t.dtype)

    def sigma(self, t):
        ratio = self._ratio64(t)
        return (ratio * (1 + ratio**2).rsqrt()).to(t.dtype)

    def prior_std(self, t):
        # DDPM and its heirs start from N(0, I) at any level, whatever signal the level still holds.
        return torch.ones_like(t)

    def dalpha(self, t):
        ratio = self._ratio64(t)
        return (-ratio * (1 + ratio**2) ** -1.5 * self._slope64(t)).to(t.dtype)

    def dsigma(self, t):
        return ((1 + self._ratio64(t) ** 2) ** -1.5 * self._slope64(t)).to(t.dtype)

    def t_at(self, ratio):
        knots = self._knots_on(ratio.device)
        wanted = ratio.double().clamp(max=self._last)
        right = torch.searchsorted(knots, wanted).clamp(1, max(len(knots) - 1, 1))
        low, high = knots.take(right - 1), knots.take(right.clamp(max=len(knots) - 1))
        span = torch.log(high / low).clamp(min=torch.finfo(torch.float64).tiny)
        between = right + torch.log(wanted.clamp(min=self._first) / low) / span
        return torch.where(wanted < self._first, wanted / self._first, between).to(ratio.dtype)


FLOW: Path = _Flow()
VE: Path = _VE()


def path_from(spec: dict) -> Path:
    """The path described by `spec`, as `Path.spec` wrote it. Raises OnestepError for an unknown name."""
    if spec["name"] == VP.name:
        return VP(spec["alphas_cumprod"])
    if spec["name"] == VE.name and "t_max" in spec:
        return ve_up_to(spec["t_max"])
    paths = {path.name: path for path in (FLOW, VE)}
    if spec["name"] not in paths:
        raise OnestepError(f"unknown path {spec['name']!r}{near_miss(spec['name'], [*paths, VP.name])}")
    return paths[spec["name"]]


def spread(t: Tensor | float, like: Tensor) -> Tensor:
    """`t` (scalar or (n,)) on the device of `like` (n, ...), shaped to broadcast against it."""
    t = torch.as_tensor(t, device=like.device)
    t = t if t.is_floating_point() else t.to(like.dtype)
    return t if t.ndim == 0 else t.reshape(-1, *[1] * (like.ndim - 1))


def alphas_cumprod(schedule: str, steps: int) -> Tensor:
    """Cumulative products of a DDPM noise schedule with `steps` levels: (steps,) float64, computed in float64.

    linear: betas from 1e-4 s to 2e-2 s with s = 1000/steps (Ho et al. 2020); cosine: s = 0.008 (Nichol and Dhariwal
    2021); sigmoid: start -3, end 3, tau 1 (Jabri et al. 2022). Betas are clipped at 0.999.
    Raises OnestepError for an unknown schedule or fewer than one level.
    """
    if schedule not in _SCHEDULES:
        raise OnestepError(f"unknown noise schedule {schedule!r}{near_miss(schedule, _SCHEDULES)}")
    if steps < 1:
        raise OnestepError(f"a noise schedule needs at least 1 level, not {steps}")
    betas = _SCHEDULES[schedule](steps).clamp(0, 0.999)
    return torch.cumprod(1 - betas, dim=0)


def _linear(steps: int) -> Tensor:
    scale = 1000 / steps
    return torch.linspace(scale * 1e-4, scale * 2e-2, steps, dtype=torch.float64)


def _betas_of(signal: Tensor) -> Tensor:
    """Betas of a schedule given as the signal power at the T+1 borders between levels."""
    return 1 - signal[1:] / signal[:-1]


def _cosine(steps: int) -> Tensor:
    place = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return _betas_of(torch.cos((place + 0.008) / 1.008 * math.pi / 2) ** 2)


def _sigmoid(steps: int) -> Tensor:
    place = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    start, end = torch.sigmoid(torch.tensor([-3.0, 3.0], dtype=torch.float64))
    return _betas_of((end - torch.sigmoid(place * 6 - 3)) / (end - start))


_SCHEDULES = {"linear": _linear, "cosine": _cosine, "sigmoid": _sigmoid}
