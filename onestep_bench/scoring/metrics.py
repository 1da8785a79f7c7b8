"""Distances between sets of images, computed from their features (n, d)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg.lapack import dpstrf

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
    features = _checked(features).cpu().numpy()
    # As clean-fid does: the mean in the features' own precision, the covariance in double. A mean in double would
    # move the distance of float32 features in its seventh digit.
    return features.mean(axis=0).astype(np.float64), np.atleast_2d(np.cov(features, rowvar=False))


@dataclass(frozen=True)
class Moments:
    """Of n feature vectors: mean (d,), and scatter (d, d) = sum of (x - mean)(x - mean)^T; float64, on their device."""

    n: int
    mean: torch.Tensor
    scatter: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor) -> "Moments":
        """From features (n, d) of any precision."""
        features = features.double()
        mean = features.mean(0)
        return cls(len(features), mean, _gram(features - mean))

    def __add__(self, other: "Moments") -> "Moments":
        """Those of both sets together (Chan, Golub and LeVeque 1979)."""
        n, gap = self.n + other.n, other.mean - self.mean
        scatter = (self.scatter + other.scatter).addr_(gap, gap, alpha=self.n * other.n / n)
        return Moments(n, self.mean + gap * (other.n / n), scatter)

    @property
    def gaussian(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and unbiased covariance, for `frechet_from_moments`."""
        return self.mean, self.scatter / (self.n - 1)


def _gram(x: torch.Tensor) -> torch.Tensor:
    """x^T x. On a CPU by numpy, which knows that it is symmetric and computes half of it."""
    if x.device.type != "cpu":
        return x.T @ x
    x = x.numpy()
    return torch.from_numpy(x.T @ x)


