"""Models as files: safetensors weights beside a JSON description, and the formats other people release theirs in."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from onestep_bench import networks, pickles, zoo
from onestep_bench.denoiser import Denoiser, native_from
from onestep_bench.downloads import fetch
from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.files import replacing, write_json
from onestep_bench.paths import path_from
from onestep_bench.zoo import edm, slimflow

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMATS = ("edm", "gdd", "slimflow")


def save(denoiser: Denoiser, folder: Path, **more) -> None:
    """Write `model.safetensors` and `config.json` into `folder`, each atomically.

    more: JSON values that config.json says beside the denoiser's own description.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in denoiser.net.state_dict().items()}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(state, temporary)
    write_json(folder / CONFIG, more | denoiser.spec())


def load(folder: Path, device: str = "cpu") -> Denoiser:
    """The denoiser in `folder`, on `device`, in eval mode, without gradients.

    Raises OnestepError if a file is missing or damaged, or the weights do not fit the description exactly.
    """
    spec = describe(folder)
    try:
        native, path = native_from(spec["native"]), path_from(spec["path"]) if "path" in spec else None
        net = _with_weights(spec["network"], load_file(folder / WEIGHTS))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise OnestepError(f"{folder} holds no whole model: {error}; make it again") from error
    except _Misfit as misfit:
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


def load_pretrained(source: Path | str, *, format: str | None = None, resolution: int | None = None) -> Denoiser:
    """A model that was not trained here, on the CPU, in eval mode, without gradients.

    source: a folder of ours, a file, a name of `zoo.NAMES`, or an https address; the last two are downloaded once,
    into `models` in the data folder. Files are pickles of NVlabs/edm and GDD, and SlimFlow's .pth; which of them it is
    can be read from the file, and must be `format` ('edm', 'gdd', 'slimflow') if that is given. Nothing in a file is
    run. resolution: side of the images of a SlimFlow DDPM++, which its files do not say; without it the network takes
    images of any side. Networks that take augmentation labels (EDM's) are loaded with the weights for them, and used
    without. Raises OnestepError, in one line, for whatever cannot be read whole.
    """
    path = find(source)
    if path.is_dir():
        return load(path)
    content = pickles.read(path)
    found = _format_of(content, path)
    if format not in (None, found) and {format, found} != {"edm", "gdd"}:
        raise OnestepError(f"{path} is in the format {found}, not {format}; leave the format out")
    try:
        model = slimflow.released(content, resolution) if found == "slimflow" else edm.released(content)
        net = _with_weights(model.config, model.state, model.make)
    except OnestepError as error:
        raise OnestepError(f"{path}: {error}") from error
    except _Misfit as misfit:
        raise OnestepError(f"{path}: the weights do not fit the network it describes: {misfit}") from misfit
    # What a file holds in the place of a name, a list or a tensor may be anything.
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise OnestepError(f"{path} is not laid out as {found} files are ({type(error).__name__})") from error
    return Denoiser(net, model.native).eval().requires_grad_(False)


def find(source: Path | str) -> Path:
    """The folder or file of a model, downloaded if it is a name of `zoo.NAMES` or an https address."""
    if str(source) in zoo.NAMES:
        source = f"{zoo.EDM_URL}{source}.pkl"
    if str(source).startswith("https://"):
        data = Path(os.environ.get("ONESTEP_DATA") or "~/.cache/onestep_bench/data").expanduser()
        target = data / "models" / Path(urlparse(str(source)).path).name
        fetch(target, [str(source)])
        return target
    path = Path(source).expanduser()
    if not path.exists():
        raise OnestepError(f"no model {source}: neither a file, a folder nor an https address{_hint(str(source))}")
    return path


def _hint(name: str) -> str:
    return "; correct the path" if "/" in name else near_miss(name, zoo.NAMES)


def _format_of(content: object, path: Path) -> str:
    if slimflow.is_slimflow(content):
        return "slimflow"
    if edm.is_edm(content):
        return "gdd" if content["ema"].name == "GDDPrecond" else "edm"
    raise OnestepError(f"{path} holds no model of a known format; known: {', '.join(FORMATS)}")


class _Misfit(Exception):
    """Weights that are not those of the network."""


def _with_weights(
    config: dict, state: dict[str, Tensor], make: Callable[[dict], nn.Module] = networks.build
) -> nn.Module:
    """The network of `config` with copies of the weights of `state`, in float32, name for name and shape for shape."""
    mult, blocks = config.get("channel_mult", ()), config.get("num_blocks", 0)
    # A file of a few bytes may describe a network of any size: shapes are compared before memory is asked for, and
    # modules are not made by the billion.
    if len(mult) * blocks > len(state):
        raise _Misfit(f"{len(mult)} levels of {blocks} blocks, but only {len(state)} tensors")
    with torch.device("meta"):
        net = make(config)
    state = {name: tensor.to(torch.float32, copy=True).contiguous() for name, tensor in state.items()}
    try:
        net.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:  # lists what does not fit over many lines
        raise _Misfit(" ".join(str(error).split())[:200]) from error
    return net
