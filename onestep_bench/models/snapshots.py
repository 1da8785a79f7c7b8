"""Snapshots: the averaged weights at several budgets of one training, as it passed them; other averages at its end."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from onestep_bench.denoiser import Denoiser
from onestep_bench.errors import OnestepError
from onestep_bench.models import checkpoints
from onestep_bench.training.config import TrainConfig


def checked(snapshots: Sequence[float], training: TrainConfig) -> list[float]:
    """kimg at which weights are kept. Raises OnestepError unless they are numbers that rise to at most the budget."""
    try:
        found = [float(kimg) for kimg in snapshots]
    except (TypeError, ValueError):
        found = [math.nan]
    # Written so that NaN is refused too.
    if not all(low < high for low, high in itertools.pairwise([0.0, *found])) or max(found, default=0) > training.kimg:
        raise OnestepError(f"snapshots must rise from above 0 to at most kimg={training.kimg:g}, not {snapshots!r}")
    return found


def _step_of(kimg: float, training: TrainConfig) -> int:
    """The first step (1-based) that reaches so many thousand images, or the last there is."""
    return min(math.ceil(round(kimg * 1000 / training.batch_size, 6)), training.steps)


def weights(kimg: float) -> str:
    """Name of the file of a snapshot, in a model's folder."""
    return f"snapshot-{kimg:.12g}.safetensors"


def average_weights(halflife_kimg: float) -> str:
    """Name of the file of a further average (`TrainConfig.emas`), in a model's folder."""
    return f"average-{halflife_kimg:.12g}.safetensors"


def kept_at(
    denoiser: Denoiser, folder: Path, snapshots: Sequence[float], training: TrainConfig
) -> dict[int, Callable[[], None]]:
    """What keeps the weights at each of the kimg, by the step to call it after, for `training.fit`."""

    def keep(kimgs: list[float]) -> None:
        for kimg in kimgs:
            checkpoints.save_weights(denoiser, folder / weights(kimg))

    steps = defaultdict(list)
    for kimg in snapshots:
        steps[_step_of(kimg, training)].append(kimg)
    return {step: partial(keep, kimgs) for step, kimgs in steps.items()}
