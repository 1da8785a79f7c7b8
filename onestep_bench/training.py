"""`fit`: the one training loop, a generator of log rows.

It owns what methods have in common: optimisers, EMA, warm-up and decay, clipping, accumulation, precision, compile,
checkpoints, exact resume, and the stop at a loss that is no number. A method only yields losses.
"""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from onestep_bench.data import to_unit
from onestep_bench.errors import OnestepError
from onestep_bench.files import replacing
from onestep_bench.methods import Batch, Objective
from onestep_bench.seeds import Draw, generator, seed_for

# A loss this many times the first one (or this large, if the first is small) will not come back.
EXPLODED = 1e3
# Compiling pays for itself after about this many steps.
COMPILE_STEPS = 1000
LOG_ROWS = 100


@dataclass(frozen=True)
class TrainConfig:
    """What every method trains with, unless the method or the caller says otherwise.

    kimg: budget, thousands of images seen. warmup_kimg: linear warm-up of the learning rate. lr_decay: 'constant' or
    'cosine' (to zero at the end of the budget). clip: gradient norm, 0 for none. accumulate: micro-batches a step.
    ema_halflife_kimg: half-life of the weights' average; its decay is capped by (1+n)/(10+n) at step n, so that the
    random start is forgotten. hflip: mirror images (and their pairs' noise with them), each with probability 1/2.
    """

    kimg: float
    batch_size: int = 128
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_kimg: float = 0.0
    lr_decay: str = "constant"
    clip: float = 0.0
    accumulate: int = 1
    ema_halflife_kimg: float = 500.0
    hflip: bool = False

    def __post_init__(self):
        # JSON and YAML know lists only.
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.kimg <= 0 or self.batch_size < 1 or self.lr <= 0:
            raise OnestepError("kimg, batch_size and lr must be positive")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise OnestepError(f"accumulate={self.accumulate} must divide batch_size={self.batch_size}")
        if self.lr_decay not in ("constant", "cosine"):
            raise OnestepError(f"lr_decay is 'constant' or 'cosine', not {self.lr_decay!r}")

    @property
    def steps(self) -> int:
        """Optimiser steps in the budget, at least 1."""
        return max(1, round(self.kimg * 1000 / self.batch_size))

    def rate(self, step: int) -> float:
        """Learning rate of a step (0-based)."""
        warmup = self.warmup_kimg * 1000 / self.batch_size
        rate = self.lr * min(1.0, (step + 1) / warmup) if warmup else self.lr
        if self.lr_decay == "constant":
            return rate
        return rate * (1 + math.cos(math.pi * step / self.steps)) / 2


class Source:
    """Training data resident on a device: uint8 images, or float pairs, served by (seed, step) alone.

    images: (n, c, h, w) uint8, or float32 in [-1, 1]; labels (n,) or None; noise: the images' pairs, or None.
    """

    def __init__(self, images: Tensor, labels: Tensor | None, noise: Tensor | None, device: torch.device | str):
        self.images, self.noise = images.to(device), None if noise is None else noise.to(device)
        self.labels = None if labels is None else labels.to(device)
        self._epoch: tuple[tuple[int, int], Tensor] | None = None

    def _order(self, seed: int, epoch: int) -> Tensor:
        if self._epoch is None or self._epoch[0] != (seed, epoch):
            order = torch.randperm(len(self.images), generator=generator(seed, "epoch", epoch))
            self._epoch = (seed, epoch), order.to(self.images.device)
        return self._epoch[1]

    def _indices(self, seed: int, first: int, count: int) -> Tensor:
        """Positions first .. first+count of the endless sequence of shuffled epochs."""
        pieces = []
        while count:
            epoch, place = divmod(first, len(self.images))
            pieces.append(self._order(seed, epoch)[place : place + count])
            first, count = first + len(pieces[-1]), count - len(pieces[-1])
        return torch.cat(pieces)

    def batch(self, draw: Draw, hflip: bool) -> Batch:
        """The rows of `draw`'s step. Images (and noise) float32 in [-1, 1]."""
        first = draw.step * draw.batch_size + draw.rows.start
        index = self._indices(draw.seed, first, draw.rows.stop - draw.rows.start)
        images = self.images[index]
        images = to_unit(images) if images.dtype == torch.uint8 else images
        noise = None if self.noise is None else self.noise[index]
        if hflip:
            mirrored = (draw.uniform("hflip") < 0.5).reshape(-1, 1, 1, 1)
            images = torch.where(mirrored, images.flip(-1), images)
            noise = None if noise is None else torch.where(mirrored, noise.flip(-1), noise)
        return Batch(images, None if self.labels is None else self.labels[index], noise)


