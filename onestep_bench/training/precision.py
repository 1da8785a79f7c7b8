"""Precision: the number format that each network computes in while it trains.

`bf16`: its forward pass runs under autocast (Micikevicius et al. 2018), its backward pass follows operation by
operation, and what it returns is float32 again; parameters, gradients and optimisers are float32 throughout. `fp32`:
without. `tf32`: fp32 of which NVIDIA's tensor cores may round the factors of products and convolutions to 10 bits; on a
CPU it is fp32. `auto`: bf16 on CUDA, fp32 elsewhere. What stands outside the networks (losses, an objective's own
arithmetic, feature networks such as LPIPS) is float32.

TF32 is a switch of the whole process and no network's own. `fit` sets it for each step and puts it back after: off
where a network asks for fp32, and on a GPU otherwise on, also for what stands outside the networks.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.training.passes import heart


@contextmanager
def casting(networks: Mapping[str, nn.Module], precision: str | dict[str, str], device: torch.device) -> Iterator[None]:
    """Let every forward pass of these networks inside this block run in its precision: one for all, or by name.

    A call inside an autocast of its own has that one, as a penalty on gradients (GDD's R1) that switches it off, and so
    has a network that another one calls. Raises OnestepError for a name that is no network's, and for 'tf32' beside
    'fp32', which one process cannot have at once.
    """
    wanted = _resolved(precision, networks, device)
    with ExitStack() as stack:
        stack.enter_context(_tf32(device.type == "cuda" and "fp32" not in wanted.values()))
        hearts: dict[nn.Module, str] = {}
        for name, network in networks.items():
            hearts.setdefault(heart(network), wanted[name])
        # Without hooks where there is nothing to cast.
        for module, kind in hearts.items() if "bf16" in wanted.values() else ():
            cast = _Cast(device.type, kind == "bf16")
            stack.callback(module.register_forward_pre_hook(cast.before).remove)
            stack.callback(module.register_forward_hook(cast.after, always_call=True).remove)
        yield


def _resolved(precision: str | dict[str, str], networks: Iterable[str], device: torch.device) -> dict[str, str]:
    """bf16, tf32 or fp32, by network."""
    given = precision if isinstance(precision, dict) else dict.fromkeys(networks, precision)
    for name in given:
        if name not in networks:
            raise OnestepError(f"precision: this training has no network {name!r}{near_miss(str(name), networks)}")
    auto = "bf16" if device.type == "cuda" else "fp32"
    wanted = {name: auto if given.get(name, "auto") == "auto" else given[name] for name in networks}
    if {"tf32", "fp32"} <= {*given.values()}:
        raise OnestepError("precision: tf32 is switched for the whole process; ask for tf32 or for fp32, not for both")
    return wanted


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allowed
        yield
    finally:
        for backend, was in zip(backends, before, strict=True):
            backend.allow_tf32 = was


class _Cast:
    """The hooks of one network: autocast on or off from its call to its return."""

    def __init__(self, device: str, enabled: bool):
        self.device, self.enabled = device, enabled
        self.open: list = []

    def before(self, module, arguments):
        own = nullcontext() if _inside() else torch.autocast(self.device, torch.bfloat16, enabled=self.enabled)
        own.__enter__()
        self.open.append(own)

    def after(self, module, arguments, output):
        self.open.pop().__exit__(None, None, None)
        return _single(output)


def _inside() -> bool:
    """Whether an autocast is open here, be it one that is switched off."""
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting() > 0


def _single(output: object) -> object:
    """What a network returns, in float32 where it is bfloat16."""
    if isinstance(output, Tensor):
        return output.float() if output.dtype == torch.bfloat16 else output
    return type(output)(map(_single, output)) if type(output) in (list, tuple) else output
