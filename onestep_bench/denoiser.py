"""Denoiser: a network on a path.

Whatever a network predicts natively (an EDM network x0, a rectified flow the velocity, a DDPM eps or v), a denoiser
answers for x0, eps or velocity, on the network's own path or, through `on`, on any other. That is what lets one
teacher serve every method.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.paths import FLOW, VE, VP, Path, path_from, spread

WANTS = ("x0", "eps", "velocity")


class Native(Protocol):
    """How a network is called and what its answer means: its preconditioning.

    path: the path it was trained on. ratios: the noise-to-signal ratios it was trained for, smallest and largest.
    """

    path: Path
    ratios: tuple[float, float]

    def inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is given for x (n, c, h, w) at levels t (n,): scaled images, noise labels (n,)."""
        ...

    def __call__(self, net: Callable[..., Tensor], x: Tensor, t: Tensor, labels: Tensor | None) -> tuple[str, Tensor]:
        """(what is predicted, prediction) at x (n, c, h, w) and levels t (n,); what: x0, eps, velocity or v."""
        ...

    def spec(self) -> dict:
        """JSON-able description from which `native_from` makes it again."""
        ...


@dataclass(frozen=True)
class EDM:
    """EDM preconditioning, D(x; s) = c_skip x + c_out F(c_in x, ln(s)/4) (Karras et al. 2022, Table 1).

    boundary: the level at which D(x) = x, 0 in EDM; consistency models (Song et al. 2023, App. C) and the released
    GDD have it at 0.002, by s - boundary in the place of s in c_skip and above the root of c_out.
    """

    sigma_data: float = 0.5
    boundary: float = 0.0
    path = VE
    ratios = (0.002, 80.0)

    def inputs(self, x, t):
        return x / (spread(t, x) ** 2 + self.sigma_data**2).sqrt(), t.log() / 4

    def __call__(self, net, x, t, labels):
        sigma, data = spread(t, x), self.sigma_data
        above, total = sigma - self.boundary, sigma**2 + data**2
        output = net(*self.inputs(x, t), labels)
        return "x0", data**2 / (above**2 + data**2) * x + above * data / total.sqrt() * output

    def spec(self):
        spec = {"name": "edm", "sigma_data": self.sigma_data}
        return spec | {"boundary": self.boundary} if self.boundary else spec


# SlimFlow's released code trains flows on levels up to here and asks for the velocity at pure noise here.
NOISE_END = 1 - 1e-3


@dataclass(frozen=True)
class Flow:
    """A velocity network of a rectified flow, conditioned on 999 (1-t) as SlimFlow's are; no preconditioning.

    Levels beyond `NOISE_END`, where no flow is trained, are asked as `NOISE_END`.
    plain: conditioned on t itself, all the way to 1: of what is differentiated in t, where a slope of 999 would drown
    all else (Lu and Song 2024, arXiv:2410.11081, Sec. 4).
    """

    plain: bool = False
    path = FLOW
    # The lower end only keeps eps finite on other paths; a flow is trained down to the data.
    ratios = (1e-4, float("inf"))

    def inputs(self, x, t):
        return x, t if self.plain else 999 * (1 - t.clamp(max=NOISE_END))

    def __call__(self, net, x, t, labels):
        return "velocity", net(*self.inputs(x, t), labels)

    def spec(self):
        return {"name": "flow", "plain": True} if self.plain else {"name": "flow"}


@dataclass(frozen=True)
class DDPM:
    """A discrete-time network conditioned on its level index t - 1, possibly fractional.

    predicts: eps, or v = alpha eps - sigma x0 (Salimans and Ho 2022).
    """

    path: VP
    predicts: str = "eps"

    def __post_init__(self):
        if self.predicts not in ("eps", "v"):
            raise OnestepError(f"a DDPM network predicts 'eps' or 'v', not {self.predicts!r}")
        ends = torch.tensor([1.0, self.path.t_max], dtype=torch.float64, device="cpu")
        object.__setattr__(self, "ratios", tuple(self.path.ratio(ends).tolist()))

    def inputs(self, x, t):
        return x, t - 1

    def __call__(self, net, x, t, labels):
        return self.predicts, net(*self.inputs(x, t), labels)

    def spec(self):
        return {"name": "ddpm", "path": self.path.spec(), "predicts": self.predicts}


