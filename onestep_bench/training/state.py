"""What a run of training is at any step: networks, optimisers, average, losses so far; and as a checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from onestep_bench.errors import OnestepError
from onestep_bench.methods import Adam
from onestep_bench.store.files import replacing
from onestep_bench.training.config import TrainConfig

# A loss this many times the first one (or this large, if the first is small) will not come back.
EXPLODED = 1e3


@dataclass(frozen=True)
class LogRow:
    """A line of the log: training so far, and the mean losses since the last line.

    kimg: thousands of images seen; seconds: measured training time, over all resumptions; losses: by network, of each
    step the first loss it was given (a regulariser that follows, as GDD's R1, would only blur it). passes: thousands
    of images through each network so far, over all ranks, see `passes`; empty if they were not counted from the start.
    busy: what else the machine does, see `ranks.busy`.
    """

    step: int
    kimg: float
    seconds: float
    lr: float
    losses: dict[str, float]
    passes: dict[str, float] = field(default_factory=dict)
    busy: float | None = None

    @property
    def loss(self) -> float:
        """The student's loss."""
        return self.losses["student"]


class LossWatch:
    """Sums of losses and the step of the first bad one, kept on the device: reading them is the only host sync.

    passes: rows by network, see `passes`; None of a run that began before they were counted.
    """

    def __init__(self, names: list[str], device: torch.device):
        self.sums = {name: torch.zeros(2, device=device) for name in names}
        self.limit = {name: torch.full((), -1.0, device=device) for name in names}
        self.bad = {name: torch.full((), -1, dtype=torch.int64, device=device) for name in names}
        self.passes: dict[str, int] | None = {}

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
        return {"sums": self.sums, "limit": self.limit, "bad": self.bad, "passes": self.passes}

    def load(self, state: dict) -> None:
        self.passes = state.get("passes")
        for name in ("sums", "limit", "bad"):
            values = state[name]
            setattr(self, name, {key: value.to(self.sums[key].device) for key, value in values.items()})


def _optimizer(
    parameters: list[nn.Parameter], config: TrainConfig, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """Of one network, by `config.optimizer`; RAdam (Liu et al. 2020) is the one that torch has not fused."""
    common = {"lr": config.lr, "betas": betas, "weight_decay": config.weight_decay}
    if config.optimizer == "radam":
        return torch.optim.RAdam(parameters, **common)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[config.optimizer](parameters, **common, fused=True)


class Run:
    """All that a checkpoint holds: networks, their optimisers, averages, the watch over losses, the log so far.

    averages: of the student's weights, by half-life (kimg).
    """

    def __init__(
        self,
        nets: dict[str, nn.Module],
        averages: Mapping[float, nn.Module],
        config: TrainConfig,
        adams: Mapping[str, Adam],
        device: torch.device,
    ):
        self.nets, self.averages, self.config, self.device = nets, averages, config, device
        # Kept: walking the modules of a large network for them takes milliseconds, each time.
        self.parameters = {name: list(net.parameters()) for name, net in nets.items()}
        self.averaged = {halflife: list(average.parameters()) for halflife, average in averages.items()}
        self.rates = {name: adams[name].rate if name in adams else 1.0 for name in nets}
        self.optimizers = {
            name: _optimizer(parameters, config, adams[name].betas if name in adams else config.betas)
            for name, parameters in self.parameters.items()
        }
        self.watch = LossWatch(list(nets), device)
        self.rows: list[LogRow] = []
        self.done, self.seconds = 0, 0.0

    def check(self, method: str, checkpoint: Path | None) -> None:
        """Raise OnestepError if a loss was bad, or a finite loss had a gradient that spoilt the weights."""
        self.watch.check(method, checkpoint)
        for name, parameters in self.parameters.items():
            finite = torch.stack([parameter.isfinite().all() for parameter in parameters])  # one sync, not many
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
            "averages": {halflife: average.state_dict() for halflife, average in self.averages.items()},
            "watch": self.watch.state(),
            "rows": [asdict(row) for row in self.rows],
        }
        if not path.parent.is_dir():  # at once: an hour later as much more would be lost
            raise OnestepError(f"{path.parent} was removed while a training wrote there; run it again")
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
        for halflife, average in self.averages.items():
            average.load_state_dict(state["averages"][halflife])
        self.watch.load(state["watch"])
        self.rows = [LogRow(**row) for row in state["rows"]]
        self.done, self.seconds = state["done"], state["seconds"]
