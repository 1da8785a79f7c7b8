"""What losses of several methods share: distances, the velocity loss of a flow, a move, dropout that recurs."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from onestep_bench.errors import OnestepError, near_miss, needs_extra
from onestep_bench.paths import FLOW

Distance = Callable[[Tensor, Tensor], Tensor]


def velocity_loss(
    denoiser, data: Tensor, noise: Tensor, t: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
) -> Tensor:
    """E || v(x_t, t) - (eps - x0) ||^2, mean over batch and dimensions (Liu et al. 2022, Eq. 1): a scalar.

    denoiser is on the FLOW path; data and noise (n, c, h, w); t (n,); augment: see `Denoiser.forward`.
    """
    velocity = denoiser(FLOW.mix(data, noise, t), t, labels, want="velocity", augment=augment)
    return (velocity - (noise - data)).square().mean()


@contextmanager
def same_dropout(device: torch.device) -> Iterator[None]:
    """What is asked inside this block and next after it drops the same: the state of generators is put back at its end.

    What compares a network's answers at two points wants their difference, which two masks would drown (Geng et al.
    2024, arXiv:2406.14548). A CUDA generator's state is kept on the host, so nothing waits. Of compiled networks the
    seeds of the masks come from these generators too, in the order of the graph: of graphs that draw alike, with
    gradients or without.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def adaptive(squared: Tensor, p: float, c: float) -> Tensor:
    """e / sg(e + c)^p of squared errors e, one a row: as if |error|^(2-2p) were minimised.

    MeanFlow's weight (Geng et al. 2025, arXiv:2505.13447). p 0 is the squared error itself; at 1 all rows weigh the
    same, however far off.
    """
    return squared / (squared.detach() + c) ** p


def pseudo_huber(difference: Tensor, c: float) -> Tensor:
    """sqrt(|d|^2 + c^2) - c of each row, |d|^2 the sum over it (Song and Dhariwal 2023): (n,). c is above 0.

    About |d| where that is large, and smooth at 0, where a norm has no slope.
    """
    return (difference.square().sum((1, 2, 3)) + c**2).sqrt() - c


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference."""
    return (a - b).square().mean()


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference."""
    return (a - b).abs().mean()


def lpips(a: Tensor, b: Tensor, side: int | None = None) -> Tensor:
    """LPIPS with VGG features (Zhang et al. 2018), of images resized bilinearly.

    a, b: (n, 1 or 3, h, w) in [-1, 1]. side: of the images that it looks at, resized with pixel centres in their places
    as the consistency models' code does (to 224); by default 64 with corners in their places, as SlimFlow's does.
    Raises OnestepError when the package or its VGG weights cannot be had.
    """
    network = _lpips_network(a.device)
    return network(*(_resized(image, side) for image in (a, b))).mean()


def _resized(images: Tensor, side: int | None) -> Tensor:
    images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    return F.interpolate(images, size=side or 64, mode="bilinear", align_corners=side is None)


_networks: dict[torch.device, torch.nn.Module] = {}


def _lpips_network(device: torch.device) -> torch.nn.Module:
    if device in _networks:
        return _networks[device]
    from onestep_bench.compat import import_torchvision

    import_torchvision()
    needs_extra("lpips", "distance 'lpips'", "lpips")
    from lpips import LPIPS

    try:
        network = LPIPS(net="vgg", verbose=False)
    except OSError as error:  # urllib's errors are OSErrors
        raise OnestepError(
            "distance 'lpips' needs torchvision's vgg16-397923af.pth, which could not be downloaded; "
            f"put it into {torch.hub.get_dir()}/checkpoints"
        ) from error
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    _networks[device] = network.eval().requires_grad_(False).to(device, memory_format=layout)
    return _networks[device]


def pseudo_huber_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean of `pseudo_huber` at iCT's c, 0.00054 sqrt(dim) (Song and Dhariwal 2023)."""
    return pseudo_huber(a - b, 0.00054 * math.sqrt(a[0].numel())).mean()


DISTANCES: dict[str, Distance] = {"l2": l2, "l1": l1, "pseudo-huber": pseudo_huber_distance, "lpips": lpips}


def distance(name: str | Distance) -> Distance:
    """The distance of that name: l2, l1, pseudo-huber, lpips, lpips@224 (at a side of 224), or a sum as 'lpips+l2'.

    A callable is returned as it is. Raises OnestepError for an unknown name.
    """
    if callable(name):
        return name
    parts = [_distance(part) for part in name.split("+")]
    return parts[0] if len(parts) == 1 else lambda a, b: sum(part(a, b) for part in parts)


def _distance(name: str) -> Distance:
    plain, at, side = name.partition("@")
    if at and plain == "lpips":
        if not side.isdecimal() or int(side) < 16:
            raise OnestepError(f"distance {name!r} wants a side in pixels, 16 or more, as in 'lpips@224'")
        return partial(lpips, side=int(side))
    if name not in DISTANCES:
        raise OnestepError(f"unknown distance {name!r}{near_miss(name, DISTANCES)}")
    return DISTANCES[name]


def by_row(distance: Distance, a: Tensor, b: Tensor) -> Tensor:
    """A distance of each row of a from that of b, both (n, c, h, w), for what weighs rows apart: (n,)."""
    return torch.vmap(lambda one, other: distance(one[None], other[None]))(a, b)


def _over_c_out(t: Tensor, r: Tensor) -> Tensor:
    return (1 + 4 * t**2).sqrt() / t


# Of two levels t > r on VE: EDM's numbers at sigma_data 0.5.
WEIGHTINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "uniform": lambda t, r: torch.ones_like(t),
    "gap": lambda t, r: 1 / (t - r),
    "root-gap": lambda t, r: (t - r).rsqrt(),
    "karras": lambda t, r: 1 / t**2 + 4,
    "c-out": _over_c_out,
    "c-out-squared": lambda t, r: _over_c_out(t, r) ** 2,
}


def weighting(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The weight of that name of a consistency loss between levels t and r, (n,) each: (n,).

    uniform: 1; gap: 1/(t-r); root-gap: its root; karras: 1/t^2 + 1/sigma_data^2; c-out: 1/c_out(t), by which EDM's
    network answers to x0; c-out-squared. Raises OnestepError for an unknown name.
    """
    if name not in WEIGHTINGS:
        raise OnestepError(f"unknown weighting {name!r}{near_miss(name, WEIGHTINGS)}")
    return WEIGHTINGS[name]


def moved(x: Tensor, direction: Tensor) -> Tensor:
    """1/2 mean (x - sg(x - g))^2, a scalar whose gradient in x is g over the number of its elements."""
    return (x - (x - direction).detach()).square().mean() / 2
