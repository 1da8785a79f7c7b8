"""Networks from a description or a named size."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.networks.sizes import SIZES, size_config
from onestep_bench.networks.unet import DhariwalUNet, SongUNet

ARCHITECTURES = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}


def build(config: Mapping[str, Any]) -> nn.Module:
    """The network of a `net.config`: "arch" and constructor arguments.

    Raises OnestepError, with the nearest known name, for an unknown architecture or argument, and for a missing one.
    """
    arguments = dict(config)
    arch = arguments.pop("arch", None)
    if arch not in ARCHITECTURES:
        raise OnestepError(f"unknown architecture {arch!r}{near_miss(str(arch), ARCHITECTURES)}")
    known = inspect.signature(ARCHITECTURES[arch]).parameters
    for name in arguments:
        if name not in known:
            raise OnestepError(f"{arch} has no argument {name!r}{near_miss(name, known)}")
    missing = [
        name for name, parameter in known.items() if parameter.default is parameter.empty and name not in arguments
    ]
    if missing:
        raise OnestepError(f"{arch} needs {', '.join(missing)}")
    return ARCHITECTURES[arch](**arguments)


def sized(
    name: str,
    resolution: int,
    channels: int,
    label_dim: int = 0,
    dropout: float | None = None,
    augment_dim: int = 0,
) -> nn.Module:
    """A network of a named size (see `SIZES`) for images (n, channels, resolution, resolution).

    `dropout` replaces the size's own; `augment_dim`: labels that tell the network of augmentation. Raises OnestepError
    for an unknown name, with the nearest one.
    """
    if name not in SIZES:
        raise OnestepError(f"unknown size {name!r}{near_miss(name, SIZES)}")
    config = size_config(name, resolution) | {"in_channels": channels, "out_channels": channels}
    if dropout is not None:
        config["dropout"] = dropout
    return build(config | {"label_dim": label_dim, "augment_dim": augment_dim})


def size_of(net: nn.Module) -> str:
    """The named size of a network, whatever its images, labels and dropout, else its parameters, as in '5.12M'."""
    for name, size in SIZES.items():
        defaults = inspect.signature(ARCHITECTURES[size["arch"]]).parameters
        shape = {key: parameter.default for key, parameter in defaults.items() if key not in _NOT_SIZE}
        shape |= size_config(name, net.config["img_resolution"]) | {"dropout": net.config["dropout"]}
        # A config holds lists where SIZES holds tuples.
        if all(net.config.get(key) in (value, _as_list(value)) for key, value in shape.items()):
            return name
    return f"{sum(parameter.numel() for parameter in net.parameters()) / 1e6:.3g}M"


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


_NOT_SIZE = ("in_channels", "out_channels", "label_dim", "augment_dim", "dropout", "label_dropout", "second_time")
