"""Distances between sets of images, computed from their features (n, d)."""

import numpy as np
import torch

from onestep_bench.errors import OnestepError

Features = np.ndarray | torch.Tensor


def frechet_distance(features_a: Features, features_b: Features) -> float:
    """Frechet distance between Gaussians fitted to two feature sets, (n, d) and (m, d).

    With Inception features this is FID (Heusel et al. 2017, arXiv 1706.08500).
    Raises OnestepError for fewer than two rows, values that are not finite, or different widths.
    """
    return frechet_from_moments(*moments(features_a), *moments(features_b))


def moments(features: Features) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and unbiased covariance (d, d) of features (n, d), float64.

    Raises OnestepError for fewer than two rows or values that are not finite.
    """
    if isinstance(features, torch.Tensor):
        features = features.detach().cpu().numpy()
    features = np.asarray(features)
    if features.ndim != 2 or len(features) < 2:
        raise OnestepError(f"features have shape {features.shape}; need (n, d) with n >= 2, so draw more samples")
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features)).any(axis=1).sum())
        raise OnestepError(f"{bad} of {len(features)} feature rows hold NaN or infinity; check their images")
    # As clean-fid does: the mean in the features' own precision, the covariance in double. A mean in double would
    # move the distance of float32 features in its seventh digit.
    return features.mean(axis=0).astype(np.float64), np.atleast_2d(np.cov(features, rowvar=False))


def frechet_from_moments(mu_a: np.ndarray, cov_a: np.ndarray, mu_b: np.ndarray, cov_b: np.ndarray) -> float:
    """Squared Frechet distance between two Gaussians: |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    Means (d,), covariances (d, d), which may be singular. Dowson and Landau 1982.
    Raises OnestepError if the widths differ.
    """
    if mu_a.shape != mu_b.shape:
        raise OnestepError(f"features of width {mu_a.size} and {mu_b.size} differ; use one extractor for both")
    gap = mu_a - mu_b
    distance = gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * _trace_sqrt_product(cov_a, cov_b)
    return max(float(distance), 0.0)  # rounding can take equal Gaussians below zero


def _trace_sqrt_product(cov_a: np.ndarray, cov_b: np.ndarray) -> float:
    """tr (A B)^(1/2), as the sum of the singular values of F_a^T F_b where A = F_a F_a^T and B = F_b F_b^T."""
    (factor_a, full_a), (factor_b, full_b) = _factor(cov_a), _factor(cov_b)
    cross = factor_a.T @ factor_b
    if full_a and full_b:
        # Squaring halves the time. It would turn vanishing singular values into noise of size sqrt(eps),
        # but at full rank there are none.
        return float(np.sqrt(np.linalg.eigvalsh(cross.T @ cross).clip(0)).sum())
    return float(np.linalg.svd(cross, compute_uv=False).sum())


def _factor(cov: np.ndarray) -> tuple[np.ndarray, bool]:
    """F (d, r) with F F^T = cov of rank r, and whether r = d: Cholesky where possible, else eigenvectors."""
    negligible = len(cov) * np.finfo(np.float64).eps
    factor = _cholesky(cov, negligible)
    if factor is not None:
        return factor, True
    values, vectors = np.linalg.eigh(cov)
    kept = values > negligible * max(values[-1], 0)
    return vectors[:, kept] * np.sqrt(values[kept]), False


def _cholesky(cov: np.ndarray, negligible: float) -> np.ndarray | None:
    """The Cholesky factor, or None of a matrix that is singular, exactly or within rounding."""
    try:
        factor = np.linalg.cholesky(cov)
    except np.linalg.LinAlgError:
        return None
    pivots = np.diagonal(factor) ** 2
    return factor if pivots.min() > negligible * pivots.max() else None


def psnr(images_a: torch.Tensor, images_b: torch.Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of uint8 images (n, c, h, w), pair by pair; equal pairs count as 99 dB."""
    error = (images_a.double() - images_b.double()).square().flatten(1).mean(1)
    return float((10 * torch.log10(255**2 / error.clamp(min=1e-12))).clamp(max=99).mean())


def feature_cosine(features_a: torch.Tensor, features_b: torch.Tensor) -> float:
    """Mean cosine similarity of features (n, d), pair by pair."""
    return float(torch.cosine_similarity(features_a.double(), features_b.double(), dim=1).mean())
