"""Images a second that `fit` trains, beside the same networks and losses trained as the released codes train theirs.

    python benchmarks/throughput.py [--methods edm gdd] [--sizes 7.0M 15.7M] [--batch 512] [--json FILE]

Modes add up: eager fp32, channels_last, bf16, compiled. `released`: an eager loop in the manner of the EDM, GDD and
consistency codes: NCHW, weights and sums in fp32 without TF32 (or under fp16 autocast), images from a DataLoader's
workers, torch's unfused Adam, an average updated weight by weight. All in one run, of one process, one after the other.

The share is of the device's matrix peak as a large product of matrices reaches it here and now (bf16 on a GPU, fp32 on
a CPU), by twice the multiply-accumulates of all passes, forward and backward, that the log counts. CUDA graphs are not
offered. On a CPU the modes of a GPU are left out.
"""

import argparse
import copy
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from onestep_bench import methods, networks
from onestep_bench.data.pixels import to_unit
from onestep_bench.denoiser import EDM, Denoiser
from onestep_bench.methods import Batch, Nets
from onestep_bench.models import cost
from onestep_bench.seeds import Draw
from onestep_bench.training import loop, speed
from onestep_bench.training.config import TrainConfig
from onestep_bench.training.ranks import device_name
from onestep_bench.training.source import Source

IMAGES, WARM = 2048, 5
SMALL = ("0.01M", "0.05M", "0.1M", "0.2M", "0.8M", "3M")
# Precision, and what `sped_up` is told.
MODES = {
    "eager fp32": ("fp32", {"layout": False, "compiled": False}),
    "+ channels_last": ("fp32", {"compiled": False}),
    "+ bf16": ("bf16", {"compiled": False}),
    "+ compiled": ("bf16", {"compiled": True}),
}
RELEASED = {"released fp32": None, "released fp16": torch.float16}


@dataclasses.dataclass
class Job:
    """A method's networks on a device, with random images and, for a method that wants pairs, noise."""

    method: methods.Method
    nets: Nets
    config: object
    images: torch.Tensor
    noise: torch.Tensor | None

    @property
    def trained(self) -> dict[str, nn.Module]:
        """Networks that have an optimiser, by name."""
        return {"student": self.nets.student, **self.nets.auxiliary}

    @property
    def asked(self) -> dict[str, nn.Module]:
        """All networks."""
        return self.trained | ({"teacher": self.nets.teacher} if self.nets.teacher else {})

    def training(self, steps: int, batch: int, **options) -> TrainConfig:
        """A budget of steps."""
        return TrainConfig(**self.method.training | {"kimg": steps * batch / 1000, "batch_size": batch} | options)


def made(
    name: str, size: str, device: str, *, images: int = IMAGES, seed: int = 0, dropout: float | None = None
) -> Job:
    """A job, the same for every call with the same arguments. Networks answer more than 0. seed: of the weights alone.

    dropout: by default the size's own.
    """
    torch.manual_seed(seed)
    channels, side = (1, 8) if size in SMALL else (3, 32)
    method = methods.get(name)
    config = method.config()

    def net() -> nn.Module:
        network = networks.sized(size, side, channels, dropout=dropout)
        for parameter in network.parameters():
            parameter.data += 0.01 * torch.randn_like(parameter)
        return network.to(device)

    teacher = Denoiser(net(), EDM()).eval().requires_grad_(False) if method.needs_teacher else None
    nets = Nets(method.student(config, net(), None, teacher).train(), teacher)
    nets.auxiliary = {key: network.to(device) for key, network in method.auxiliary(nets, config).items()}
    draw = torch.Generator().manual_seed(0)
    data = torch.randint(0, 256, (images, channels, side, side), dtype=torch.uint8, generator=draw)
    noise = torch.randn(data.shape, generator=draw) if method.data == "pairs" else None
    return Job(method, nets, config, data, noise)


def ours(job: Job, mode: str, device: str, steps: int, batch: int) -> dict:
    """{images_per_second, macs} of `fit` in a mode: macs of all passes, an image."""
    precision, how = MODES[mode]
    # A CPU knows one precision; there it is not asked for.
    options = {"precision": precision} if device == "cuda" else {}
    training = job.training(steps, batch, **options)
    source = Source(job.images, None, job.noise, device)
    ema = copy.deepcopy(job.nets.student).eval().requires_grad_(False)
    plain = loop.sped_up, loop.LOG_ROWS
    # A log row waits for the device: one after the warm-up, and one at the end.
    loop.sped_up, loop.LOG_ROWS = partial(speed.sped_up, **how), 1
    try:
        rows = list(
            loop.fit(
                job.method.objective(job.nets, job.config),
                job.trained,
                source,
                training,
                seed=0,
                adams=job.method.adams(job.config, training.betas),
                ema=ema,
                networks=job.asked,
                after={WARM: lambda: None},
            )
        )
    finally:
        loop.sped_up, loop.LOG_ROWS = plain
    warm, last = rows[0], rows[-1]
    rate = 1000 * (last.kimg - warm.kimg) / (last.seconds - warm.seconds)
    work = cost.work(job.asked, last.passes, tuple(job.images.shape[1:]))
    return {"images_per_second": rate, "macs": work["macs"] / (1000 * last.kimg)}


