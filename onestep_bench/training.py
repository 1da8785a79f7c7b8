"""`fit`: the one training loop, a generator of log rows.

It owns what methods have in common: optimisers, EMA, warm-up and decay, clipping, accumulation, precision, compile,
checkpoints, exact resume, several ranks, and the stop at a loss that is no number. A method only yields losses.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from onestep_bench import ranks
from onestep_bench.data import to_unit
from onestep_bench.errors import OnestepError
from onestep_bench.files import replacing
from onestep_bench.methods import Adam, Batch, Objective
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
    random start is forgotten. ema_rampup: if positive, the half-life is at most this share of the images seen so far
    (0.05 in EDM's and GDD's code). hflip: mirror images (and their pairs' noise with them), each with probability 1/2.
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
    ema_rampup: float = 0.0
    hflip: bool = False

    def __post_init__(self):
        # JSON and YAML know lists only.
        object.__setattr__(self, "betas", tuple(self.betas))
        # Written so that NaN is refused too.
        if not (0 < self.kimg < math.inf and self.batch_size > 0 and self.lr > 0 and self.ema_halflife_kimg > 0):
            raise OnestepError("kimg, batch_size, lr and ema_halflife_kimg must be positive numbers")
        if not 0 <= self.ema_rampup < math.inf:
            raise OnestepError(f"ema_rampup is a share of the images seen, 0 for none, not {self.ema_rampup}")
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

    def ema_decay(self, step: int) -> float:
        """Share of the average that a step (0-based) keeps."""
        halflife = self.ema_halflife_kimg * 1000
        if self.ema_rampup:
            halflife = min(halflife, self.ema_rampup * (step + 1) * self.batch_size)
        return min(0.5 ** (self.batch_size / halflife), (1 + step) / (10 + step))


class Source:
    """Training data on a device: uint8 images, or float pairs, served by (seed, step) alone.

    images: (n, c, h, w) uint8, or float32 in [-1, 1]; labels (n,) or None; noise: the images' pairs, or None.
    What would fill much of a GPU's memory stays where it is (a data set mapped from a file, on the disk), and a thread
    brings the rows of the next batch over while this one is trained on.
    """

    def __init__(self, images: Tensor, labels: Tensor | None, noise: Tensor | None, device: torch.device | str):
        self.device = torch.device(device)
        tensors = (images, labels, noise)
        resident = _fits(self.device, [tensor.nbytes for tensor in tensors if tensor is not None])
        place = self.device if resident else torch.device("cpu")
        self.images, self.labels, self.noise = (None if tensor is None else tensor.to(place) for tensor in tensors)
        self._epoch: tuple[tuple[int, int], Tensor] | None = None
        self._thread = None if resident else ThreadPoolExecutor(1)
        self._coming: tuple[tuple[int, int, int], Future] | None = None
        self._last = 0

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

    def _rows(self, seed: int, first: int, count: int) -> list[Tensor | None]:
        """Images, labels and noise at positions first .. first+count, on the device."""
        index = self._indices(seed, first, count)
        rows = [None if tensor is None else tensor[index] for tensor in (self.images, self.labels, self.noise)]
        if self._thread is None or self.device.type == "cpu":
            return rows
        return [None if tensor is None else tensor.pin_memory().to(self.device, non_blocking=True) for tensor in rows]

    def _rows_ahead(self, seed: int, first: int, count: int) -> list[Tensor | None]:
        """As `_rows`; those as far ahead as these are from the last are then under way."""
        wanted, ahead = (seed, first, count), (seed, 2 * first - self._last, count)
        if self._coming is None or self._coming[0] != wanted:
            self._coming = wanted, self._thread.submit(self._rows, *wanted)
            ahead = (seed, first + count, count)
        rows = self._coming[1].result()
        self._coming, self._last = (ahead, self._thread.submit(self._rows, *ahead)), first
        return rows

    def batch(self, draw: Draw, hflip: bool) -> Batch:
        """The rows of `draw`'s step. Images (and noise) float32 in [-1, 1]."""
        first = draw.step * draw.batch_size + draw.rows.start
        rows = self._rows_ahead if self._thread else self._rows
        images, labels, noise = rows(draw.seed, first, draw.rows.stop - draw.rows.start)
        images = to_unit(images) if images.dtype == torch.uint8 else images
        if hflip:
            mirrored = (draw.uniform("hflip") < 0.5).reshape(-1, 1, 1, 1)
            images = torch.where(mirrored, images.flip(-1), images)
            noise = None if noise is None else torch.where(mirrored, noise.flip(-1), noise)
        return Batch(images, labels, noise)


