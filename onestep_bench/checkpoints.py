"""Models as files: safetensors weights beside a JSON description from which the denoiser is built."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from onestep_bench import networks
from onestep_bench.denoiser import Denoiser, native_from
from onestep_bench.errors import OnestepError
from onestep_bench.files import replacing, write_json
from onestep_bench.paths import path_from

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def build(spec: dict) -> Denoiser:
    """The denoiser described by `spec` (as `Denoiser.spec` wrote it), with freshly initialised weights."""
    path = path_from(spec["path"]) if "path" in spec else None
    return Denoiser(networks.build(spec["network"]), native_from(spec["native"]), path)


def save(denoiser: Denoiser, folder: Path) -> None:
    """Write `model.safetensors` and `config.json` into `folder`, each atomically."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in denoiser.net.state_dict().items()}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(state, temporary)
    write_json(folder / CONFIG, denoiser.spec())


def load(folder: Path, device: str = "cpu") -> Denoiser:
    """The denoiser in `folder`, on `device`, in eval mode, without gradients.

    Raises OnestepError if a file is missing or damaged, or the weights do not fit the description exactly.
    """
    try:
        denoiser = build(json.loads((folder / CONFIG).read_text()))
        denoiser.net.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise OnestepError(f"{folder} holds no whole model: {error}; make it again") from error
    except RuntimeError as error:  # load_state_dict lists what does not fit over many lines
        reason = " ".join(str(error).split())[:200]
        raise OnestepError(f"the weights in {folder} do not fit its {CONFIG}: {reason}") from error
    return denoiser.to(device).eval().requires_grad_(False)