class Denoiser(nn.Module):
    """A network, how it is called (`native`), and the path it is seen on (`path`, by default its own)."""

    def __init__(self, net: nn.Module, native: Native, path: Path | None = None):
        super().__init__()
        self.net, self.native = net, native
        self.path = path or native.path
        # The lowest level of another path that the network was trained for, as either precision rounds it. It is a
        # number, as are `encode`'s levels: one computed on a device in the middle of a step would be waited for.
        dtypes = () if self.path == native.path else (torch.float32, torch.float64)
        self._lowest = {dtype: _level(self.path, native.ratios[0], dtype) for dtype in dtypes}
        self._encoded: dict[float, float] = {}

    @property
    def num_classes(self) -> int:
        """Classes the network is conditioned on; 0 if it takes no labels."""
        return getattr(self.net, "label_dim", 0)

    @property
    def augment_dim(self) -> int:
        """Labels by which the network is told how its images were augmented; 0 if it takes none."""
        return getattr(self.net, "augment_dim", 0)

    @property
    def two_times(self) -> bool:
        """Whether the network can be told how far a jump is to go, and so be a flow map."""
        return getattr(self.net, "two_times", False)

    def on(self, path: Path) -> "Denoiser":
        """The same network (shared, not copied) seen on another path."""
        return Denoiser(self.net, self.native, path)

    def spec(self) -> dict:
        """JSON-able description from which, with the weights, `checkpoints.load` makes the same denoiser."""
        spec = {"network": self.net.config, "native": self.native.spec()}
        return spec if self.path == self.native.path else spec | {"path": self.path.spec()}

    def forward(
        self,
        x: Tensor,
        t: Tensor | float,
        labels: Tensor | None = None,
        *,
        want: str = "x0",
        augment: Tensor | None = None,
        gap: Tensor | float | None = None,
    ) -> Tensor:
        """Predict x0, eps or velocity on `path`.

        x: (n, c, h, w) at level t of `path`; t: scalar or (n,); labels: (n,) integers or one-hot (n, num_classes).
        augment: (n, augment_dim), what was done to the images in training; None, which is 0, asks for them as they are.
        gap: of a network with two times, how far the answer is to carry (see `FlowMap`); None is 0, a denoiser's.
        Returns (n, c, h, w) in the dtype of x; the network itself runs in the dtype of its parameters.
        Raises OnestepError for an unknown `want` or labels the network does not take.
        """
        if want not in WANTS:
            raise OnestepError(f"cannot predict {want!r}{near_miss(want, WANTS)}")
        # Levels keep at least the precision of x: the samplers step in float64.
        t = self._levels(t, x)
        gap = None if gap is None else self._levels(gap, x)
        if self.path == self.native.path:
            return self._answer(*self._ask(x, t, labels, augment, gap), x, t, want)
        t = t.clamp(min=self._lowest[torch.promote_types(x.dtype, torch.float32)])
        level = self.native.path.t_at(self.path.ratio(t).clamp(*self.native.ratios))
        # The noise keeps its size where the ratio is out of range: at the noise end x is all noise.
        scale = spread(self.native.path.sigma(level) / self.path.sigma(t), x)
        what, prediction = self._ask(x * scale, level, labels, augment, gap)
        if what != "x0":
            prediction = self._native_x0(what, prediction, x * scale, level)
        return self._answer("x0", prediction, x, t, want)

    def encode(self, x: Tensor, ratio: float, labels: Tensor | None = None) -> list[Tensor]:
        """Features of the network's encoder for images x (n, c, h, w) at a noise-to-signal ratio.

        Nothing is added to x: it is taken for data mixed with that much noise. Returns what `net.encode` does.
        """
        low, high = self.native.ratios
        path = self.native.path
        if ratio not in self._encoded:
            self._encoded[ratio] = _level(path, min(max(ratio, low), high), torch.float64)
        t = x.new_full((len(x),), self._encoded[ratio])
        images, noise_labels = self.native.inputs(x * spread(path.alpha(t), x), t)
        return self.net.encode(images, noise_labels, self._one_hot(labels, x.dtype))

    @staticmethod
    def _levels(t: Tensor | float, x: Tensor) -> Tensor:
        return (t.to(x) if isinstance(t, Tensor) else x.new_full((), t)).expand(len(x))

    def _ask(
        self, x: Tensor, t: Tensor, labels: Tensor | None, augment: Tensor | None, gap: Tensor | None
    ) -> tuple[str, Tensor]:
        dtype = next(iter(self.net.parameters()), x).dtype
        told = {} if augment is None else {"augment_labels": self._told(augment, dtype)}
        told |= {} if gap is None else {"second_labels": gap.to(dtype)}
        net = partial(self.net, **told) if told else self.net
        what, prediction = self.native(net, x.to(dtype), t.to(dtype), self._one_hot(labels, dtype))
        return what, prediction.to(x.dtype)

    def _told(self, augment: Tensor, dtype: torch.dtype) -> Tensor:
        if self.augment_dim != augment.shape[1]:
            raise OnestepError(
                f"this network takes {self.augment_dim} augmentation labels, not {augment.shape[1]}; train one without "
                "augment, or one whose weights start at random"
            )
        return augment.to(dtype)

    def _one_hot(self, labels: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if labels is None:
            return None
        if not self.num_classes:
            raise OnestepError("labels were given to a network without classes; train it with labels or leave them out")
        if labels.is_floating_point():
            return labels
        return F.one_hot(labels.long(), self.num_classes).to(dtype)

    def _native_x0(self, what: str, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        path = self.native.path
        if what == "velocity":
            return path.from_velocity(x, prediction, t)[0]
        if what == "eps":
            return path.from_eps(x, prediction, t)
        return spread(path.alpha(t), x) * x - spread(path.sigma(t), x) * prediction

    def _answer(self, what: str, prediction: Tensor, x: Tensor, t: Tensor, want: str) -> Tensor:
        if what == want:
            return prediction
        if what == "velocity":
            x0, eps = self.path.from_velocity(x, prediction, t)
            return x0 if want == "x0" else eps
        x0 = prediction if what == "x0" else self._native_x0(what, prediction, x, t)
        if want == "x0":
            return x0
        eps = prediction if what == "eps" else self.path.from_x0(x, x0, t)
        return eps if want == "eps" else self.path.velocity(x0, eps, t)


def _level(path: Path, ratio: float, dtype: torch.dtype) -> float:
    return path.t_at(torch.tensor(ratio, dtype=dtype, device="cpu")).item()


def edm_denoiser(net: nn.Module, sigma_data: float = 0.5) -> Denoiser:
    """`net` under EDM preconditioning, on the VE path."""
    return Denoiser(net, EDM(sigma_data))


def flow_denoiser(net: nn.Module) -> Denoiser:
    """`net` as the velocity of a rectified flow, on the FLOW path."""
    return Denoiser(net, Flow())


def ddpm_denoiser(net: nn.Module, alphas_cumprod: Tensor, predicts: str = "eps") -> Denoiser:
    """`net` as a discrete-time denoiser on VP(alphas_cumprod)."""
    return Denoiser(net, DDPM(VP(alphas_cumprod), predicts))


def native_from(spec: dict) -> Native:
    """The `Native` described by `spec`, as `Native.spec` wrote it. Raises OnestepError for an unknown name."""
    name = spec.get("name")
    if name == "edm":
        return EDM(spec["sigma_data"], spec.get("boundary", 0.0))
    if name == "flow":
        return Flow(spec.get("plain", False))
    if name == "ddpm":
        return DDPM(path_from(spec["path"]), spec["predicts"])
    raise OnestepError(f"unknown preconditioning {name!r}{near_miss(str(name), ('edm', 'flow', 'ddpm'))}")


class _PosteriorMean(nn.Module):
    """E[x0 | x_t = x] on the VE path for data drawn uniformly from a finite set."""

    def __init__(self, images: Tensor):
        super().__init__()
        self.register_buffer("images", images)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        data, points = self.images.flatten(1).to(x.dtype), x.flatten(1)
        # |x|^2 is the same for every image and cancels in the softmax.
        logits = (points @ data.T - data.square().sum(1) / 2) / t[:, None] ** 2
        return (logits.softmax(1) @ data).reshape(x.shape)


@dataclass(frozen=True)
class _Ideal:
    path = VE
    ratios = (1e-4, 1e6)

    def inputs(self, x, t):
        return x, t

    def __call__(self, net, x, t, labels):
        return "x0", net(x, t)


class IdealDenoiser(Denoiser):
    """The exact denoiser of a finite set of images (n, c, h, w) in [-1, 1]: the teacher samplers are measured against.

    Karras et al. 2022, Appendix B.3. Takes no labels.
    """

    def __init__(self, images: Tensor):
        super().__init__(_PosteriorMean(images), _Ideal())


class Evaluations:
    """Counter of network evaluations. rows: images that went through the network; calls: forward passes."""

    def __init__(self):
        self.rows = self.calls = 0

    def _count(self, net, inputs, output):
        self.rows += len(output)
        self.calls += 1


@contextmanager
def counting(denoiser: Denoiser) -> Iterator[Evaluations]:
    """Count what really goes through the network: NFE is `rows` over the number of images made."""
    evaluations = Evaluations()
    handle = denoiser.net.register_forward_hook(evaluations._count)
    try:
        yield evaluations
    finally:
        handle.remove()
