"""What a grid's cells cost before anything ran: network passes times the work of one, at a rate that the grid states.

A stage says how many passes one image of each of its budgets makes through each network, a backward pass counted as two
(`passes: {reflow_kimg: {size: 3}}`), the same count that `training.passes` takes while it trains.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.grid.document import mapping, refuse_unknown, text_of
from onestep_bench.grid.parameters import kind
from onestep_bench.known.catalogue import known

# Thousand-million multiply-accumulates of one forward pass of one image of a side: `models.cost.macs` counts them.
GMACS: dict[str, dict[int, float]] = {
    "3.4M": {32: 0.711, 64: 2.845},
    "7.0M": {32: 1.684, 64: 6.583},
    "15.7M": {32: 3.786, 64: 14.80},
    "27.9M": {32: 6.729, 64: 26.30},
    "61.8M": {32: 10.61, 64: 41.43},
    "44.5M": {32: 2.472},
    "44.7M": {64: 28.06},
    "80.7M": {64: 31.03},
    "edm-ddpmpp": {32: 20.96, 64: 41.43},
    "edm-ncsnpp": {32: 21.23, 64: 42.26},
    "adm": {64: 103.4},
}
# Networks that resize what they see, by timm's names where they are timm's.
_RESIZING = {
    "vgg16_bn": 15.35,
    "tf_efficientnet_lite0": 0.364,
    "deit_base_distilled_patch16_224": 16.93,
    "lpips": 1.253,  # VGG-16's convolutions at 64 px
    "lpips@224": 15.35,
    "inception": 5.713,
    "inception-legacy": 5.713,
    "clip": 4.363,
    "dinov2": 77.77,
}
_JUDGES = "judges"  # all that a cell names
# A critic that sees through the teacher's encoder, as a share of the teacher: 0.25 to 0.34 from 27.9M to 3.4M at 32 px.
_CRITIC, _OF_TEACHER = "critic", 0.3


@dataclass(frozen=True)
class Rate:
    """What a device does: 10^12 multiply-accumulates a second. of: which one, and how that is known.

    device, mode: of the rows of `benchmarks/throughput.py` that tell it better, see `measured`. sizes: what they tell.
    """

    teramacs: float
    of: str
    device: str = ""
    mode: str = ""
    sizes: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Passes:
    """Of a stage. each: budget -> network -> passes an image, of every cell. once: those that its cells share."""

    each: dict[str, dict[str, float]] = field(default_factory=dict)
    once: dict[str, dict[str, float]] = field(default_factory=dict)


def read_rate(value: object, where: str) -> Rate | None:
    """The key `rate` of a grid: {teramacs, of}, and {device, mode} if it can be measured. Raises OnestepError."""
    if value is None:
        return None
    told = mapping(value, f"{where}rate")
    refuse_unknown(told, ("teramacs", "of", "device", "mode"), f"{where}rate: ")
    if type(told.get("teramacs")) not in (int, float) or not told["teramacs"] > 0:
        raise OnestepError(f"{where}rate: teramacs must be a positive number, not {kind(told.get('teramacs'))}")
    named = {key: text_of(told[key], f"{where}rate: {key}") for key in ("device", "mode") if key in told}
    return Rate(told["teramacs"], text_of(told.get("of"), f"{where}rate: of"), **named)


def measured(rate: Rate, folder: Path) -> Rate:
    """The rate with what was measured on such a device, by size of the network that was trained there.

    folder: of `scripts/gpu.py`, DEVICE/throughput.json. Raises OnestepError for a file that is none of its making.
    """
    sizes: dict[str, float] = {}
    for file in sorted(folder.glob("*/throughput.json")) if rate.device else ():
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            rows = found["rows"] if rate.device in found["device"] else []
            rows = [row for row in rows if row["mode"] == rate.mode and "error" not in row and row["method"] == "edm"]
            sizes |= {row["size"]: row["macs"] * row["images_per_second"] / 1e12 for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise OnestepError(f"{file} is not what scripts/gpu.py writes; run it again, or take it away") from error
    return replace(rate, sizes=sizes)


def read_passes(stage: dict, declared: dict, where: str) -> Passes:
    """The keys `passes` and `once` of a stage. Raises OnestepError, also for what is no budget of its notebook."""
    return Passes(*(_read(stage.get(key), declared, f"{where}{key}") for key in ("passes", "once")))


def _read(value: object, declared: dict, where: str) -> dict[str, dict[str, float]]:
    budgets = mapping({} if value is None else value, where)
    for budget, networks in budgets.items():
        if budget not in declared:
            raise OnestepError(f"{where}: the notebook has no budget {budget!r}{near_miss(str(budget), declared)}")
        for network, count in mapping(networks, f"{where}: {budget}").items():
            _check_network(str(network), declared, where)
            if type(count) not in (int, float) or count < 0:
                raise OnestepError(f"{where}: {budget}: {network!r} must be a number of passes, not {kind(count)}")
    return budgets


def _check_network(network: str, declared: dict, where: str) -> None:
    for part in network.split("+"):
        names = [*known("sizes"), *_RESIZING, _JUDGES, _CRITIC, *(name for name in declared if name.endswith("size"))]
        if part not in names:
            raise OnestepError(f"{where}: unknown network {part!r}{near_miss(part, names)}")


def passes(counts: dict[str, dict[str, float]], parameters: dict) -> dict[str, float]:
    """Thousands of passes by network, as the grid names them, for the budgets that a cell's parameters give."""
    found: dict[str, float] = {}
    for budget, networks in counts.items():
        for network, count in networks.items():
            found[network] = found.get(network, 0.0) + count * _thousands(budget, parameters[budget])
    return found


def _thousands(budget: str, value: float | list) -> float:
    """Images of a budget: `kimg` are thousands already; of several, each is run."""
    value = sum(value) if isinstance(value, list) else value
    return value if budget.endswith(("kimg", "budgets")) else value / 1000


def seconds(counts: dict[str, dict[str, float]], parameters: dict, rate: Rate) -> float | None:
    """Work of a cell on its device; None where a network or the side of the images is not known."""
    side = _side(parameters.get("dataset"))
    total = 0.0
    for network, thousands in passes(counts, parameters).items():
        for part in network.split("+"):
            gmacs = _gmacs(part, parameters, side)
            if gmacs is None:
                return None
            total += thousands * gmacs / rate.sizes.get(parameters.get(part, part), rate.teramacs)
    return total


def _gmacs(network: str, parameters: dict, side: int | None) -> float | None:
    if network == _JUDGES:  # those that are trained here are small
        features = parameters.get("features") or []
        return sum(_RESIZING.get(name, 0.0) for name in features)
    if network == _CRITIC:
        teacher = _gmacs("teacher_size", parameters, side)
        return None if teacher is None else _OF_TEACHER * teacher
    if network in _RESIZING:
        return _RESIZING[network]
    return GMACS.get(parameters.get(network, network), {}).get(side)


def _side(dataset: object) -> int | None:
    """Pixels of a data set's images: known, or told by its name, as EDM's archives are called."""
    if dataset in known("datasets"):
        return known("datasets")[dataset].side
    found = re.search(r"(?<!\d)(\d+)x\1(?!\d)", str(dataset))
    return int(found[1]) if found else None


def hours(stage: Passes, cells: Sequence[dict], rate: Rate) -> float | None:
    """GPU-hours of a stage, of cells with these parameters (defaults included); None where that cannot be told."""
    found = [seconds(stage.each, parameters, rate) for parameters in cells]
    if stage.once and cells:
        found.append(seconds(stage.once, cells[0], rate))
    return None if None in found else sum(found) / 3600