def fd_infinity(features: Features, mu: np.ndarray, cov: np.ndarray) -> float:
    """Frechet distance to a Gaussian (mu, cov), extrapolated to infinitely many samples.

    The bias of the distance falls as 1/n: a line through the distances of random subsets over 1/n is read off at 0
    (Chong and Forsyth 2020, arXiv 1911.07023). As in the paper there are 15 subsets, evenly spaced from a tenth of the
    n there are (5,000 of 50,000) to all of them. They are the same at every call. None has fewer than 2 d features,
    below which the bias is no straight line. The result can be below zero: it is an estimate. In float64, on the
    features' device.
    Raises OnestepError as `moments` does, and for fewer than 4 d features.
    """
    features = _checked(features)
    n, width = features.shape
    if n < 4 * width:
        raise OnestepError(f"{n} samples of width {width} are too few to extrapolate from; draw {4 * width}")
    sizes = np.linspace(max(n // 10, 2 * width), n, 15).astype(int)
    random = np.random.default_rng(0)
    subsets = (features[torch.from_numpy(random.permutation(n)[:size])] for size in sizes)
    against = [torch.as_tensor(value, device=features.device) for value in (mu, cov)]
    distances = [frechet_from_moments(*Moments.of(subset).gaussian, *against) for subset in subsets]
    return float(np.polyfit(1 / sizes, distances, 1)[1])


def frechet_from_moments(mu_a: Features, cov_a: Features, mu_b: Features, cov_b: Features) -> float:
    """Squared Frechet distance between two Gaussians: |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    Means (d,), covariances (d, d), which may be singular: float64, arrays, or tensors on one device. Dowson and
    Landau 1982. Raises OnestepError if the widths differ.
    """
    mu_a, cov_a, mu_b, cov_b = map(torch.as_tensor, (mu_a, cov_a, mu_b, cov_b))
    if mu_a.shape != mu_b.shape:
        raise OnestepError(f"features of width {len(mu_a)} and {len(mu_b)} differ; use one extractor for both")
    gap = mu_a - mu_b
    distance = gap @ gap + cov_a.trace() + cov_b.trace() - 2 * _trace_sqrt_product(cov_a, cov_b)
    return max(float(distance), 0.0)  # rounding can take equal Gaussians below zero


def _trace_sqrt_product(cov_a: torch.Tensor, cov_b: torch.Tensor) -> float:
    """tr (A B)^(1/2), as the sum of the singular values of F_a^T F_b where A = F_a F_a^T and B = F_b F_b^T."""
    factor_a, factor_b = _cholesky(cov_a), _cholesky(cov_b)
    if factor_a is not None and factor_b is not None:
        # Squaring halves the time. It would turn vanishing singular values into noise of size sqrt(eps),
        # but at full rank there are none.
        squares = torch.linalg.eigvalsh(_gram(factor_a.T @ factor_b))
        return squares.clamp_(min=0).sqrt_().sum().item()
    cross = _factor(cov_a.cpu().numpy()).T @ _factor(cov_b.cpu().numpy())
    return float(np.linalg.svd(cross, compute_uv=False).sum())


def _cholesky(cov: torch.Tensor) -> torch.Tensor | None:
    """The Cholesky factor, or None of a matrix that is singular, exactly or within rounding."""
    factor, failed = torch.linalg.cholesky_ex(cov)
    pivots = factor.diagonal().square()
    return factor if not failed and pivots.min() > _negligible(len(cov)) * pivots.max() else None


def _factor(cov: np.ndarray) -> np.ndarray:
    """F (d, r) with F F^T = cov of rank r, by Cholesky's method with pivots: a fraction of the time of eigenvectors."""
    lower, order, rank, _ = dpstrf(cov, tol=_negligible(len(cov)) * cov.diagonal().max(), lower=1)
    factor = np.zeros((len(cov), rank))
    factor[order - 1] = np.tril(lower[:, :rank])
    return factor


def _negligible(width: int) -> float:
    return width * np.finfo(np.float64).eps


# ---- kernel and nearest-neighbour metrics: n x m numbers, never more than one tile of them at a time

_TILE = 2048  # rows and columns of a tile: 32 MiB of float64


def kid(features_a: Features, features_b: Features) -> float:
    """Kernel distance between two feature sets, (n, d) and (m, d): the unbiased squared MMD over all pairs.

    The kernel is (x.y / d + 1)^3, so with Inception features this is KID (Binkowski et al. 2018, arXiv 1801.01401)
    without the spread of random subsets. It can be below zero. Raises as `frechet_distance` does.
    """
    a, b = _same_width(features_a, features_b)
    within = sum(_kernel_sum(x, x, skip_self=True) / (len(x) * (len(x) - 1)) for x in (a, b))
    return within - 2 * _kernel_sum(a, b) / (len(a) * len(b))


def kid_subsets(
    features_a: Features, features_b: Features, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> float:
    """KID as the field usually quotes it: the mean of `kid` over random subsets of both sets, without replacement.

    With seed s it is the number of clean-fid's kernel_distance(a, b) after numpy.random.seed(s). Where all pairs can be
    had, `kid` is the same estimate with less spread. Raises as `kid` does.
    """
    a, b = _same_width(features_a, features_b)
    random = np.random.RandomState(seed)
    size = min(size, len(a), len(b))

    def drawn(features: torch.Tensor) -> torch.Tensor:
        return features[torch.from_numpy(random.choice(len(features), size, replace=False))]

    # b before a, for clean-fid draws in that order.
    values = [kid(y, x) for x, y in ((drawn(b), drawn(a)) for _ in range(subsets))]
    return float(np.mean(values))


def _kernel_sum(a: torch.Tensor, b: torch.Tensor, *, skip_self: bool = False) -> float:
    """Sum over all pairs. skip_self: a and b are one set; its sum is symmetric, and no point is its own partner."""
    total = torch.zeros((), dtype=torch.float64, device=a.device)
    for rows, x in _tiles(a):
        for columns, y in _tiles(b):
            if skip_self and columns.start < rows.start:
                continue
            kernel = (x @ y.T / x.shape[1] + 1).pow_(3)
            if skip_self and rows == columns:
                kernel.fill_diagonal_(0)
            total += kernel.sum() * (2 if skip_self and rows != columns else 1)
    return total.item()


def precision_recall(real: Features, fake: Features, k: int = 5) -> dict[str, float]:
    """Precision, recall, density and coverage of `fake` (m, d) against `real` (n, d).

    A point's ball reaches to its k-th nearest neighbour among its own kind, without the surface. precision: share of
    fakes in any real ball; recall: share of reals in any fake ball (Kynkaanniemi et al. 2019, arXiv 1904.06991).
    density: real balls a fake lies in, over k; coverage: share of reals whose ball holds a fake (Naeem et al. 2020,
    arXiv 2002.09797). In float64, on the features' device. Raises OnestepError as `frechet_distance` does, and for
    sets of k or fewer.
    """
    real, fake = _same_width(real, fake)
    if min(len(real), len(fake)) <= k:
        raise OnestepError(f"{k} neighbours need more than {k} images in each set, not {min(len(real), len(fake))}")
    real_radii, fake_radii = _squared_radii(real, k), _squared_radii(fake, k)
    balls = torch.zeros(len(fake), dtype=torch.int64, device=real.device)  # real balls that a fake lies in
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered = torch.zeros_like(recalled)
    for rows, x in _tiles(real):
        for columns, y in _tiles(fake):
            distances = _squared_distances(x, y)
            inside = distances < real_radii[rows, None]
            balls[columns] += inside.sum(0)
            covered[rows] |= inside.any(1)
            recalled[rows] |= (distances < fake_radii[columns]).any(1)
    return {
        "precision": (balls > 0).double().mean().item(),
        "recall": recalled.double().mean().item(),
        "density": balls.double().mean().item() / k,
        "coverage": covered.double().mean().item(),
    }


def nearest(points: Features, others: Features, *, skip_self: bool = False) -> torch.Tensor:
    """Distance (n,) float64 of each of the points (n, d) to the nearest of others (m, d).

    skip_self: they are one set, and no point is its own neighbour. Raises as `frechet_distance` does.
    """
    points, others = _same_width(points, others)
    found = []
    for rows, x in _tiles(points):
        least = torch.full((len(x),), torch.inf, dtype=torch.float64, device=points.device)
        for columns, y in _tiles(others):
            distances = _squared_distances(x, y)
            if skip_self and rows == columns:
                distances.fill_diagonal_(torch.inf)
            least = torch.minimum(least, distances.min(1).values)
        found.append(least)
    return torch.cat(found).sqrt()


def neighbour_ratio(to_train: torch.Tensor, to_held_out: torch.Tensor) -> float:
    """Median over images of the distance to the nearest training image over that to the nearest held-out image.

    Both (n,), as `nearest` gives them. 0 where more than half of the images are in the training set.
    """
    # Where both are 0, an image is in both sets, and tells nothing.
    known = (to_train > 0) | (to_held_out > 0)
    return float((to_train[known] / to_held_out[known]).median()) if known.any() else float("nan")


def _squared_radii(points: torch.Tensor, k: int) -> torch.Tensor:
    """Squared distance (n,) of each point to its k-th nearest other point."""
    radii = []
    for rows, x in _tiles(points):
        nearest = torch.full((len(x), k), torch.inf, dtype=torch.float64, device=points.device)
        for columns, y in _tiles(points):
            distances = _squared_distances(x, y)
            if rows == columns:
                distances.fill_diagonal_(torch.inf)
            nearest = torch.cat([nearest, distances], 1).topk(k, largest=False).values
        radii.append(nearest[:, -1])
    return torch.cat(radii)


def _squared_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    squares = x.square().sum(1)[:, None] + y.square().sum(1)
    return squares.addmm_(x, y.T, alpha=-2).clamp_(min=0)


def _tiles(features: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows in float64, with where they stand: a float32 set is never held twice."""
    for start in range(0, len(features), _TILE):
        rows = slice(start, min(start + _TILE, len(features)))
        yield rows, features[rows].double()


def _same_width(a: Features, b: Features) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = _checked(a), _checked(b)
    if a.shape[1] != b.shape[1]:
        raise OnestepError(f"features of width {a.shape[1]} and {b.shape[1]} differ; use one extractor for both")
    return a, b


def _checked(features: Features) -> torch.Tensor:
    """The features as a tensor on their device. Raises OnestepError unless there are two finite rows or more."""
    features = torch.as_tensor(features).detach()
    if features.ndim != 2 or len(features) < 2:
        raise OnestepError(
            f"features have shape {tuple(features.shape)}; need (n, d) with n >= 2, so draw more samples"
        )
    bad = int((~features.isfinite()).any(1).sum())
    if bad:
        raise OnestepError(f"{bad} of {len(features)} feature rows hold NaN or infinity; check their images")
    return features


# ---- from class logits


@dataclass(frozen=True)
class Classes:
    """Sums over n images: assigned (classes,) int64, images of each class; probability (classes,) float64, sum of
    p(class | image); entropy, sum of the entropies of p(class | image) in nats. Sums of two sets add up.
    """

    n: int
    assigned: torch.Tensor
    probability: torch.Tensor
    entropy: float

    @classmethod
    def of(cls, logits: torch.Tensor) -> "Classes":
        """From logits (n, classes)."""
        log_p = torch.as_tensor(logits).double().log_softmax(1)
        p = log_p.exp()
        entropy = -torch.special.xlogy(p, p).sum().item()
        assigned = torch.bincount(log_p.argmax(1), minlength=log_p.shape[1])
        return cls(len(log_p), assigned.cpu(), p.sum(0).cpu(), entropy)

    def __add__(self, other: "Classes") -> "Classes":
        return Classes(
            self.n + other.n,
            self.assigned + other.assigned,
            self.probability + other.probability,
            self.entropy + other.entropy,
        )

    @property
    def inception_score(self) -> float:
        """exp of the mean KL divergence between p(class | image) and p(class): see the function of this name."""
        marginal = self.probability / self.n
        return float(np.exp(-torch.special.xlogy(marginal, marginal).sum().item() - self.entropy / self.n))

    @property
    def shares(self) -> np.ndarray:
        """Share of the images (classes,) float64 assigned to each class."""
        return (self.assigned.double() / self.n).numpy()

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it as tensors, for a file."""
        return {
            "classified": torch.tensor(self.n),
            "assigned": self.assigned,
            "probability": self.probability,
            "entropy": torch.tensor(self.entropy, dtype=torch.float64),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> "Classes":
        """What `tensors` gave."""
        return cls(int(tensors["classified"]), tensors["assigned"], tensors["probability"], float(tensors["entropy"]))


def inception_score(logits: torch.Tensor) -> float:
    """exp of the mean KL divergence between p(class | image) and p(class), from logits (n, classes).

    Salimans et al. 2016, arXiv 1606.03498, over all images at once: splitting them, as is often done, only adds bias
    (Barratt and Sharma 2018, arXiv 1801.01973). Between 1 and the number of classes.
    """
    return Classes.of(logits).inception_score


def class_gap(shares_a: np.ndarray, shares_b: np.ndarray) -> float:
    """Total variation distance between two shares of classes: 0 where they are equal, 1 where no class is common."""
    return float(np.abs(shares_a - shares_b).sum() / 2)


# ---- pair by pair


def psnr(images_a: torch.Tensor, images_b: torch.Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of uint8 images (n, c, h, w), pair by pair; equal pairs count as 99 dB."""
    error = (images_a.double() - images_b.double()).square().flatten(1).mean(1)
    return float((10 * torch.log10(255**2 / error.clamp(min=1e-12))).clamp(max=99).mean())


def feature_cosine(features_a: torch.Tensor, features_b: torch.Tensor) -> float:
    """Mean cosine similarity of features (n, d), pair by pair."""
    return float(torch.cosine_similarity(features_a.double(), features_b.double(), dim=1).mean())
