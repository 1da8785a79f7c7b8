"""Methods by name. A method is one file of this folder that ends in `register(Method(...))`; nothing else knows it.

An objective is a function `(batch, draw) -> iterator of (loss, network to step)`; `training.fit` runs it. The network
is named as in `Nets`: 'student', or a key of `Nets.auxiliary`, or a tuple of names that one loss steps together.
A loss is a mean over the rows of the batch: micro-batches and ranks see equal shares of the rows, and what is stepped
is the mean of their gradients. A loss that couples rows is a mean over groups of them, which shares then hold whole.
The mathematics stands in pure functions of explicit tensors, the objective only draws and calls.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from onestep_bench.denoiser import Denoiser, Native
from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.known import plugins
from onestep_bench.paths import ve_up_to
from onestep_bench.seeds import Draw


@dataclass
class Batch:
    """What a step sees. images (n, c, h, w) float32 in [-1, 1]; labels (n,) int64 or None.

    noise (n, c, h, w): the other end of each pair when training on pairs, else None.
    augment (n, 9): what was done to each image, as EDM's networks are told of it; None for nothing.
    """

    images: Tensor
    labels: Tensor | None = None
    noise: Tensor | None = None
    augment: Tensor | None = None


Objective = Callable[[Batch, Draw], Iterator[tuple[Tensor, str | tuple[str, ...]]]]


@dataclass
class Nets:
    """The networks of a run: the student, trained, and the teacher, frozen and in eval mode (None if not needed).

    auxiliary: further networks that are trained and then thrown away, by name.
    """

    student: Denoiser
    teacher: Denoiser | None = None
    auxiliary: dict[str, nn.Module] = field(default_factory=dict)


@dataclass(frozen=True)
class Adam:
    """Optimiser settings of one network. rate: its learning rate over the student's; betas: as torch has them."""

    rate: float
    betas: tuple[float, float]


@dataclass(frozen=True)
class Method:
    """A method as the rest of the suite sees it.

    version: part of every artifact's key; raise it when the method would train different weights.
    config: dataclass of its parameters. objective: `(nets, config) -> Objective`.
    student: `(config, net, native, teacher) -> Denoiser`, how the student's network is called and on which path it
    samples; native is that of the model the weights come from, None for random weights.
    data: 'images' or 'pairs'. needs_teacher: whether the objective asks nets.teacher.
    follows_teacher: whether what the student is asked for is computed with the teacher along the way, so that it learns
    from what the teacher was trained on, whatever images it is given. Not so of a method that is given the teacher's
    images, or that asks a network which itself saw no more than these (as SlimFlow's guidance asks its own 2-flow).
    looks_at_data: `config -> bool`, false where no loss reads the images that it is given, so that it learns from its
    teacher alone.
    auxiliary: `(nets, config) -> networks` for nets.auxiliary, made from the run's seed.
    training: defaults of TrainConfig that the paper sets otherwise.
    adams: `(config, betas of the student) -> {network: Adam}`, for networks that do not train as the student does.
    looks_through: `config -> names` of the feature networks in its losses, none of which may be one that judges.
    augments: whether it trains on images and tells its student `Batch.augment`; else it is refused augmented images,
    which its student would take for the data.
    group: `config -> rows`, consecutive ones, that its loss couples: a share of a batch is a multiple of it.
    two_times: whether the student's network is told a second time, see `FlowMap`.
    """

    name: str
    version: int
    config: type
    objective: Callable[[Nets, object], Objective]
    student: Callable[[object, nn.Module, Native | None, Denoiser | None], Denoiser]
    data: str = "images"
    needs_teacher: bool = False
    auxiliary: Callable[[Nets, object], dict[str, nn.Module]] = lambda nets, config: {}
    training: dict = field(default_factory=dict)
    adams: Callable[[object, tuple[float, float]], dict[str, Adam]] = lambda config, betas: {}
    looks_through: Callable[[object], Iterable[str]] = lambda config: ()
    follows_teacher: bool = False
    looks_at_data: Callable[[object], bool] = lambda config: True
    augments: bool = False
    group: Callable[[object], int] = lambda config: 1
    two_times: bool = False


def move_towards(target: nn.Module, student: nn.Module, decay: float) -> None:
    """One step of an exponential average of the student's weights: decay is the share that the target keeps of its own.

    A target stands among `Nets.auxiliary`, though no loss steps it, so that checkpoints hold it.
    """
    with torch.no_grad():
        torch._foreach_lerp_(list(target.parameters()), list(student.parameters()), 1 - decay)


def generator_at(level: float | None, net: nn.Module, native: Native) -> Denoiser:
    """`net` as a generator that answers in one step from noise of a level, a noise-to-signal ratio.

    None: at the noise end of the native path, as the model that it starts from does.
    """
    generator = Denoiser(net, native)
    return generator if level is None else generator.on(ve_up_to(level))


_registry: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Make a method known by its name."""
    _registry[method.name] = method
    return method


def _import_all() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    plugins.load()


def names() -> list[str]:
    """Names of all methods, sorted."""
    _import_all()
    return sorted(_registry)


def get(name: str) -> Method:
    """The method of that name. Raises OnestepError if there is none."""
    _import_all()
    if name not in _registry:
        raise OnestepError(f"unknown method {name!r}{near_miss(name, _registry)}")
    return _registry[name]
