"""Checkpoints of SlimFlow (arXiv:2407.12718): {optimizer, model, ema, step}, saved by torch.

The unconditional networks are DDPM++ with score_sde's numbering of modules, the ImageNet ones ADM with the names of
NVlabs/edm. Weights are the average in `ema.shadow_params`, in the order of the parameters. Time runs the other way
there, which `denoiser.Flow` knows, and the velocity is data - noise, which the last convolution is turned round for.
"""

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from onestep_bench import networks
from onestep_bench.denoiser import Flow
from onestep_bench.errors import OnestepError
from onestep_bench.models.zoo import Released
from onestep_bench.networks.unet import SongUNet

# All released networks attend at 16x16 pixels at the deepest; the file does not say so.
_ATTENTION = 16
_MODULE = re.compile(r"all_modules\.(\d+)\.(.+)")
_RESIDUAL = {
    "GroupNorm_0": "norm0",
    "Conv_0": "conv0",
    "Dense_0": "affine",
    "GroupNorm_1": "norm1",
    "Conv_1": "conv1",
    "Conv_2": "skip",
}


class AnySize(SongUNet):
    """A SongUNet whose file does not say how large its images are: it takes any side that can be halved.

    Its blocks, and so what it is saved as, are named for the size that released networks of its shape have.
    """

    @classmethod
    def build(cls, config: dict) -> "AnySize":
        """As `networks.build`, of which it is a variant that only this room makes."""
        net = cls(**{name: value for name, value in config.items() if name != "arch"})
        net.config["arch"] = config["arch"]
        return net

    def _check(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None) -> None:
        side, halvings = self.config["img_resolution"], len(self.config["channel_mult"]) - 1
        if x.ndim == 4 and x.shape[2] == x.shape[3] and x.shape[2] % 2**halvings == 0:
            x = x[:, :, :1, :1].expand(-1, -1, side, side)
        super()._check(x, noise_labels, class_labels)


def is_slimflow(content: object) -> bool:
    """Whether a file's content is a checkpoint of this format."""
    ema = content.get("ema") if isinstance(content, dict) else None
    return isinstance(ema, dict) and "shadow_params" in ema and isinstance(content.get("model"), dict)


def released(content: dict, resolution: int | None = None) -> Released:
    """The averaged model of a checkpoint. resolution: of its images, where it is not the releases'.

    Raises OnestepError for weights that do not make up one of SlimFlow's networks.
    """
    state = _averaged(content)
    if "enc" in {name.split(".")[0] for name in state}:
        return _adm(state)
    return _ddpmpp(_modules(state), resolution)


def _averaged(content: dict) -> dict[str, Tensor]:
    """Parameters of the moving average by name."""
    names = [name.removeprefix("module.") for name in content["model"] if isinstance(name, str)]
    weights = dict(zip(names, content["model"].values(), strict=True))
    # `sigmas` and filters are buffers: the average is of parameters only.
    names = [name for name in names if name != "sigmas" and not name.endswith("resample_filter")]
    shadow = content["ema"]["shadow_params"]
    fits = isinstance(shadow, list) and len(shadow) == len(names)
    if not fits or any(
        not isinstance(average, Tensor) or average.shape != getattr(weights[name], "shape", None)
        for name, average in zip(names, shadow, strict=True)
    ):
        raise OnestepError("ema.shadow_params do not fit the model's parameters one by one; fetch the checkpoint again")
    return dict(zip(names, shadow, strict=True))


def _turned(state: dict[str, Tensor], last: str) -> dict[str, Tensor]:
    """The state with the output's sign changed."""
    return state | {f"{last}.{part}": -state[f"{last}.{part}"] for part in ("weight", "bias")}


# --- DDPM++, numbered


