"""Losses that several methods share: distances between images, and the velocity loss of a flow."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from onestep_bench.errors import OnestepError, near_miss, needs_extra
from onestep_bench.paths import FLOW

Distance = Callable[[Tensor, Tensor], Tensor]


def velocity_loss(denoiser, data: Tensor, noise: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
    """E || v(x_t, t) - (eps - x0) ||^2, mean over batch and dimensions (Liu et al. 2022, Eq. 1): a scalar.

    denoiser is on the FLOW path; data and noise (n, c, h, w); t (n,).
    """
    velocity = denoiser(FLOW.mix(data, noise, t), t, labels, want="velocity")
    return (velocity - (noise - data)).square().mean()


def adaptive(squared: Tensor, p: float, c: float) -> Tensor:
    """e / sg(e + c)^p of squared errors e, one a row: as if |error|^(2-2p) were minimised.

    MeanFlow's weight (Geng et al. 2025, arXiv:2505.13447). p 0 is the squared error itself; at 1 all rows weigh the
    same, however far off.
    """
    return squared / (squared.detach() + c) ** p


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference."""
    return (a - b).square().mean()


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference."""
    return (a - b).abs().mean()


def lpips(a: Tensor, b: Tensor) -> Tensor:
    """LPIPS with VGG features (Zhang et al. 2018), both images resized bilinearly to 64 pixels as SlimFlow does.

    a, b: (n, 1 or 3, h, w) in [-1, 1]. Raises OnestepError when the package or its VGG weights cannot be had.
    """
    network = _lpips_network(a.device)
    return network(*(_at_64(image) for image in (a, b))).mean()


def _at_64(images: Tensor) -> Tensor:
    images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    return F.interpolate(images, size=(64, 64), mode="bilinear", align_corners=True)


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
    _networks[device] = network.eval().requires_grad_(False).to(device)
    return _networks[device]


DISTANCES: dict[str, Distance] = {"l2": l2, "l1": l1, "lpips": lpips}


def distance(name: str | Distance) -> Distance:
    """The distance of that name: l2, l1, lpips, or a sum such as 'lpips+l2'. A callable is returned as it is.

    Raises OnestepError for an unknown name.
    """
    if callable(name):
        return name
    parts = name.split("+")
    for part in parts:
        if part not in DISTANCES:
            raise OnestepError(f"unknown distance {part!r}{near_miss(part, DISTANCES)}")
    if len(parts) == 1:
        return DISTANCES[name]
    return lambda a, b: sum(DISTANCES[part](a, b) for part in parts)
