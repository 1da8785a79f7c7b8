"""Passes: how many images go through each network while it trains, counted at the networks.

Images seen hide factors of 2 to 10 in work: one method asks its student once an image, another asks it, a teacher and
a critic several times. A forward pass of n rows counts n, a backward pass through it 2 n (a gradient to the inputs and
one to the weights, each about as much work), and the backward pass of a backward pass, as in R1, 4 n. A forward pass
that carries a derivative with it counts 2 n, one for each.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import register_multi_grad_hook

from onestep_bench.denoiser import Denoiser
from onestep_bench.training import ranks


def heart(network: nn.Module) -> nn.Module:
    """What of a network does the work, and is counted and compiled: of a denoiser its `net`, which all views share."""
    return network.net if isinstance(network, Denoiser) else network


def counted(networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The networks whose passes count, by name.

    A module that has two names counts under the first, and a single layer (a projection, say) not at all.
    """
    found: dict[str, nn.Module] = {}
    for name, network in networks.items():
        module = heart(network)
        if list(network.children()) and module not in found.values():
            found[name] = module
    return found


@contextmanager
def counting(networks: Mapping[str, nn.Module], counts: dict[str, int]) -> Iterator[None]:
    """Add to `counts` the rows of all passes through the `counted` networks that are made inside this block, by name.

    Over all ranks. What goes backward is what is differentiated: a call without gradients counts once, whoever made it.
    """
    with ExitStack() as stack:
        for name, module in counted(networks).items():
            watch = _Watch(name, counts)
            stack.callback(module.register_forward_pre_hook(watch.before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(watch.after, with_kwargs=True).remove)
        yield


class _Watch:
    """The hooks of one network."""

    def __init__(self, name: str, counts: dict[str, int]):
        self.name, self.counts = name, counts
        counts.setdefault(name, 0)

    def add(self, rows: int) -> None:
        self.counts[self.name] += rows * ranks.count()  # which have equal shares of every batch

    def before(self, module, arguments, options):
        """A gradient to an input that is differentiated itself is the start of a backward pass of a backward pass."""
        rows = _rows(arguments, options)
        asked = [tensor for tensor in _tensors((arguments, options)) if tensor.requires_grad]
        if not asked or not torch.is_grad_enabled():
            return

        def again(gradient: Tensor) -> None:
            if gradient.requires_grad:
                register_multi_grad_hook((gradient,), lambda _: self.add(4 * rows), mode="any")

        register_multi_grad_hook(asked, again, mode="any")

    def after(self, module, arguments, options, output):
        rows = _rows(arguments, options) * (1 + _carries(arguments, options))
        self.add(rows)
        # Several outputs of one call have one backward pass.
        if asked := [tensor for tensor in _tensors(output) if tensor.requires_grad]:
            register_multi_grad_hook(asked, lambda _: self.add(2 * rows), mode="any")


def _carries(arguments: tuple, options: dict) -> bool:
    """Whether an input has a tangent, with which a forward-mode derivative is under way."""
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in _tensors((arguments, options)))


def _rows(arguments: tuple, options: dict) -> int:
    return len(next(_tensors((arguments, options))))


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
