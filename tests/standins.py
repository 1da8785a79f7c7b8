"""Files as other people's code writes them, made without that code."""

import pickle
import sys
import types
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def persistence():
    """The modules that a pickle of NVlabs/edm refers to by name, for as long as one is written."""

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("the original reader was called, which executes module_src")

    class EasyDict(dict):
        pass

    for thing, module in ((_reconstruct_persistent_obj, "torch_utils.persistence"), (EasyDict, "dnnlib.util")):
        thing.__module__, thing.__qualname__ = module, thing.__name__
        parent, child = (types.ModuleType(name) for name in (module.split(".")[0], module))
        setattr(child, thing.__name__, thing)
        sys.modules |= {module.split(".")[0]: parent, module: child}
    try:
        yield _reconstruct_persistent_obj, EasyDict
    finally:
        for name in ("torch_utils.persistence", "torch_utils", "dnnlib.util", "dnnlib"):
            del sys.modules[name]


class Persistent:
    """Stands in for an instance of a class that carries its source."""

    def __init__(self, rebuild, meta):
        self.rebuild, self.meta = rebuild, meta

    def __reduce__(self):
        return self.rebuild, (self.meta,)


def edm_bytes(denoiser, *, precond="EDMPrecond", protocol=4, module_src="raise AssertionError", **attributes):
    """A pickle of NVlabs/edm that holds a denoiser: a dictionary with `ema` and what else such files hold."""
    with persistence() as (rebuild, EasyDict):

        def wrapped(module, name, **more):
            kept = {"training", "_parameters", "_buffers", "_non_persistent_buffers_set", "_backward_hooks"}
            state = {key: value for key, value in vars(module).items() if key in kept}
            inner = {key: stand_in(child) for key, child in module._modules.items() if child is not None}
            state |= {"_modules": inner, "_init_args": (), "_init_kwargs": EasyDict()} | more
            meta = {"type": "class", "version": 6, "module_src": module_src, "class_name": name, "state": state}
            return Persistent(rebuild, EasyDict(meta))

        def stand_in(module):
            if not isinstance(module, nn.ModuleDict):
                return wrapped(module, type(module).__name__)
            container = nn.ModuleDict()
            container._modules = {key: stand_in(child) for key, child in module.items()}
            return container

        config = dict(denoiser.net.config)
        net = wrapped(denoiser.net, config.pop("arch"), _init_kwargs=EasyDict(config))
        outer = nn.Module()
        ema = wrapped(outer, precond, _modules={"model": net}, sigma_data=0.5, **attributes)
        content = {"ema": ema, "loss_fn": wrapped(outer, "EDMLoss", P_mean=-1.2), "augment_pipe": None}
        content["dataset_kwargs"] = {"class_name": "training.dataset.ImageFolderDataset", "resolution": 32}
        return pickle.dumps(content, protocol)


def slimflow_content(state):
    """What a checkpoint of SlimFlow holds: the averaged weights `state`, by score_sde's names, and other last ones."""
    averaged = {name: tensor for name, tensor in state.items() if name != "sigmas"}
    steps = {i: {"step": 1, "exp_avg": torch.zeros_like(tensor)} for i, tensor in enumerate(averaged.values())}
    return {
        "optimizer": {"state": steps, "param_groups": [{"lr": 2e-4, "params": list(steps)}]},
        "model": {f"module.{name}": torch.zeros_like(tensor) for name, tensor in state.items()},
        "ema": {"decay": 0.9999, "num_updates": 1, "shadow_params": list(averaged.values())},
        "step": 800000,
    }


def nin(index, part, tensor):
    return {f"NIN_{index}.W": tensor[:, :, 0, 0].T} if part == "weight" else {f"NIN_{index}.b": tensor}


def numbered(net):
    """A SongUNet's weights as score_sde numbers and names them: the inverse of what is tested, written from its end."""
    layers = {"norm0": "GroupNorm_0", "conv0": "Conv_0", "affine": "Dense_0", "norm1": "GroupNorm_1", "conv1": "Conv_1"}
    layers["skip"] = "Conv_2"
    modules, place = [], None
    weights = {name: tensor for name, tensor in net.state_dict().items() if "resample_filter" not in name}
    for name, tensor in weights.items():
        block, layer, part = name.rsplit(".", 2) if name.count(".") == 3 else (name.rsplit(".", 1)[0], "", name[-6:])
        kind = (block, layer in ("norm2", "qkv", "proj"))
        if kind != place:
            modules.append({})
            place = kind
        part = name.rsplit(".", 1)[1]
        if layer == "qkv":
            for i in range(3):
                modules[-1] |= nin(i, part, tensor[i::3])
        elif layer == "proj":
            modules[-1] |= nin(3, part, tensor)
        elif layer == "norm2":
            modules[-1][f"GroupNorm_0.{part}"] = tensor
        else:
            modules[-1][f"{layers[layer]}.{part}" if layer else part] = tensor
    return {f"all_modules.{i}.{k}": tensor for i, module in enumerate(modules) for k, tensor in module.items()}
