"""What a model costs: parameters, multiply-accumulates, latency, throughput, peak memory."""

import ctypes
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from onestep_bench.denoiser import Denoiser


def parameters(module: nn.Module) -> int:
    """Number of parameters; buffers are not counted."""
    return sum(parameter.numel() for parameter in module.parameters())


def macs(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of one evaluation of one image (c, h, w): convolutions and linear layers.

    network: a denoiser, or what is called with images and, if it has `num_classes`, their labels, as a critic is.
    Attention's products are left out, but not its projections, as they are from the SlimFlow paper's GMACs of DDPM++
    networks: ours are up to 3% more.
    """
    device = next(network.parameters()).device
    given = [torch.zeros(1, *shape, device=device)]
    if isinstance(network, Denoiser):
        given.append(torch.tensor(network.path.t_max / 2))
    if getattr(network, "num_classes", 0):
        given.append(torch.zeros(1, dtype=torch.int64, device=device))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(*given)
    counts = counter.get_flop_counts()["Global"]
    layers = ("aten.convolution", "aten.addmm", "aten.mm")
    return sum(flops for operator, flops in counts.items() if str(operator) in layers) // 2


def work(networks: Mapping[str, nn.Module], passes: Mapping[str, float], shape: tuple[int, int, int]) -> dict:
    """{passes, macs, macs_of_one} of passes by network, as an artifact's cost has them; `summed` says the first two.

    networks: by name, those of `passes` among them; put into eval mode, in which asking one changes nothing in it.
    macs_of_one: macs of one forward pass by network, None if one (a plug-in's) is not called as those here are.
    """
    asked = [name for name, count in passes.items() if count]
    try:
        of_one = {name: macs(networks[name].eval(), shape) for name in asked}
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, StopIteration):
        of_one = None
    return summed(passes, of_one) | {"macs_of_one": of_one}


def summed(passes: Mapping[str, float], of_one: Mapping[str, int] | None) -> dict:
    """{passes, macs}: those of all networks, in thousands, and their multiply-accumulates; None where not known."""
    if not passes:
        return {"passes": None, "macs": None}
    known = of_one is not None
    macs = sum(round(1000 * count) * of_one[name] for name, count in passes.items() if count) if known else None
    return {"passes": sum(passes.values()), "macs": macs}


def mean_busy(found: Iterable[float | None]) -> float | None:
    """The mean of what `ranks.busy` told now and then; None if it told nothing."""
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else None


class Stopwatch:
    """Wall-clock seconds since it was made."""

    def __init__(self):
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began


def latency_ms(call: Callable[[], object], device: torch.device | str, repeats: int = 20) -> tuple[float, float]:
    """Median and 95th percentile of the wall-clock milliseconds of `call`, after three warm-up calls."""
    # Not torch.utils.benchmark: its times are means over blocks of calls, which have no 95th percentile.
    times = []
    for index in range(repeats + 3):
        _synchronise(device)
        began = time.perf_counter()
        call()
        _synchronise(device)
        if index >= 3:
            times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times), statistics.quantiles(times, n=20, method="inclusive")[-1]


class PeakMemory:
    """Context manager: `megabytes` is the peak while inside above what was there at its start; NaN where unknown.

    CUDA: allocated on the device. Elsewhere, on Linux: resident memory.
    """

    def __init__(self, device: torch.device | str):
        self.device, self.megabytes = torch.device(device), float("nan")

    def __enter__(self):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device) / 2**20
        elif sys.platform == "linux":
            # What malloc keeps for later would hide what is needed now.
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
            self._before = _status_megabytes("VmRSS")
        return self

    def __exit__(self, *_):
        if self.device.type == "cuda":
            self.megabytes = torch.cuda.max_memory_allocated(self.device) / 2**20 - self._before
        elif sys.platform == "linux":
            self.megabytes = _status_megabytes("VmHWM") - self._before


def _status_megabytes(field: str) -> float:
    # Not psutil: it does not read Linux's high-water mark.
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", text)[1]) / 1024


def _synchronise(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