@dataclass(frozen=True)
class LogRow:
    """A line of the log: training so far, and the mean losses since the last line.

    kimg: thousands of images seen; seconds: measured training time, over all resumptions; losses: by network.
    """

    step: int
    kimg: float
    seconds: float
    lr: float
    losses: dict[str, float]

    @property
    def loss(self) -> float:
        """The student's loss."""
        return self.losses["student"]


class _LossWatch:
    """Sums of losses and the step of the first bad one, kept on the device: reading them is the only host sync."""

    def __init__(self, names: list[str], device: torch.device):
        self.sums = {name: torch.zeros(2, device=device) for name in names}
        self.limit = {name: torch.full((), -1.0, device=device) for name in names}
        self.bad = {name: torch.full((), -1, dtype=torch.int64, device=device) for name in names}

    def add(self, name: str, loss: Tensor, step: int) -> None:
        loss = loss.detach().float()
        self.sums[name] += torch.stack([loss, torch.ones_like(loss)])
        limit = torch.where(self.limit[name] < 0, EXPLODED * loss.abs().clamp(min=1), self.limit[name])
        self.limit[name] = limit
        fine = loss.isfinite() & (loss.abs() <= limit)
        self.bad[name] = torch.where(fine | (self.bad[name] >= 0), self.bad[name], step)

    def check(self, method: str, checkpoint: Path | None) -> None:
        for name, bad in self.bad.items():
            if (step := int(bad)) >= 0:
                kept = f"; the last good checkpoint is kept at {checkpoint}" if checkpoint else ""
                raise OnestepError(
                    f"{method}: the {name} loss was not finite or exploded at step {step}; lower lr or set clip{kept}"
                )

    def means(self) -> dict[str, float]:
        means = {name: (total[0] / total[1]).item() for name, total in self.sums.items() if total[1] > 0}
        for total in self.sums.values():
            total.zero_()
        return means

    def state(self) -> dict:
        return {"sums": self.sums, "limit": self.limit, "bad": self.bad}

    def load(self, state: dict) -> None:
        for name, values in state.items():
            setattr(self, name, {key: value.to(self.sums[key].device) for key, value in values.items()})


def _update_ema(ema: nn.Module, net: nn.Module, step: int, config: TrainConfig) -> None:
    decay = 0.5 ** (config.batch_size / (config.ema_halflife_kimg * 1000))
    weight = 1 - min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), weight)
        for kept, seen in zip(ema.buffers(), net.buffers(), strict=True):
            kept.copy_(seen)


def _save(path: Path, state: dict) -> None:
    with replacing(path) as temporary:
        torch.save(state, temporary)


def _load(path: Path, config: TrainConfig) -> dict:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file
        raise OnestepError(
            f"checkpoint {path} is damaged ({type(error).__name__}); delete it to train afresh"
        ) from error
    if state["config"] != asdict(config):
        raise OnestepError(f"checkpoint {path} is of another configuration; delete it to train afresh")
    return state