def released(job: Job, dtype: torch.dtype | None, device: str, steps: int, batch: int) -> float:
    """Images a second of a loop as the released codes have it. dtype: of autocast; None for none."""
    held = TensorDataset(job.images, job.images if job.noise is None else job.noise)
    workers = 2 if device == "cuda" else 0
    options = {"shuffle": True, "drop_last": True, "num_workers": workers, "pin_memory": device == "cuda"}
    loader = iter(DataLoader(held, batch, **options))
    config = job.training(steps, batch)
    optimizers = {
        name: torch.optim.Adam(network.parameters(), lr=config.lr, foreach=False)
        for name, network in job.trained.items()
    }
    ema = copy.deepcopy(job.nets.student).eval().requires_grad_(False)
    objective = job.method.objective(job.nets, job.config)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    began = 0.0
    for step in range(steps):
        if step == WARM:
            synchronise(device)
            began = time.perf_counter()
        if (item := next(loader, None)) is None:
            loader = iter(DataLoader(held, batch, **options))
            item = next(loader)
        images, noise = (value.to(device) for value in item)
        draw = Draw(0, step, batch_size=batch, rows=slice(0, batch), progress=step / steps, device=device)
        losses = objective(Batch(to_unit(images), None, None if job.noise is None else noise), draw)
        while True:
            with torch.autocast(device, dtype, enabled=dtype is not None):
                found = next(losses, None)
            if found is None:
                break
            loss, names = found[0], (found[1],) if isinstance(found[1], str) else found[1]
            for name in names:
                optimizers[name].zero_grad(set_to_none=True)
            loss.backward()
            for name in names:
                for parameter in job.trained[name].parameters():
                    if parameter.grad is not None:
                        torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
                optimizers[name].step()
        for kept, seen in zip(ema.parameters(), job.nets.student.parameters(), strict=True):
            kept.copy_(seen.detach().lerp(kept, 0.999))
    synchronise(device)
    return (steps - WARM) * batch / (time.perf_counter() - began)


def synchronise(device: str) -> None:
    """Wait for the GPU, where there is one."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_flops(device: str) -> float:
    """Operations a second of a product of large random matrices: the median of ten."""
    side, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(15):
        synchronise(device)
        began = time.perf_counter()
        a @ b
        synchronise(device)
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / statistics.median(seconds[5:])


def measured(name: str, size: str, device: str, steps: int, batch: int, peak: float) -> list[dict]:
    """Rows of one method at one size, in the order of the table. A mode that fails says how, and the next goes on."""
    rows = []
    gpu = device == "cuda"
    calls: dict[str, Callable[[Job], dict]] = {
        mode: partial(_released_row, dtype=dtype, device=device, steps=steps, batch=batch)
        for mode, dtype in RELEASED.items()
        if gpu or dtype is None
    }
    calls |= {
        mode: partial(ours, mode=mode, device=device, steps=steps, batch=batch)
        for mode in MODES
        if gpu or mode == "eager fp32"
    }
    for mode, call in calls.items():
        row = {"method": name, "size": size, "batch": batch, "mode": mode}
        try:
            rows.append(row | call(made(name, size, device)))
        except RuntimeError as error:  # out of memory, say
            rows.append(row | {"error": str(error).split("\n")[0]})
    macs = next((row["macs"] for row in rows if row.get("macs")), None)
    base = next((row["images_per_second"] for row in rows if "images_per_second" in row), None)
    for row in rows:
        rate = row.get("images_per_second")
        row["macs"] = macs
        row["share_of_peak"] = 2 * macs * rate / peak if macs and rate else None
        row["over_released_fp32"] = rate / base if rate and base and "error" not in rows[0] else None
    return rows


def _released_row(job: Job, dtype: torch.dtype | None, device: str, steps: int, batch: int) -> dict:
    return {"images_per_second": released(job, dtype, device, steps, batch)}


def table(rows: list[dict]) -> str:
    """The rows as text."""
    lines = [
        f"{'method':>26} {'size':>6} {'batch':>5} {'mode':>16} {'images/s':>9} {'of peak':>8} {'over released':>14}"
    ]
    for row in rows:
        start = f"{row['method']:>26} {row['size']:>6} {row['batch']:5} {row['mode']:>16}"
        if "error" in row:
            lines.append(f"{start} failed: {row['error'][:60]}")
            continue
        share = f"{row['share_of_peak']:8.1%}" if row["share_of_peak"] is not None else f"{'':>8}"
        ratio = f"{row['over_released_fp32']:14.2f}" if row["over_released_fp32"] is not None else ""
        lines.append(f"{start} {row['images_per_second']:9.1f} {share} {ratio}")
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, print."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["edm"], choices=methods.names(), metavar="METHOD")
    parser.add_argument("--sizes", nargs="+", default=["7.0M", "15.7M", "61.8M"] if gpu else ["0.05M", "0.2M"])
    parser.add_argument("--batch", type=int, help="images a step: 512 on a GPU, 128 from 50M on, 32 on a CPU")
    parser.add_argument("--steps", type=int, default=45 if gpu else 25, help=f"of each mode, {WARM} of them not timed")
    parser.add_argument("--device", default="cuda" if gpu else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="file to write the rows to as well")
    arguments = parser.parse_args()
    if arguments.steps <= WARM:
        parser.error(f"--steps must be above {WARM}")
    peak = peak_flops(arguments.device)
    what = "bf16" if arguments.device == "cuda" else "fp32"
    print(f"{device_name()}, torch {torch.__version__}; {what} products reach {peak / 1e12:.3g} TFLOP/s")
    if arguments.device == "cpu":
        print(f"left out on a CPU: {', '.join([*list(MODES)[1:], 'released fp16'])}")
    rows = []
    for name in arguments.methods:
        for size in arguments.sizes:
            large = float(size.partition("M")[0]) >= 50 if size[0].isdigit() else True
            batch = arguments.batch or (32 if arguments.device == "cpu" else 128 if large else 512)
            new = measured(name, size, arguments.device, arguments.steps, batch, peak)
            print(table(new) if not rows else table(new).partition("\n")[2], flush=True)
            rows += new
    if arguments.json:
        document = {"device": device_name(), "torch": torch.__version__, "peak_flops": peak, "rows": rows}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
