"""Other people's models: the formats they are released in, one file each, and the addresses of those known by name.

A format is a function from what a file holds to a `Released`; `models.load_pretrained` makes the denoiser.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from onestep_bench import networks
from onestep_bench.denoiser import Native

EDM_URL = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
# NVIDIA publishes no checksums of these.
NAMES = (
    *(f"edm-cifar10-32x32-{kind}-{arch}" for kind in ("cond", "uncond") for arch in ("vp", "ve")),
    *(f"edm-{name}-64x64-uncond-{arch}" for name in ("ffhq", "afhqv2") for arch in ("vp", "ve")),
    "edm-imagenet-64x64-cond-adm",
)


@dataclass(frozen=True)
class Released:
    """A model as read from a file.

    config: the network's, as `networks.build` takes it. state: weights by the network's own names. native: how it is
    called. make: builds the network.
    """

    config: dict
    state: dict[str, Tensor]
    native: Native
    make: Callable[[dict], nn.Module] = networks.build
