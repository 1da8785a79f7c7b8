"""What a command line changes in a grid: `--scale`, of every budget, and `--set`, of any parameter.

A grid so changed is another grid: it has results of its own, in a folder that is named after what was changed.
"""

import hashlib
import json
import math
import re
from dataclasses import dataclass

import yaml

from onestep_bench.errors import OnestepError, near_miss

# Budgets among the parameters of a notebook, and among the settings of a training inside one of them.
_BUDGETS = re.compile(r"(\w+_)?kimg|pairs|samples|budgets|snapshots")
_SPANS = re.compile(r"\w+_kimg|emas")
_BATCH = 128  # TrainConfig's, where neither grid nor notebook says


@dataclass(frozen=True)
class Changes:
    """scale: factor of every budget. sets: (name, value) in the order given; a name a.b is key b of the mapping a."""

    scale: float = 1.0
    sets: tuple[tuple[str, object], ...] = ()

    @classmethod
    def of(cls, scale: float = 1.0, sets: list[str] | tuple[str, ...] = ()) -> "Changes":
        """As the command line has them, each set as NAME=VALUE, the value in YAML. Raises OnestepError."""
        if not 0 < scale < math.inf:
            raise OnestepError(f"--scale is a factor above 0, not {scale:g}")
        return cls(scale, tuple(_parsed(text) for text in sets))

    @property
    def suffix(self) -> str:
        """What is put behind the grid's name: '', '-scale0.001', '-set-1a2b3c' or both."""
        scaled = f"-scale{self.scale:g}" if self.scale != 1 else ""
        if not self.sets:
            return scaled
        return f"{scaled}-set-{hashlib.sha256(json.dumps(self.sets).encode()).hexdigest()[:6]}"

    def check(self, declared: set[str], where: str) -> None:
        """Raise OnestepError for a name that no notebook of the grid declares."""
        for name, _ in self.sets:
            if (first := name.split(".")[0]) not in declared:
                raise OnestepError(f"{where}--set: no notebook declares {first!r}{near_miss(first, declared)}")

    def applied(self, given: dict, declared: dict) -> dict:
        """The parameters of a cell as changed: those set where they are declared, then all given budgets scaled.

        A key of a mapping is set only where it stands: what one method is told is not for another.
        """
        changed = dict(given)
        for name, value in self.sets:
            first, _, key = name.partition(".")
            if not key and first in declared:
                changed[first] = value
            inside = changed.get(first)
            if key and isinstance(inside, dict) and key in inside:
                changed[first] = inside | {key: value}
        return changed if self.scale == 1 else changed | self._scaled(changed, {**declared, **changed})

    def _scaled(self, given: dict, everything: dict) -> dict:
        found = {}
        for name, value in given.items():
            if isinstance(value, dict):
                found[name] = {key: self._span(key, of) for key, of in value.items()}
            elif _BUDGETS.fullmatch(name):
                found[name] = self._budget(name, value, everything)
        return found

    def _span(self, key: str, value: object) -> object:
        """A half-life or a warm-up: shorter in the same measure, so that a schedule keeps its shape."""
        if not _SPANS.fullmatch(key):
            return value
        return [self._span(key, one) for one in value] if isinstance(value, list) else value * self.scale

    def _budget(self, name: str, value: object, everything: dict) -> object:
        """Never below one batch: a step is taken, or a judge sees enough to say anything."""
        if isinstance(value, list):
            return sorted({self._budget(name, one, everything) for one in value})
        if type(value) not in (int, float):
            return value
        least = _batch(name, everything)
        if type(value) is int:
            return max(round(value * self.scale), min(value, least))
        folds = len(everything.get("folds") or [0]) if name == "kimg" else 1
        return float(f"{max(value * self.scale, min(value, least * folds / 1000)):.12g}")


def _batch(name: str, everything: dict) -> int:
    own = everything.get(f"{name.removesuffix('kimg')}options") if name.endswith("kimg") else None
    own = own or everything.get("options") or {}
    return own.get("batch_size") or everything.get("batch_size") or _BATCH


def _parsed(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise OnestepError(f"--set wants NAME=VALUE, not {text!r}")
    try:
        return name, yaml.safe_load(value) if value else ""
    except yaml.YAMLError as error:
        raise OnestepError(f"--set {name}: {value!r} is no value that YAML reads") from error