def fit(
    objective: Objective,
    nets: dict[str, nn.Module],
    source: Source,
    config: TrainConfig,
    *,
    seed: int,
    ema: nn.Module | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
    name: str = "fit",
) -> Iterator[LogRow]:
    """Train `nets` in place by `objective`; yield about a hundred log rows, those of earlier runs first on resume.

    nets: every trained network by the name under which the objective yields losses; 'student' must be among them.
    ema: a copy of the student, made its average. checkpoint: file from which a killed run goes on, written every
    `checkpoint_seconds` and at the end. All draws are functions of (seed, purpose, step), so that a resumed run ends
    in the same bits as an uninterrupted one on the same machine. name: what errors call the run.
    Raises OnestepError at the first loss that is not finite or explodes, keeping the last good checkpoint.
    """
    device = next(nets["student"].parameters()).device
    cuda = device.type == "cuda"
    optimizers = {
        key: torch.optim.Adam(net.parameters(), lr=config.lr, betas=config.betas, fused=True)
        for key, net in nets.items()
    }
    watch = _LossWatch(list(nets), device)
    rows: list[LogRow] = []
    start, seconds_before = 0, 0.0
    if checkpoint and checkpoint.exists():
        state = _load(checkpoint, config)
        for key, net in nets.items():
            net.load_state_dict(state["nets"][key])
            optimizers[key].load_state_dict(state["optimizers"][key])
        if ema is not None:
            ema.load_state_dict(state["ema"])
        watch.load(state["watch"])
        rows = [LogRow(**row) for row in state["rows"]]
        start, seconds_before = state["step"], state["seconds"]
    yield from list(rows)

    if cuda:
        for net in nets.values():
            net.to(memory_format=torch.channels_last)
            if config.steps >= COMPILE_STEPS:
                net.compile()
    began = saved = time.monotonic()
    log_every = max(1, config.steps // LOG_ROWS)
    for step in range(start, config.steps):
        rate = config.rate(step)
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate
        _step(objective, nets, optimizers, source, config, watch, seed, step, device)
        if ema is not None:
            _update_ema(ema, nets["student"], step, config)
        done = step + 1
        now = time.monotonic()
        seconds = seconds_before + now - began
        if done % log_every == 0 or done == config.steps:
            watch.check(name, checkpoint)
            row = LogRow(done, done * config.batch_size / 1000, seconds, rate, watch.means())
            rows.append(row)
        if checkpoint and (done == config.steps or now - saved >= checkpoint_seconds):
            watch.check(name, checkpoint)
            _save(
                checkpoint,
                {
                    "config": asdict(config),
                    "step": done,
                    "seconds": seconds,
                    "nets": {key: net.state_dict() for key, net in nets.items()},
                    "optimizers": {key: optimizer.state_dict() for key, optimizer in optimizers.items()},
                    "ema": None if ema is None else ema.state_dict(),
                    "watch": watch.state(),
                    "rows": [asdict(row) for row in rows],
                },
            )
            saved = now
        if rows and rows[-1].step == done:
            yield rows[-1]


def _step(objective, nets, optimizers, source, config, watch, seed, step, device) -> None:
    """One optimiser step of every network the objective yields a loss for, over all micro-batches."""
    rows = config.batch_size // config.accumulate
    torch.manual_seed(seed_for(seed, "dropout", step))  # dropout draws from the global generators
    losses = []
    for micro in range(config.accumulate):
        draw = Draw(
            seed,
            step,
            batch_size=config.batch_size,
            rows=slice(micro * rows, (micro + 1) * rows),
            progress=step / config.steps,
            device=device,
        )
        losses.append(objective(source.batch(draw, config.hflip), draw))
    autocast = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
    while True:
        key, total = None, 0.0
        # The generators advance together: each network is stepped once, after all its micro-batches.
        for generator_ in losses:
            with autocast:
                item = next(generator_, None)
            if item is None:
                return
            loss, name = item
            if key is None:
                key = name
                optimizers[key].zero_grad(set_to_none=True)
            (loss / config.accumulate).backward()
            total = total + loss.detach() / config.accumulate
        watch.add(key, total, step)
        if config.clip:
            nn.utils.clip_grad_norm_(nets[key].parameters(), config.clip)
        optimizers[key].step()


def training_config(options: dict, defaults: dict) -> TrainConfig:
    """A TrainConfig from a method's defaults and the caller's options, which win."""
    return replace(TrainConfig(kimg=options["kimg"]), **{**defaults, **options})
