"""`fit`: the one training loop, a generator of log rows.

It owns what methods have in common: optimisers, EMA, warm-up and decay, clipping, accumulation, precision, compile,
checkpoints, exact resume, several ranks, and the stop at a loss that is no number. A method only yields losses.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from onestep_bench.errors import OnestepError, stopped
from onestep_bench.methods import Adam, Objective
from onestep_bench.seeds import Draw, seed_for
from onestep_bench.training import ranks
from onestep_bench.training.config import TrainConfig
from onestep_bench.training.passes import counting
from onestep_bench.training.precision import casting
from onestep_bench.training.source import Source
from onestep_bench.training.speed import sped_up
from onestep_bench.training.state import LogRow, Run

LOG_ROWS = 100
# Seconds between two checkpoints: on a GPU they hold a gigabyte, and come as far again in the same time.
CHECKPOINT_SECONDS = {"cpu": 60.0, "cuda": 300.0}


def _update_averages(run: Run, step: int) -> None:
    student = run.nets["student"]
    with torch.no_grad():
        for halflife, average in run.averages.items():
            keep = run.config.ema_decay(step, halflife)
            torch._foreach_lerp_(run.averaged[halflife], run.parameters["student"], 1 - keep)
            for kept, seen in zip(average.buffers(), student.buffers(), strict=True):
                kept.copy_(seen)


def fit(
    objective: Objective,
    nets: dict[str, nn.Module],
    source: Source,
    config: TrainConfig,
    *,
    seed: int,
    adams: Mapping[str, Adam] | None = None,
    ema: nn.Module | None = None,
    averages: Mapping[float, nn.Module] | None = None,
    group: int = 1,
    networks: Mapping[str, nn.Module] | None = None,
    after: Mapping[int, Callable[[], None]] | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float | None = None,
    name: str = "fit",
) -> Iterator[LogRow]:
    """Train `nets` in place by `objective`; yield about a hundred log rows, those of earlier runs first on resume.

    nets: every trained network by the name under which the objective yields losses; 'student' must be among them.
    adams: optimiser settings of the networks that do not train with `config`'s own. ema: a copy of the student, made
    its average; averages: further copies, made averages of other half-lives (kimg). group: rows that the losses couple,
    see `Method`. networks: those whose passes the rows tell and that `config.precision` is about, by default `nets`; a
    teacher is asked and not trained, and is another. Counts are in the checkpoint; a run that goes on from one without
    them, of an older version, tells none.
    after: what rank 0 calls at the end of a step (1-based), such as to keep the average; that step has a log row. Where
    a killed run goes on from before the step, it is called again.
    checkpoint: file from which a killed run goes on, written every `checkpoint_seconds` (by default a minute, on a GPU
    five) and at the end.
    All draws are functions of (seed, purpose, step), so that a resumed run ends in the same bits as an uninterrupted
    one on the same machine. name: what errors call the run.

    Ranks (see `ranks`) train together: each computes its share of the rows of every micro-batch, and all step by the
    mean gradient, which is that of one process at this batch size up to rounding. Rank 0 alone writes the checkpoint.
    An interrupt waits for the end of its step, is kept as a checkpoint, and goes on as a KeyboardInterrupt of one line;
    a second one does not wait, and what counts is the last checkpoint.
    Raises OnestepError at the first loss that is not finite or explodes, keeping the last good checkpoint; for a batch
    that ranks and micro-batches cannot share in whole groups; for a precision that the networks cannot have; and if
    another rank ends.
    """
    _check_shares(config, group, name)
    device = next(nets["student"].parameters()).device
    averages = {**(averages or {}), **({} if ema is None else {config.ema_halflife_kimg: ema})}
    run = Run(nets, averages, config, adams or {}, device)
    if checkpoint:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if checkpoint and checkpoint.exists():
        run.load(checkpoint)
    _check_start(run.done)
    yield from list(run.rows)

    if checkpoint_seconds is None:
        checkpoint_seconds = CHECKPOINT_SECONDS.get(device.type, 60.0)
    begun = kept = run.done
    clock, saved = time.monotonic() - run.seconds, time.monotonic()
    log_every = max(1, config.steps // LOG_ROWS)
    watched = {} if run.watch.passes is None else networks or nets
    with sped_up(run, networks or nets):
        try:
            for step in range(run.done, config.steps):
                with _interrupts_wait():
                    begun = step + 1
                    with casting(networks or nets, config.precision, device), counting(watched, run.watch.passes):
                        _step(objective, run, source, seed, step, device)
                    _update_averages(run, step)
                    if after and begun in after and ranks.leads():
                        after[begun]()
                    run.done, now = begun, time.monotonic()
                    last = begun == config.steps
                    log = last or begun % log_every == 0 or begun in (after or {})
                    save = checkpoint and ranks.leads() and (last or now - saved >= checkpoint_seconds)
                    if log or save:
                        run.check(name, checkpoint)  # which waits for the device, whose work the seconds below are
                    run.seconds = time.monotonic() - clock
                    if log:
                        run.rows.append(_row(run, step))
                if save:
                    run.save(checkpoint)
                    kept, saved = run.done, now
                if log:
                    handed = time.monotonic()
                    yield run.rows[-1]
                    clock += time.monotonic() - handed  # what is done with a row is no training
        except KeyboardInterrupt:
            if not checkpoint:
                raise
            if begun == run.done and ranks.leads():
                run.check(name, checkpoint)
                run.save(checkpoint)
                kept = run.done
            raise _stopped(kept, config) from None


def _row(run: Run, step: int) -> LogRow:
    kimg = run.done * run.config.batch_size / 1000
    passes = {name: count / 1000 for name, count in (run.watch.passes or {}).items()}
    return LogRow(run.done, kimg, run.seconds, run.config.rate(step), run.watch.means(), passes, ranks.busy())


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Let the first Ctrl-C inside this block come at its end: half a step is nothing that a run could go on from.

    The second comes at once, for whoever has no patience, or a step that hangs.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield  # interrupts are ignored, or come to another thread
        return
    came = []

    def wait(number, frame):
        if came:
            handler(number, frame)
        came.append(number)

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        handler(signal.SIGINT, None)


def _stopped(steps: int, config: TrainConfig) -> KeyboardInterrupt:
    kimg, total = (round(count * config.batch_size / 1000, 2) for count in (steps, config.steps))
    return stopped(f"training stopped at {kimg:g} of {total:g} kimg; run this again to go on from there")


def _step(objective: Objective, run: Run, source: Source, seed: int, step: int, device: torch.device) -> None:
    """One optimiser step of every network the objective yields a loss for, over all micro-batches."""
    config = run.config
    _seed_dropout(seed_for(seed, "dropout", step) + ranks.index(), device)
    draws = _micro_draws(config, seed, step, device)
    # The objectives of all micro-batches advance together: each network is stepped once, after all of them.
    losses = [objective(source.batch(draw, config.hflip, config.augment), draw) for draw in draws]
    logged: set[str] = set()
    while True:
        names, total = None, 0.0
        for objective_of_rows in losses:
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
        parameters = [parameter for name in names for parameter in run.parameters[name]]
        ranks.average([total, *(parameter.grad for parameter in parameters if parameter.grad is not None)])
        run.watch.add(names[0], total, step, logged=names[0] not in logged)
        logged.add(names[0])
        for name in names:
            if config.clip:
                nn.utils.clip_grad_norm_(run.parameters[name], config.clip)
            optimizer = run.optimizers[name]
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step) * run.rates[name]
            optimizer.step()


def _seed_dropout(seed: int, device: torch.device) -> None:
    """Dropout draws from the global generators, of which each rank has its own.

    As torch.manual_seed, which takes a hundred times as long to look for devices of every kind.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)


