"""Images judged: what the features an extractor finds in them say, against a reference."""

from dataclasses import dataclass

import numpy as np
import torch

from onestep_bench import metrics, scores

NEIGHBOURS = 5


@dataclass(frozen=True)
class Judged:
    """What a judge makes of a set of images. features: (n, d); logits: (n, classes)."""

    features: torch.Tensor
    logits: torch.Tensor
    mu: np.ndarray
    cov: np.ndarray

    @classmethod
    def of(cls, features: torch.Tensor, logits: torch.Tensor) -> "Judged":
        """From the features and logits of all images. Raises as `metrics.moments` does."""
        return cls(features, logits, *metrics.moments(features))


def score(samples: Judged, reference: Judged) -> dict:
    """`fid`, `warning` and the `scores.QUALITIES` of samples against a reference: fields of a score row."""
    qualities = dict.fromkeys(scores.QUALITIES)
    qualities |= {
        "fd_infinity": metrics.fd_infinity(samples.features, reference.mu, reference.cov),
        "kid": metrics.kid(samples.features, reference.features),
        "inception_score": metrics.inception_score(samples.logits),
        "class_gap": metrics.class_gap(*(metrics.class_shares(judged.logits) for judged in (samples, reference))),
    }
    if min(len(samples.features), len(reference.features)) > NEIGHBOURS:
        qualities |= metrics.precision_recall(reference.features, samples.features, NEIGHBOURS)
    fid = metrics.frechet_from_moments(samples.mu, samples.cov, reference.mu, reference.cov)
    return {"fid": fid, **qualities, "warning": warning(len(samples.features), samples.mu.size)}


def warning(n: int, width: int) -> str:
    """Why Frechet distances of n samples with features of this width are not to be trusted, or an empty text."""
    if n <= width:
        return f"{n} samples cannot span {width} features: the Frechet distance is mostly bias; draw more"
    if n < 5 * width:
        return f"{n} samples are few for {width} features: the Frechet distance is biased upwards; draw {5 * width}"
    return ""
