"""Time SongUNet against diffusers' UNet2DModel of the same widths, blocks, attention and embedding, in one run.

    python benchmarks/networks.py [--sizes 0.2M 7.0M 15.7M] [--device cuda] [--compile]

Both train (forward, backward, Adam; dropout as the size has it) and sample (forward under inference_mode) on the same
inputs, taking turns, and the median of the repeats counts. On CUDA both run in bf16 autocast and channels_last; on the
CPU in float32, in both memory formats, each model keeping the one that is faster for it (compiled: only contiguous,
for compiling takes minutes there).

Two differences remain, and show in the parameter counts: UNet2DModel attends in every decoder block of an attention
level where DDPM++ attends in the last one, and DDPM++ has a 1x1 convolution on the skip of a block that resamples.
"""

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import profile

from onestep_bench.compat import import_torchvision
from onestep_bench.networks.build import sized
from onestep_bench.networks.sizes import SIZES

import_torchvision()  # diffusers imports it, and cannot beside a CPU build of torch
from diffusers import UNet2DModel  # noqa: E402

SMALL = ("0.05M", "0.2M", "0.8M", "3M")
MODES = ("training", "sampling")
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Diffusers(nn.Module):
    """UNet2DModel with the widths, blocks and attention of a SongUNet `config`, called as a SongUNet is."""

    def __init__(self, config: dict):
        super().__init__()
        levels = range(len(config["channel_mult"]))
        widths = tuple(config["model_channels"] * mult for mult in config["channel_mult"])
        attends = [config["img_resolution"] >> level in config["attn_resolutions"] for level in levels]
        self.net = UNet2DModel(
            sample_size=config["img_resolution"],
            in_channels=config["in_channels"],
            out_channels=config["out_channels"],
            time_embedding_type="positional",
            block_out_channels=widths,
            layers_per_block=config["num_blocks"],
            down_block_types=tuple("AttnDownBlock2D" if attend else "ResnetDownsampleBlock2D" for attend in attends),
            up_block_types=tuple(
                "AttnUpBlock2D" if attend else "ResnetUpsampleBlock2D" for attend in reversed(attends)
            ),
            downsample_type="resnet",
            upsample_type="resnet",
            attention_head_dim=widths[-1],  # one head, as DDPM++
            norm_num_groups=min(32, widths[0] // 4),
            norm_eps=1e-6,
            dropout=config["dropout"],
        )

    def forward(self, x: Tensor, noise_labels: Tensor) -> Tensor:
        """(n, c, h, w), (n,) -> (n, c, h, w)."""
        return self.net(x, noise_labels, return_dict=False)[0]


def synchronise(device: str) -> None:
    """Wait for the GPU, where there is one."""
    if device == "cuda":
        torch.cuda.synchronize()


class Contender:
    """One network ready to be timed in one memory format."""

    def __init__(self, network: nn.Module, x: Tensor, memory_format: torch.memory_format, compiled: bool):
        self.network = network.to(x.device, memory_format=memory_format)
        self.x = x.contiguous(memory_format=memory_format)
        self.noise_labels = torch.rand(len(x), device=x.device)
        self.optimiser = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
        self.call = torch.compile(self.network) if compiled else self.network
        self.seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
        self.peak_bytes = 0

    def training(self) -> None:
        """One optimiser step."""
        self.network.train()
        with torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.x.device.type == "cuda"):
            output = self.call(self.x, self.noise_labels)
        (output.float() - self.x).square().mean().backward()
        self.optimiser.step()
        self.optimiser.zero_grad()

    def sampling(self) -> None:
        """One network evaluation."""
        self.network.eval()
        autocast = torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.x.device.type == "cuda")
        with torch.inference_mode(), autocast:
            self.call(self.x, self.noise_labels)

    def time(self, mode: str) -> None:
        """Append the seconds of one step."""
        synchronise(self.x.device.type)
        start = time.perf_counter()
        getattr(self, mode)()
        synchronise(self.x.device.type)
        self.seconds[mode].append(time.perf_counter() - start)

    def rate(self, mode: str) -> float:
        """Images a second, median of the repeats."""
        return len(self.x) / statistics.median(self.seconds[mode])