def _micro_draws(config: TrainConfig, seed: int, step: int, device: torch.device) -> list[Draw]:
    """This rank's rows of each micro-batch."""
    rows = config.batch_size // config.accumulate
    own = rows // ranks.count()
    starts = range(ranks.index() * own, config.batch_size, rows)
    common = {"batch_size": config.batch_size, "progress": step / config.steps, "device": device}
    return [Draw(seed, step, rows=slice(at, at + own), first=at == starts[0], **common) for at in starts]


def _check_shares(config: TrainConfig, group: int, name: str) -> None:
    multiple = config.accumulate * ranks.count() * group
    if config.batch_size % multiple:
        whole = f" in whole groups of {group}" if group > 1 else ""
        raise OnestepError(
            f"{name}: batch_size={config.batch_size} cannot be shared by {ranks.count()} ranks in "
            f"{config.accumulate} micro-batches{whole}; make it a multiple of {multiple}"
        )


def _check_start(done: int) -> None:
    """All ranks have read the checkpoint, and read the same one, before rank 0 may write another."""
    if done != (expected := ranks.shared(done)):
        raise OnestepError(
            f"rank {ranks.index()} goes on from step {done} and rank 0 from step {expected}; "
            "ONESTEP_STORE must be one folder that all ranks see"
        )
