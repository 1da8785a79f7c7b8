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
from onestep_bench.seeds import generator
from onestep_bench.store.files import replacing

# Metrics of pairs (KID, k-NN) and FD-infinity see the features of at most so many images of a set, evenly spaced:
# 400 MB of Inception features, and the number at which the field quotes them. Moments are always of all images.
KEPT = 50_000
_BLOCK = 1024  # features that enter the moments at a time, whatever batches they came in


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


class Sitting:
    """A judge at work: it is shown batches of `total` uint8 images (n, c, h, w), of any sizes, and then asked.

    Several judges can so see one stream of images. The verdict does not depend on the sizes of the batches.
    kept: features of at most so many images, evenly spaced, are kept.
    Raises OnestepError for fewer than two images, images that the extractor does not take, or another number of them.
    """

    def __init__(self, extractor: FeatureExtractor, total: int, kept: int = KEPT):
        if total < 2:
            raise OnestepError(f"{total} image cannot be scored; a distance needs at least 2")
        spaced = np.linspace(0, total - 1, min(kept, total)) if kept else np.empty(0)
        self._keep = np.unique(spaced.astype(np.int64))
        self._features = torch.empty(len(self._keep), extractor.dim)
        self._extractor, self._total = extractor, total
        self._moments, self._classes, self._seen = None, None, 0
        self._images: list[torch.Tensor] = []  # shown, but fewer than the extractor takes at a time
        self._judged: list[tuple] = []  # features and logits that are not yet a block

    def see(self, batch: torch.Tensor) -> None:
        """The next images."""
        *whole, self._images = _portions([*self._images, batch], self._extractor.batch)
        for images in whole:
            self._judge(images)

    def verdict(self) -> "Judged":
        """What was found in all of them."""
        if self._images:
            self._judge(torch.cat(self._images))
            self._images = []
        self._enter_block()
        if self._seen != self._total:
            raise OnestepError(
                f"{self._total} images were announced and {self._seen} came; the source changed, score it again"
            )
        features = self._features if len(self._keep) else None
        return Judged(self._total, *_arrays(self._moments), features, self._classes)

    def _judge(self, images: torch.Tensor) -> None:
        self._judged.append(self._extractor.judge(images))
        if sum(len(features) for features, _ in self._judged) >= _BLOCK:
            self._enter_block()

    def _enter_block(self) -> None:
        """What waits enters the moments: `_BLOCK` rows at a time, whatever batches they came in."""
        if not self._judged:
            return
        block, logits = _joined(self._judged)
        self._judged = []
        bad = int((~block.isfinite()).any(1).sum())
        if bad:
            raise OnestepError(f"the features of {bad} images hold NaN or infinity; check the images and the judge")
        self._moments = _sum(self._moments, metrics.Moments.of(block))
        if logits is not None:
            self._classes = _sum(self._classes, metrics.Classes.of(logits))
        low, high = np.searchsorted(self._keep, (self._seen, self._seen + len(block)))
        self._features[low:high] = block[torch.from_numpy(self._keep[low:high] - self._seen)].cpu()
        self._seen += len(block)


def judged(extractor: FeatureExtractor, batches: Iterable[torch.Tensor], total: int, *, kept: int = KEPT) -> Judged:
    """Judge a stream of `total` uint8 images; see `Sitting`, also for what is raised."""
    sitting = Sitting(extractor, total, kept)
    for batch in batches:
        sitting.see(batch)
    return sitting.verdict()


def _arrays(moments: metrics.Moments) -> list[np.ndarray]:
    return [values.cpu().numpy() for values in moments.gaussian]


def _sum(first, second):
    return second if first is None else first + second


def _joined(parts: list[tuple]) -> tuple[torch.Tensor, torch.Tensor | None]:
    features, logits = zip(*parts, strict=True)
    return torch.cat(features), None if logits[0] is None else torch.cat(logits)


def _portions(batches: list[torch.Tensor], size: int) -> list:
    """The same rows in tensors of `size`, and at the end a list of what is left, which is less than one."""
    rows = batches[0] if len(batches) == 1 else torch.cat(batches)
    whole = len(rows) - len(rows) % size
    return [*rows[:whole].split(size), [rows[whole:]] if whole < len(rows) else []] if whole else [batches]


def head(batches: Iterable[torch.Tensor], count: int) -> Iterator[torch.Tensor]:
    """The first `count` rows of a stream, which is asked for no more."""
    for batch in batches:
        yield batch[:count]
        count -= len(batch)
        if count <= 0:
            return


def some(features: torch.Tensor, count: int) -> torch.Tensor:
    """`count` of the features (n, d), or all: always the same ones, drawn at random.

    Not evenly spaced: MNIST's training set alternates between two groups of writers, and every 20th is of one alone.
    """
    order = torch.randperm(len(features), generator=generator("judging", "some"))
    return features[order[:count].sort().values]


def on_quick_device(features: torch.Tensor) -> torch.Tensor:
    """The features where all pairs of them are quickly compared."""
    return features.cuda() if torch.cuda.is_available() else features


def combined(parts: Sequence[Judged]) -> Judged:
    """Parts judged apart, as by several processes that share the sample indices, as one set in the order given."""
    if len(parts) == 1:
        return parts[0]
    moments = [metrics.Moments(p.n, torch.from_numpy(p.mu), torch.from_numpy(p.cov) * (p.n - 1)) for p in parts]
    whole = sum(moments[1:], moments[0])
    features = torch.cat([part.features for part in parts]) if parts[0].features is not None else None
    classes = sum((part.classes for part in parts[1:]), parts[0].classes) if parts[0].classes else None
    return Judged(whole.n, *_arrays(whole), features, classes)


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