def _fits(device: torch.device, sizes: Iterable[int]) -> bool:
    """Whether tensors of so many bytes may live on the device: on a GPU, in a quarter of what is free."""
    return device.type != "cuda" or sum(sizes) < torch.cuda.mem_get_info(device)[0] / 4


@dataclass(frozen=True)
class LogRow:
    """A line of the log: training so far, and the mean losses since the last line.

    kimg: thousands of images seen; seconds: measured training time, over all resumptions; losses: by network, of each
    step the first loss it was given (a regulariser that follows, as GDD's R1, would only blur it).
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

    def add(self, name: str, loss: Tensor, step: int, *, logged: bool) -> None:
        loss = loss.detach().float()
        if logged:
            self.sums[name] += torch.stack([loss, torch.ones_like(loss)])
        limit = torch.where(self.limit[name] < 0, EXPLODED * loss.abs().clamp(min=1), self.limit[name])
        self.limit[name] = limit
        fine = loss.isfinite() & (loss.abs() <= limit)
        self.bad[name] = torch.where(fine | (self.bad[name] >= 0), self.bad[name], step)

    def check(self, method: str, checkpoint: Path | None) -> None:
        for name, bad in self.bad.items():
            if (step := int(bad)) >= 0:
                resumable = checkpoint and checkpoint.exists()
                kept = f"; the last good checkpoint is kept at {checkpoint}" if resumable else ""
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
    with torch.no_grad():
        torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - config.ema_decay(step))
        for kept, seen in zip(ema.buffers(), net.buffers(), strict=True):
            kept.copy_(seen)


class _Run:
    """All that a checkpoint holds: networks, their optimisers, the EMA, the watch over losses, the log so far."""

    def __init__(
        self,
        nets: dict[str, nn.Module],
        ema: nn.Module | None,
        config: TrainConfig,
        adams: Mapping[str, Adam],
        device: torch.device,
    ):
        self.nets, self.ema, self.config = nets, ema, config
        self.rates = {name: adams[name].rate if name in adams else 1.0 for name in nets}
        self.optimizers = {
            name: torch.optim.Adam(
                net.parameters(), lr=config.lr, betas=adams[name].betas if name in adams else config.betas, fused=True
            )
            for name, net in nets.items()
        }
        self.watch = _LossWatch(list(nets), device)
        self.rows: list[LogRow] = []
        self.done, self.seconds = 0, 0.0

    def check(self, method: str, checkpoint: Path | None) -> None:
        """Raise OnestepError if a loss was bad, or a finite loss had a gradient that spoilt the weights."""
        self.watch.check(method, checkpoint)
        for name, net in self.nets.items():
            finite = torch.stack([parameter.isfinite().all() for parameter in net.parameters()])  # one sync, not many
            if not finite.all():
                raise OnestepError(
                    f"{method}: weights of the {name} were not finite at step {self.done - 1}; lower lr or set clip"
                )

    def save(self, path: Path) -> None:
        state = {
            "config": asdict(self.config),
            "done": self.done,
            "seconds": self.seconds,
            "nets": {name: net.state_dict() for name, net in self.nets.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "ema": None if self.ema is None else self.ema.state_dict(),
            "watch": self.watch.state(),
            "rows": [asdict(row) for row in self.rows],
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types for a damaged file
            reason = type(error).__name__
            raise OnestepError(f"checkpoint {path} is damaged ({reason}); delete it to train afresh") from error
        if state["config"] != asdict(self.config):
            raise OnestepError(f"checkpoint {path} is of another configuration; delete it to train afresh")
        for name, net in self.nets.items():
            net.load_state_dict(state["nets"][name])
            self.optimizers[name].load_state_dict(state["optimizers"][name])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.watch.load(state["watch"])
        self.rows = [LogRow(**row) for row in state["rows"]]
        self.done, self.seconds = state["done"], state["seconds"]


def fit(
    objective: Objective,
    nets: dict[str, nn.Module],
    source: Source,
    config: TrainConfig,
    *,
    seed: int,
    adams: Mapping[str, Adam] | None = None,
    ema: nn.Module | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
    name: str = "fit",
) -> Iterator[LogRow]:
    """Train `nets` in place by `objective`; yield about a hundred log rows, those of earlier runs first on resume.

    nets: every trained network by the name under which the objective yields losses; 'student' must be among them.
    adams: optimiser settings of the networks that do not train with `config`'s own. ema: a copy of the student, made
    its average. checkpoint: file from which a killed run goes on, written every `checkpoint_seconds` and at the end.
    All draws are functions of (seed, purpose, step), so that a resumed run ends in the same bits as an uninterrupted
    one on the same machine. name: what errors call the run.

    Ranks (see `ranks`) train together: each computes its share of the rows of every micro-batch, and all step by the
    mean gradient, which is that of one process at this batch size up to rounding. Rank 0 alone writes the checkpoint.
    Raises OnestepError at the first loss that is not finite or explodes, keeping the last good checkpoint; for a batch
    that the ranks cannot share; and if another rank ends.
    """
    _check_shares(config, name)
    device = next(nets["student"].parameters()).device
    run = _Run(nets, ema, config, adams or {}, device)
    if checkpoint and checkpoint.exists():
        run.load(checkpoint)
    _check_start(run.done)
    yield from list(run.rows)

    if device.type == "cuda":
        _speed_up(nets, config)
    clock, saved = time.monotonic() - run.seconds, time.monotonic()
    log_every = max(1, config.steps // LOG_ROWS)
    for step in range(run.done, config.steps):
        _step(objective, run, source, seed, step, device)
        if ema is not None:
            _update_ema(ema, nets["student"], step, config)
        now = time.monotonic()
        run.done, run.seconds = step + 1, now - clock
        last = run.done == config.steps
        log = last or run.done % log_every == 0
        save = checkpoint and ranks.leads() and (last or now - saved >= checkpoint_seconds)
        if log or save:
            run.check(name, checkpoint)
        if log:
            kimg = run.done * config.batch_size / 1000
            run.rows.append(LogRow(run.done, kimg, run.seconds, config.rate(step), run.watch.means()))
        if save:
            run.save(checkpoint)
            saved = now
        if log:
            yield run.rows[-1]


def _speed_up(nets: dict[str, nn.Module], config: TrainConfig) -> None:
    for net in nets.values():
        net.to(memory_format=torch.channels_last)
        if config.steps >= COMPILE_STEPS:
            net.compile()


def _step(objective: Objective, run: _Run, source: Source, seed: int, step: int, device: torch.device) -> None:
    """One optimiser step of every network the objective yields a loss for, over all micro-batches."""
    config = run.config
    # Dropout draws from the global generators, of which each rank has its own.
    torch.manual_seed(seed_for(seed, "dropout", step) + ranks.index())
    draws = _micro_draws(config, seed, step, device)
    # The objectives of all micro-batches advance together: each network is stepped once, after all of them.
    losses = [objective(source.batch(draw, config.hflip), draw) for draw in draws]
    logged: set[str] = set()
    autocast = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
    while True:
        names, total = None, 0.0
        for objective_of_rows in losses:
            with autocast:
                item = next(objective_of_rows, None)
            if item is None:
                return
            loss, which = item
            if names is None:
                names = (which,) if isinstance(which, str) else which
                for name in names:
                    run.optimizers[name].zero_grad(set_to_none=True)
            (loss / config.accumulate).backward()
            total = total + loss.detach() / config.accumulate
        parameters = [parameter for name in names for parameter in run.nets[name].parameters()]
        ranks.average([total, *(parameter.grad for parameter in parameters if parameter.grad is not None)])
        run.watch.add(names[0], total, step, logged=names[0] not in logged)
        logged.add(names[0])
        for name in names:
            if config.clip:
                nn.utils.clip_grad_norm_(run.nets[name].parameters(), config.clip)
            optimizer = run.optimizers[name]
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step) * run.rates[name]
            optimizer.step()


def _micro_draws(config: TrainConfig, seed: int, step: int, device: torch.device) -> list[Draw]:
    """This rank's rows of each micro-batch."""
    rows = config.batch_size // config.accumulate
    own = rows // ranks.count()
    starts = range(ranks.index() * own, config.batch_size, rows)
    common = {"batch_size": config.batch_size, "progress": step / config.steps, "device": device}
    return [Draw(seed, step, rows=slice(at, at + own), first=at == starts[0], **common) for at in starts]


def _check_shares(config: TrainConfig, name: str) -> None:
    if config.batch_size % (config.accumulate * ranks.count()):
        raise OnestepError(
            f"{name}: batch_size={config.batch_size} cannot be shared by {ranks.count()} ranks in "
            f"{config.accumulate} micro-batches; make it a multiple of {config.accumulate * ranks.count()}"
        )


def _check_start(done: int) -> None:
    """All ranks have read the checkpoint, and read the same one, before rank 0 may write another."""
    if done != (expected := ranks.shared(done)):
        raise OnestepError(
            f"rank {ranks.index()} goes on from step {done} and rank 0 from step {expected}; "
            "ONESTEP_STORE must be one folder that all ranks see"
        )
