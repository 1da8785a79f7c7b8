"""Models as files: safetensors weights beside a JSON description."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from onestep_bench import networks
from onestep_bench.denoiser import Denoiser, native_from
from onestep_bench.errors import OnestepError
from onestep_bench.paths import path_from
from onestep_bench.store.files import replacing, write_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save(denoiser: Denoiser, folder: Path, **more) -> None:
    """Write `model.safetensors` and `config.json` into `folder`, each atomically.

    more: JSON values that config.json says beside the denoiser's own description.
    """
    save_weights(denoiser, folder / WEIGHTS)
    write_json(folder / CONFIG, more | denoiser.spec())


def save_weights(denoiser: Denoiser, path: Path) -> None:
    """Write the weights alone, atomically."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in denoiser.net.state_dict().items()}
    with replacing(path) as temporary:
        save_file(state, temporary)


def load(folder: Path, device: str = "cpu", weights: str = WEIGHTS, dropout: float | None = None) -> Denoiser:
    """The denoiser in `folder`, on `device`, in eval mode, without gradients. weights: name of their file.

    dropout: in place of the network's own, for who trains it on.
    Raises OnestepError if a file is missing or damaged, or the weights do not fit the description exactly.
    """
    spec = describe(folder)
    try:
        native, path = native_from(spec["native"]), path_from(spec["path"]) if "path" in spec else None
        config = spec["network"] | ({} if dropout is None else {"dropout": dropout})
        net = with_weights(config, load_file(folder / weights))
    # What stands in config.json in the place of a number may be anything.
    except (
        OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, SafetensorError,
    ) as error:  # fmt: skip
        raise OnestepError(f"{folder} holds no whole model: {error}; make it again") from error
    except Misfit as misfit:
        raise OnestepError(f"the weights in {folder} do not fit its {CONFIG}: {misfit}") from misfit
    return Denoiser(net, native, path).to(device).eval().requires_grad_(False)


def describe(folder: Path) -> dict:
    """What `config.json` says of the model in `folder`. Raises OnestepError if it is missing or damaged."""
    try:
        spec = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise OnestepError(f"{folder} holds no whole model: {error}; make it again") from error
    if not isinstance(spec, dict) or not isinstance(spec.get("network"), dict):
        raise OnestepError(f"{folder} holds no whole model: {CONFIG} describes no network; make it again")
    return spec


class Misfit(Exception):
    """Weights that are not those of the network."""


def with_weights(
    config: dict, state: dict[str, Tensor], make: Callable[[dict], nn.Module] = networks.build
) -> nn.Module:
    """The network of `config` with copies of the weights of `state`, in float32, name for name and shape for shape.

    Raises Misfit for weights of other names or shapes, and for those that hold NaN or infinity.
    """
    mult, blocks = config.get("channel_mult", ()), config.get("num_blocks", 0)
    # A file of a few bytes may describe a network of any size: shapes are compared before memory is asked for, and
    # modules are not made by the billion.
    if len(mult) * blocks > len(state):
        raise Misfit(f"{len(mult)} levels of {blocks} blocks, but only {len(state)} tensors")
    with torch.device("meta"):
        net = make(config)
    state = {name: tensor.to(torch.float32, copy=True).contiguous() for name, tensor in state.items()}
    if bad := next((name for name, tensor in state.items() if not tensor.isfinite().all()), None):
        raise Misfit(f"{bad} holds NaN or infinity: its training went wrong, or the file is damaged")
    try:
        net.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:  # lists what does not fit over many lines
        raise Misfit(" ".join(str(error).split())[:200]) from error
    return net
