"""Images judged: a stream of them to what an extractor finds in it.

Nothing here holds the images, and the features of only so many of them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from onestep_bench.errors import OnestepError
from onestep_bench.scoring import metrics
from onestep_bench.scoring.judges import FeatureExtractor
from onestep_bench.store.files import replacing

# Metrics of pairs (KID, k-NN) and FD-infinity see the features of at most so many images of a set, evenly spaced:
# 400 MB of Inception features, and the number at which the field quotes them. Moments are always of all images.
KEPT = 50_000
_BLOCK = 1024  # features that enter the moments at a time, whatever batches they came in


@dataclass(frozen=True)
class Moments:
    """Of n feature vectors: mean (d,), and scatter (d, d) = sum of (x - mean)(x - mean)^T; float64."""

    n: int
    mean: torch.Tensor
    scatter: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor) -> "Moments":
        """From features (n, d) of any precision."""
        features = features.double()
        mean = features.mean(0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    def __add__(self, other: "Moments") -> "Moments":
        """Those of both sets together (Chan, Golub and LeVeque 1979)."""
        n, gap = self.n + other.n, other.mean - self.mean
        scatter = (self.scatter + other.scatter).addr_(gap, gap, alpha=self.n * other.n / n)
        return Moments(n, self.mean + gap * (other.n / n), scatter)

    @property
    def gaussian(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and unbiased covariance, for `metrics.frechet_from_moments`."""
        return self.mean.cpu().numpy(), (self.scatter / (self.n - 1)).cpu().numpy()


@dataclass(frozen=True)
class Judged:
    """What a judge makes of a set of images.

    n: number of images. mu (d,), cov (d, d): float64. features: float32 (at most `KEPT`, d), or None if only moments
    are known. classes: sums from which class shares and Inception score follow, or None without classes.
    """

    n: int
    mu: np.ndarray
    cov: np.ndarray
    features: torch.Tensor | None = None
    classes: metrics.Classes | None = None

    @property
    def width(self) -> int:
        """Width of the features."""
        return self.mu.size


def judged(extractor: FeatureExtractor, batches: Iterable[torch.Tensor], total: int, *, kept: int = KEPT) -> Judged:
    """Judge a stream of `total` uint8 images (n, c, h, w) that comes in batches of any sizes.

    The result does not depend on the sizes. kept: features of at most so many images, evenly spaced, are kept.
    Raises OnestepError for fewer than two images, images that the extractor does not take, or another number of them.
    """
    if total < 2:
        raise OnestepError(f"{total} image cannot be scored; a distance needs at least 2")
    keep = np.unique(np.linspace(0, total - 1, min(kept, total)).astype(np.int64)) if kept else np.empty(0, np.int64)
    features = torch.empty(len(keep), extractor.dim)
    moments, classes, seen = None, None, 0
    for block, logits in _blocks(extractor, batches):
        bad = int((~block.isfinite()).any(1).sum())
        if bad:
            raise OnestepError(f"the features of {bad} images hold NaN or infinity; check the images and the judge")
        moments = Moments.of(block) if moments is None else moments + Moments.of(block)
        if logits is not None:
            classes = metrics.Classes.of(logits) if classes is None else classes + metrics.Classes.of(logits)
        low, high = np.searchsorted(keep, (seen, seen + len(block)))
        features[low:high] = block[torch.from_numpy(keep[low:high] - seen)].cpu()
        seen += len(block)
    if seen != total:
        raise OnestepError(f"{total} images were announced and {seen} came; the source changed, score it again")
    return Judged(total, *moments.gaussian, features if kept else None, classes)


def _blocks(extractor, batches) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Features and logits, `_BLOCK` rows at a time."""
    waiting: list[tuple] = []
    for images in rebatched(batches, extractor.batch):
        waiting.append(extractor.judge(images))
        if sum(len(features) for features, _ in waiting) >= _BLOCK:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[tuple]) -> tuple[torch.Tensor, torch.Tensor | None]:
    features, logits = zip(*parts, strict=True)
    return torch.cat(features), None if logits[0] is None else torch.cat(logits)


def rebatched(batches: Iterable[torch.Tensor], size: int) -> Iterator[torch.Tensor]:
    """The same rows in batches of `size`, the last one shorter."""
    waiting: list[torch.Tensor] = []
    for batch in batches:
        waiting.append(batch)
        count = sum(map(len, waiting))
        if count >= size:
            rows = waiting[0] if len(waiting) == 1 else torch.cat(waiting)
            whole = count - count % size
            yield from rows[:whole].split(size)
            waiting = [rows[whole:]] if whole < count else []
    if waiting:
        yield torch.cat(waiting)


def head(batches: Iterable[torch.Tensor], count: int) -> Iterator[torch.Tensor]:
    """The first `count` rows of a stream, which is asked for no more."""
    for batch in batches:
        yield batch[:count]
        count -= len(batch)
        if count <= 0:
            return


def combined(parts: Sequence[Judged]) -> Judged:
    """Parts judged apart, as by several processes that share the sample indices, as one set in the order given."""
    if len(parts) == 1:
        return parts[0]
    moments = [Moments(p.n, torch.from_numpy(p.mu), torch.from_numpy(p.cov) * (p.n - 1)) for p in parts]
    whole = sum(moments[1:], moments[0])
    features = torch.cat([part.features for part in parts]) if parts[0].features is not None else None
    classes = sum((part.classes for part in parts[1:]), parts[0].classes) if parts[0].classes else None
    return Judged(whole.n, *whole.gaussian, features, classes)


def save(judged: Judged, path: Path) -> None:
    """Write to one file, so that it need not be judged again."""
    tensors = {"n": torch.tensor(judged.n), "mu": torch.from_numpy(judged.mu), "cov": torch.from_numpy(judged.cov)}
    if judged.features is not None:
        tensors["features"] = judged.features
    if judged.classes is not None:
        tensors |= judged.classes.tensors()
    with replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


def load(path: Path) -> Judged:
    """What `save` wrote. Raises OnestepError for a damaged file."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise OnestepError(f"{path} is damaged ({error}); delete it and score again") from error
    classes = metrics.Classes.from_tensors(tensors) if "assigned" in tensors else None
    return Judged(int(tensors["n"]), tensors["mu"].numpy(), tensors["cov"].numpy(), tensors.get("features"), classes)