def _modules(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """all_modules.{i}: parameters by name."""
    modules: list[dict[str, Tensor]] = []
    for name, tensor in state.items():
        match = _MODULE.fullmatch(name)
        if not match or not len(modules) - 1 <= int(match[1]) <= len(modules):
            raise OnestepError(f"{name[:60]!a} is no parameter of score_sde's DDPM++ in its place")
        if int(match[1]) == len(modules):
            modules.append({})
        modules[-1][match[2]] = tensor
    return modules


def _kind(module: dict[str, Tensor]) -> str:
    """attention, resample, residual, or other."""
    if "NIN_0.W" in module:
        return "attention"
    if "Conv_0.weight" not in module:
        return "other"
    outputs, inputs = module["Conv_0.weight"].shape[:2]
    return "resample" if inputs == outputs and "Conv_2.weight" in module else "residual"


def _ddpmpp(modules: list[dict[str, Tensor]], resolution: int | None) -> Released:
    kinds = [_kind(module) for module in modules]
    levels = kinds.count("resample") // 2 + 1
    # A level has so many residual blocks on the way down and one more on the way up; two are in the middle.
    blocks, rest = divmod(kinds.count("residual") - 2 - levels, 2 * levels)
    unfit = OnestepError("the checkpoint's modules do not follow each other as in score_sde's DDPM++")
    if rest or blocks < 1 or kinds[:3] != ["other"] * 3 or kinds[-2:] != ["other"] * 2:
        raise unfit
    channels = modules[2]["weight"].shape[0]
    widths, attends = _levels(modules, kinds, levels, blocks)
    deepest = max((level for level in range(levels) if attends[level]), default=1)
    side = resolution or _ATTENTION << deepest
    config = {
        "arch": "SongUNet",
        "img_resolution": side,
        "in_channels": modules[2]["weight"].shape[1],
        "out_channels": modules[-1]["weight"].shape[0],
        "model_channels": channels,
        "channel_mult": [width // channels for width in widths],
        "channel_mult_emb": modules[0]["weight"].shape[0] // channels,
        "num_blocks": blocks,
        "attn_resolutions": [side >> level for level in range(levels) if attends[level]],
        "dropout": 0.15,
    }
    places = list(_places(side, levels, blocks, attends))
    if len(places) != len(modules) or any(kind != wanted for kind, (_, wanted) in zip(kinds, places, strict=True)):
        raise unfit
    state: dict[str, Tensor] = {}
    for module, (name, kind) in zip(modules, places, strict=True):
        state |= {f"{name}.{part}": tensor for part, tensor in _renamed(module, kind).items()}
    make = networks.build if resolution else AnySize.build
    return Released(config, _turned(state, f"dec.{side}x{side}_aux_conv"), Flow(), make)


def _levels(modules, kinds: list[str], levels: int, blocks: int) -> tuple[list[int], list[bool]]:
    """Width of each level of the encoder, and whether it attends."""
    widths, attends, place = [], [], 3
    for _ in range(levels):
        widths.append(modules[place]["Conv_0.weight"].shape[0] if kinds[place] == "residual" else 0)
        attends.append(kinds[place + 1] == "attention")
        place += blocks * (1 + attends[-1]) + 1
    return widths, attends


def _places(side: int, levels: int, blocks: int, attends: list[bool]) -> Iterator[tuple[str, str]]:
    """SongUNet's name, and the kind, of each of score_sde's modules in turn."""
    names = [f"{side >> level}x{side >> level}" for level in range(levels)]
    yield from (("map_layer0", "other"), ("map_layer1", "other"), (f"enc.{names[0]}_conv", "other"))
    for level, name in enumerate(names):
        if level:
            yield f"enc.{name}_down", "resample"
        for index in range(blocks):
            yield f"enc.{name}_block{index}", "residual"
            if attends[level]:
                yield f"enc.{name}_block{index}", "attention"
    yield from ((f"dec.{names[-1]}_in0", kind) for kind in ("residual", "attention"))
    yield f"dec.{names[-1]}_in1", "residual"
    for level, name in reversed(list(enumerate(names))):
        if level < levels - 1:
            yield f"dec.{name}_up", "resample"
        for index in range(blocks + 1):
            yield f"dec.{name}_block{index}", "residual"
        if attends[level]:
            yield f"dec.{name}_block{blocks}", "attention"
    yield from ((f"dec.{names[0]}_aux_norm", "other"), (f"dec.{names[0]}_aux_conv", "other"))


def _renamed(module: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """A module's parameters by SongUNet's names."""
    if kind == "other":
        return module
    if kind == "attention":
        return _attention(module)
    renamed = {}
    for name, tensor in module.items():
        layer, part = name.rsplit(".", 1)
        renamed[f"{_RESIDUAL.get(layer, layer)}.{part}"] = tensor
    if kind == "resample":
        renamed |= {f"{layer}.resample_filter": torch.full((1, 1, 2, 2), 0.25) for layer in ("conv0", "skip")}
    return renamed


def _attention(module: dict[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value side by side become one convolution, whose outputs go round the three channel by channel."""
    weights = torch.stack([module[f"NIN_{i}.W"].T for i in range(3)], dim=1)
    biases = torch.stack([module[f"NIN_{i}.b"] for i in range(3)], dim=1)
    return {
        "norm2.weight": module["GroupNorm_0.weight"],
        "norm2.bias": module["GroupNorm_0.bias"],
        "qkv.weight": weights.flatten(0, 1)[:, :, None, None],
        "qkv.bias": biases.flatten(),
        "proj.weight": module["NIN_3.W"].T[:, :, None, None],
        "proj.bias": module["NIN_3.b"],
    }


# --- ADM, under the names of NVlabs/edm


def _adm(state: dict[str, Tensor]) -> Released:
    sides: dict[int, int] = {}  # width of each level
    blocks = 0
    for name, tensor in state.items():
        if match := re.fullmatch(r"enc\.(\d{1,5})x\1_block(\d{1,3})\.conv0\.weight", name):
            sides[int(match[1])] = tensor.shape[0]
            blocks = max(blocks, int(match[2]) + 1)
    if not sides or "map_layer0.weight" not in state or "out_conv.weight" not in state:
        raise OnestepError("the checkpoint's weights are neither score_sde's DDPM++ nor ADM")
    side = max(sides)
    emb_channels, channels = state["map_layer0.weight"].shape
    config = {
        "arch": "DhariwalUNet",
        "img_resolution": side,
        "in_channels": state[f"enc.{side}x{side}_conv.weight"].shape[1],
        "out_channels": state["out_conv.weight"].shape[0],
        "label_dim": state["map_label.weight"].shape[1] if "map_label.weight" in state else 0,
        "model_channels": channels,
        "channel_mult": [sides[key] // channels for key in sorted(sides, reverse=True)],
        "channel_mult_emb": emb_channels // channels,
        "num_blocks": blocks,
        "attn_resolutions": [key for key in sides if f"enc.{key}x{key}_block0.qkv.weight" in state],
        "dropout": 0.13,
    }
    resampled = {f"enc.{key}x{key}_down" for key in sides if key != side}
    resampled |= {f"dec.{key}x{key}_up" for key in sides if key != min(sides)}
    filters = {
        f"{block}.{layer}.resample_filter": torch.full((1, 1, 2, 2), 0.25)
        for block in resampled
        for layer in ("conv0", "skip")
    }
    return Released(config, _turned(state | filters, "out_conv"), Flow())
