"""What makes a run fast on a GPU and changes no mathematics: memory format, compiled networks, cuDNN's own search.

Convolutions on tensor cores want channels_last (NHWC), weights and images alike. A compiler joins what stands between
them, and takes the better part of a minute for it, so that short runs and small networks go without.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from onestep_bench.training import ranks
from onestep_bench.training.passes import heart
from onestep_bench.training.state import Run

DETERMINISTIC = "ONESTEP_DETERMINISTIC"

# Compiling pays where steps x parameters reach this; a network below the second number costs a step as much as one of
# it, in launches. Estimates, not measured: see `benchmarks/throughput.py`.
COMPILE_FROM = 4e10
COMPILE_LEAST = 2e6


@contextmanager
def sped_up(
    run: Run, networks: Mapping[str, nn.Module], *, layout: bool = True, compiled: bool | None = None
) -> Iterator[None]:
    """Inside, a run on a GPU is as fast as its networks allow; on the CPU nothing is changed, here or in any bit.

    networks: those that are asked, trained or not. What is not trained is afterwards as it was, and all are uncompiled.
    layout: whether to make them channels_last; compiled: whether to compile them, None where it pays: for benchmarks.
    """
    if run.device.type != "cuda":
        yield
        return
    asked = {id(module): module for module in _modules([*run.nets.values(), *networks.values()])}
    trained = set(map(id, run.nets.values()))
    with _kernels():
        for module in [*asked.values(), *run.averages.values()] if layout else ():
            module.to(memory_format=torch.channels_last)
        _follow(run)
        try:
            steps = run.config.steps - run.done
            if compiled or (compiled is None and _pays(heart(run.nets["student"]), steps)):
                compile_hearts([*run.nets.values(), *networks.values()])
            yield
        finally:
            uncompile_hearts([*run.nets.values(), *networks.values()])
            for key, module in asked.items():
                if key not in trained:
                    module.to(memory_format=torch.contiguous_format)


def compile_hearts(networks: Iterable[nn.Module], backend: str | Callable = "inductor") -> None:
    """Compile what does the work, below the hooks that count passes, which would else be traced and never run.

    For the shapes it meets and no others: a graph for any batch size is laid out worse. What was compiled for networks
    of earlier runs is forgotten, since torch keeps few graphs of one function and then compiles no more.
    """
    torch.compiler.reset()
    if backend == "inductor" and ranks.count() > 1:
        # Each rank would start a process for each core.
        cores = len(os.sched_getaffinity(0)) // ranks.of_machine()
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(1, cores)))
    for module in _unique(map(heart, networks)):
        module.forward = torch.compile(module.forward, backend=backend, dynamic=False)


def uncompile_hearts(networks: Iterable[nn.Module]) -> None:
    """Undo `compile_hearts`: a copy of a module would else share the compiled forward of the one it was copied from."""
    for module in map(heart, networks):
        vars(module).pop("forward", None)


def _modules(networks: Iterable[nn.Module]) -> list[nn.Module]:
    """The networks, and what they see through without owning it: a critic's `frozen_networks`."""
    return _unique(module for network in networks for module in (network, *getattr(network, "frozen_networks", ())))


def _unique(modules: Iterable[nn.Module]) -> list[nn.Module]:
    return list({id(module): module for module in modules}.values())


def _pays(network: nn.Module, steps: int) -> bool:
    return steps * max(sum(parameter.numel() for parameter in network.parameters()), COMPILE_LEAST) >= COMPILE_FROM


def _follow(run: Run) -> None:
    """Adam's moments into the layout of their parameters, which those of a checkpoint from another device are not in.

    The fused optimiser takes no others.
    """
    for optimizer in run.optimizers.values():
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter).copy_(value)


@contextmanager
def _kernels() -> Iterator[None]:
    """cuDNN tries its kernels and keeps the fastest, which need not be the same in the next process, nor to the bit.

    With ONESTEP_DETERMINISTIC=1 only those run that give the same bits every time, and torch refuses what has none.
    """
    cudnn, exact = torch.backends.cudnn, os.environ.get(DETERMINISTIC) == "1"
    before = cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()
    if exact:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS promises nothing
    cudnn.benchmark, cudnn.deterministic = not exact, exact
    torch.use_deterministic_algorithms(exact or before[2])
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before[:2]
        torch.use_deterministic_algorithms(before[2])
