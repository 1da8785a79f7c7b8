"""Model pickles of NVlabs/edm (Karras et al. 2022) and of GDD, which descends from it.

A file is a dictionary whose `ema` is a preconditioning that holds a network. The networks are those of `networks`, by
name of class, argument and parameter. GDD's repository is now called D2O, and its preconditioning with it.
"""

import math

import numpy as np
from torch import Tensor

from onestep_bench import networks
from onestep_bench.data.pickles import Record
from onestep_bench.denoiser import EDM
from onestep_bench.errors import OnestepError
from onestep_bench.models.zoo import Released

GDD = ("GDDPrecond", "D2OPrecond")  # one preconditioning, by its names in the two repositories
_READ = ("EDMPrecond", *GDD)
_DEEPEST = 16  # modules within modules; the networks have six


def is_edm(content: object) -> bool:
    """Whether a file's content is a model of this format."""
    return isinstance(content, dict) and isinstance(content.get("ema"), Record)


def released(content: dict) -> Released:
    """The averaged model of a file. Raises OnestepError for a preconditioning or network that we do not have."""
    precond = content["ema"]
    if precond.name not in _READ:
        raise OnestepError(f"the model's preconditioning is {_short(precond.name)}; only {', '.join(_READ)} are read")
    model = precond.state.get("_modules", {}).get("model")
    if not isinstance(model, Record) or model.name not in networks.ARCHITECTURES:
        name = _short(getattr(model, "name", "missing"))
        raise OnestepError(f"the model's network is {name}; known: {', '.join(networks.ARCHITECTURES)}")
    config = {"arch": model.name, **_arguments(model)}
    state: dict[str, Tensor] = {}
    _collect(model, "", state, seen=set(), depth=0)
    boundary = float(precond.state.get("eps", 0.002)) if precond.name in GDD else 0.0
    sigma_data = float(precond.state.get("sigma_data", 0.5))
    if not (0 < sigma_data < math.inf and 0 <= boundary < math.inf):
        raise OnestepError(f"the preconditioning has sigma_data {sigma_data} and eps {boundary}; fetch the file again")
    native = EDM(sigma_data, boundary)
    return Released(config, state, native)


def _arguments(model: Record) -> dict:
    """The network's constructor arguments as plain values."""
    arguments = model.state.get("_init_kwargs")
    if model.state.get("_init_args") or not isinstance(arguments, dict):
        raise OnestepError(f"the file does not name the arguments its {model.name} was made with")
    return {name: _plain(name, value) for name, value in arguments.items()}


def _plain(name: str, value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    if not isinstance(value, str | int | float | bool | None):
        raise OnestepError(f"argument {_short(name)} of the network is a {type(value).__name__}; no number or name")
    return value


def _collect(module: Record, prefix: str, state: dict[str, Tensor], *, seen: set[int], depth: int) -> None:
    """Gather the parameters and buffers of a module and of those inside it, by dotted names."""
    if id(module) in seen or depth > _DEEPEST:
        raise OnestepError("the file's modules contain each other; do not use this file")
    seen.add(id(module))
    fleeting = module.state.get("_non_persistent_buffers_set", ())
    for kind in ("_parameters", "_buffers"):
        for name, tensor in module.state.get(kind, {}).items():
            if tensor is not None and name not in fleeting:
                state[prefix + name] = tensor
    for name, inner in module.state.get("_modules", {}).items():
        if isinstance(inner, Record):
            _collect(inner, f"{prefix}{name}.", state, seen=seen, depth=depth + 1)


def _short(name: object) -> str:
    return ascii(str(name)[:60])[1:-1]
