"""What a score row says of samples against a reference: the Frechet distance, and metrics by name.

To add a metric, write a function here, or in a plug-in, from what a judge made of samples and of the reference (each a
`Judged`) to a number, or to None where it cannot be told, and mark it `@metric("name", better="lower")`. It is then in
rows, tables, reports and `onestep-bench evaluate`, and models are scored anew as they are next asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from onestep_bench import store
from onestep_bench.errors import OnestepError
from onestep_bench.known import plugins
from onestep_bench.scoring import metrics
from onestep_bench.scoring.judging import Judged, on_quick_device, some
from onestep_bench.scoring.rows import QUALITIES

NEIGHBOURS = 5


@dataclass(frozen=True)
class Metric:
    """names: of the numbers it gives, several where they share their work; better: 'lower' or 'higher'.

    of: (samples, reference) -> a number, or a dictionary by name, or None where it cannot be told.
    """

    names: tuple[str, ...]
    better: str
    of: Callable[[Judged, Judged], float | dict | None]


METRICS: list[Metric] = []


def metric(*names: str, better: str) -> Callable:
    """Register a function of (samples, reference) under the names of the numbers it gives; better: 'lower', 'higher'.

    Raises OnestepError for another `better`, and for a name that is taken.
    """
    if better not in ("lower", "higher"):
        raise OnestepError(f"metric {names[0]!r}: better is 'lower' or 'higher', not {better!r}")
    taken = {name for known in METRICS for name in known.names} & set(names)
    if taken:
        raise OnestepError(f"metric {min(taken)!r} is registered already; choose another name")

    def register(of: Callable) -> Callable:
        METRICS.append(Metric(names, better, of))
        return of

    return register


def further() -> dict[str, str]:
    """What is better, 'lower' or 'higher', of every metric beyond those that all rows have, by name."""
    plugins.load()
    return {name: known.better for known in METRICS for name in known.names if name not in QUALITIES}


def sources() -> list[str]:
    """Where the source of a score begins, for `store.memo`."""
    return [store.origin(score), *(store.origin(known.of) for known in METRICS)]


def score(samples: Judged, reference: Judged) -> dict:
    """`fid`, `warning` and every metric of samples against a reference: fields of a score row.

    A metric is None where features or classes are not known, or too few. Raises OnestepError for other widths.
    """
    fid = metrics.frechet_from_moments(samples.mu, samples.cov, reference.mu, reference.cov)
    found = dict.fromkeys([*QUALITIES, *further()])
    for known in METRICS:
        value = known.of(samples, reference)
        found |= value if isinstance(value, dict) else dict.fromkeys(known.names, value)
    return {"fid": fid, **found, "warning": warning(samples.n, samples.width)}


def warning(n: int, width: int) -> str:
    """Why Frechet distances of n samples with features of this width are not to be trusted, or an empty text."""
    if n <= width:
        return f"{n} samples cannot span {width} features: the Frechet distance is mostly bias; draw more"
    if n < 5 * width:
        return f"{n} samples are few for {width} features: the Frechet distance is biased upwards; draw {5 * width}"
    return ""


def _as_many(samples: Judged, reference: Judged) -> list[torch.Tensor] | None:
    """Features of samples, and of no more of the reference; None if one has none.

    Neighbourhoods shrink as a set grows, so the field compares sets of one size. On the device that is quick with them.
    """
    if samples.features is None or reference.features is None:
        return None
    found = [samples.features, some(reference.features, len(samples.features))]
    return [on_quick_device(features) for features in found]


@metric("fd_infinity", better="lower")
def _fd_infinity(samples: Judged, reference: Judged) -> float | None:
    """The Frechet distance extrapolated to infinitely many samples (Chong and Forsyth 2020)."""
    if samples.features is None or len(samples.features) < 4 * samples.width:
        return None
    return metrics.fd_infinity(on_quick_device(samples.features), reference.mu, reference.cov)


@metric("kid", better="lower")
def _kid(samples: Judged, reference: Judged) -> float | None:
    found = _as_many(samples, reference)
    return metrics.kid(*found) if found else None


@metric("precision", "recall", "density", "coverage", better="higher")
def _neighbourhoods(samples: Judged, reference: Judged) -> dict | None:
    found = _as_many(samples, reference)
    if not found or min(map(len, found)) <= NEIGHBOURS:
        return None
    return metrics.precision_recall(found[1], found[0], NEIGHBOURS)


@metric("inception_score", better="higher")
def _inception_score(samples: Judged, reference: Judged) -> float | None:
    return samples.classes.inception_score if samples.classes else None


@metric("class_gap", better="lower")
def _class_gap(samples: Judged, reference: Judged) -> float | None:
    if samples.classes is None or reference.classes is None:
        return None
    return metrics.class_gap(samples.classes.shares, reference.classes.shares)