def peak_bytes(step: Callable[[], None], device: str) -> int:
    """Peak memory of a step: allocated on CUDA, the growth of the resident set on Linux, else 0."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    if not Path("/proc/self/clear_refs").exists():
        return 0
    ctypes.CDLL(None).malloc_trim(0)  # else the step finds its memory among pages the heap kept from the one before
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM, to the present resident set
    before = status_bytes("VmRSS")
    step()
    return status_bytes("VmHWM") - before


def status_bytes(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def compare(
    size: str, device: str, batch: int | None, seconds: float, compiled: bool
) -> dict[str, dict[str, Contender]]:
    """Contenders by model and memory format, timed in turns for about `seconds`."""
    small = size in SMALL
    channels, resolution = (1, 8) if small else (3, 32)
    batch = batch or (128 if small or device == "cuda" else 8)
    x = torch.randn(batch, channels, resolution, resolution, device=device)
    config = sized(size, resolution, channels).config
    makers = {"ours": lambda: sized(size, resolution, channels), "diffusers": lambda: Diffusers(config)}
    names = ["channels_last"] if device == "cuda" else ["contiguous"] if compiled else list(FORMATS)
    formats = {name: FORMATS[name] for name in names}
    contenders = {
        model: {name: Contender(make(), x, memory_format, compiled) for name, memory_format in formats.items()}
        for model, make in makers.items()
    }
    everyone = [contender for by_format in contenders.values() for contender in by_format.values()]
    for contender in everyone:
        contender.sampling()
        contender.training()  # a first step grows Adam's state
        contender.peak_bytes = peak_bytes(contender.training, device)
    start, repeats = time.perf_counter(), 0
    while repeats < 3 or (time.perf_counter() - start < seconds and repeats < 100):
        for mode in MODES:
            for contender in everyone:
                contender.time(mode)
        repeats += 1
    return contenders


def parameters(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def print_rows(size: str, contenders: dict[str, dict[str, Contender]]) -> None:
    """The table's lines for one size."""
    for mode in MODES:
        best = {model: max(formats.values(), key=lambda c: c.rate(mode)) for model, formats in contenders.items()}
        ours, theirs = best["ours"], best["diffusers"]
        counts = parameters(ours.network), parameters(theirs.network)
        rates = ours.rate(mode), theirs.rate(mode)
        memory = f"{ours.peak_bytes / 2**20:8.0f} {theirs.peak_bytes / 2**20:9.0f}" if mode == "training" else ""
        print(
            f"{size:>10} {mode:>9} {len(ours.x):5} {counts[0] / 1e6:8.3f} {counts[1] / 1e6:9.3f} {rates[0]:8.1f} "
            f"{rates[1]:9.1f} {rates[0] / rates[1]:6.2f} {rates[0] * counts[0] / (rates[1] * counts[1]):9.2f} {memory}"
        )


def print_formats(size: str, contenders: dict[str, dict[str, Contender]]) -> None:
    """Images a second of each model in each memory format."""
    for model, formats in contenders.items():
        for mode in MODES:
            rates = ", ".join(f"{name} {contender.rate(mode):.1f}" for name, contender in formats.items())
            print(f"{size:>10} {model:>9} {mode:>9}: {rates} images/s")


def profile_shares(contender: Contender) -> dict[str, float]:
    """Where a training step goes: shares of self time by kind of operator, forward and backward together."""
    device = contender.x.device.type
    with profile() as recorded:
        for _ in range(2):
            contender.training()
        synchronise(device)
    kinds = {"convolutions": "conv", "norms": "group_norm", "attention": "attention", "optimiser": "adam"}
    shares = dict.fromkeys([*kinds, "rest"], 0.0)
    for event in recorded.key_averages():
        microseconds = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        # On CUDA operators carry the time of the kernels they start; kernels, listed as well, would count twice.
        if device == "cuda" and not event.key.startswith(("aten::", "triton_")):
            continue
        kind = next((kind for kind, word in kinds.items() if word in event.key), "rest")
        shares[kind] += microseconds
    total = sum(shares.values()) or 1.0
    return {kind: value / total for kind, value in shares.items()}


def main() -> None:
    """Parse, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ddpmpp = [
        name
        for name, config in SIZES.items()
        if config["arch"] == "SongUNet" and not {"encoder_type", "patch"} & config.keys()
    ]
    parser.add_argument("--sizes", nargs="+", default=["0.2M", "7.0M", "15.7M"], choices=ddpmpp, metavar="SIZE")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, help="images a step (default 128; 8 for 32x32 on the CPU)")
    parser.add_argument("--seconds", type=float, default=30.0, help="timing budget a size")
    parser.add_argument("--threads", type=int, help="CPU threads; 1 is the steadiest on a machine others use too")
    parser.add_argument("--compile", action="store_true", help="torch.compile both")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    print(
        f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads, compile={arguments.compile}"
    )
    print(
        "      size      mode batch ours [M] diff. [M] ours [/s] diff. [/s] ratio  x params  ours [MiB] diff. [MiB]  "
        "(images/s, each in its faster memory format; peak of a training step)"
    )
    results = {}
    for size in arguments.sizes:
        results[size] = compare(size, arguments.device, arguments.batch, arguments.seconds, arguments.compile)
        print_rows(size, results[size])
    print("\nMemory formats")
    for size, contenders in results.items():
        print_formats(size, contenders)
    print("\nWhere a training step of ours goes")
    for size, contenders in results.items():
        fastest = max(contenders["ours"].values(), key=lambda contender: contender.rate("training"))
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in profile_shares(fastest).items())
        print(f"{size:>10} {shares}")


if __name__ == "__main__":
    main()
