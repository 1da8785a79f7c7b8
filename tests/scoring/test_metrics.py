from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onestep_bench.errors import OnestepError
from onestep_bench.scoring import metrics
from onestep_bench.scoring.metrics import (
    Classes,
    class_gap,
    fd_infinity,
    feature_cosine,
    frechet_distance,
    frechet_from_moments,
    inception_score,
    kid,
    kid_subsets,
    moments,
    precision_recall,
    psnr,
)

REFERENCE = np.load(Path(__file__).parents[1] / "reference" / "metrics.npz")
REAL, FAKE = REFERENCE["features_real"], REFERENCE["features_fake"]

seeds = st.integers(0, 2**32 - 1)


def features(seed, n, d):
    random = np.random.default_rng(seed)
    return random.standard_normal((n, d)) @ random.standard_normal((d, d)) + random.standard_normal(d)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_equals_clean_fid(kind):
    expected = REFERENCE["cleanfid/frechet_distance"]
    assert frechet_distance(kind(REAL), kind(FAKE)) == pytest.approx(expected, rel=1e-8)


def test_moments_are_those_of_numpy():
    mu, cov = moments(torch.from_numpy(REAL))
    assert mu.dtype == cov.dtype == np.float64
    np.testing.assert_allclose(mu, REAL.mean(0, dtype=np.float64), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(cov, np.cov(REAL, rowvar=False), rtol=1e-12)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_diagonal_gaussians_have_a_closed_form(seed):
    random = np.random.default_rng(seed)
    (mu_a, mu_b), (std_a, std_b) = random.standard_normal((2, 6)), random.uniform(0, 2, (2, 6))
    std_a[:2] = 0  # a singular covariance
    expected = ((mu_a - mu_b) ** 2 + (std_a - std_b) ** 2).sum()
    distance = frechet_from_moments(mu_a, np.diag(std_a**2), mu_b, np.diag(std_b**2))
    assert distance == pytest.approx(expected, rel=1e-10)


@given(seeds, st.integers(0, 6), st.integers(0, 6))
@settings(max_examples=30, deadline=None)
def test_gaussians_of_shared_axes_have_a_closed_form_at_any_rank(seed, rank_a, rank_b):
    random = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(random.standard_normal((6, 6)))
    std_a, std_b = (np.where(np.arange(6) < rank, random.uniform(0.1, 2, 6), 0) for rank in (rank_a, rank_b))
    cov_a, cov_b = (axes * std**2 @ axes.T for std in (std_a, std_b))
    expected = pytest.approx(((std_a - std_b) ** 2).sum(), rel=1e-6, abs=1e-6)
    zero = np.zeros(6)
    assert frechet_from_moments(zero, cov_a, zero, cov_b) == expected
    assert frechet_from_moments(*map(torch.from_numpy, (zero, cov_a, zero, cov_b))) == expected


@given(seeds, st.integers(2, 30), st.integers(2, 30))
@settings(max_examples=30, deadline=None)
def test_symmetric_and_invariant_under_a_shared_rotation_at_any_rank(seed, n, m):
    d = 10
    a, b = features(seed, n, d), features(seed + 1, m, d)
    rotation = np.linalg.qr(features(seed + 2, d, d))[0]
    distance = frechet_distance(a, b)
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-8, abs=1e-8)
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(distance, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("n", [2, 5, 64, 200])
def test_identical_sets_are_at_distance_zero_at_any_rank(n):
    a = features(0, n, 64)
    assert 0 <= frechet_distance(a, a.copy()) < 1e-9 * np.trace(moments(a)[1])


def test_constant_features_leave_the_distance_of_means():
    assert frechet_distance(np.ones((5, 3)), np.zeros((7, 3))) == 3
    assert frechet_distance(np.ones((5, 1)), np.zeros((7, 1))) == 1


@pytest.mark.parametrize(
    ("a", "message"),
    [
        (REAL[:1], r"shape \(1, 64\).*n >= 2.*more samples"),
        (REAL[0], r"shape \(64,\).*need \(n, d\)"),
        (np.where(np.arange(len(REAL))[:, None] < 3, np.nan, REAL), "3 of 1200 feature rows hold NaN"),
        (REAL[:, :10], "width 10 and 64 differ; use one extractor"),
    ],
)
def test_bad_features_are_one_clear_line(a, message):
    with pytest.raises(OnestepError, match=message) as caught:
        frechet_distance(a, FAKE)
    assert "\n" not in str(caught.value)


def test_psnr_is_the_closed_form_and_capped_for_equal_images():
    dark, light = torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.full((3, 1, 4, 4), 51, dtype=torch.uint8)
    assert psnr(dark, light) == pytest.approx(20 * np.log10(255 / 51))
    assert psnr(dark, dark) == 99


def test_feature_cosine_is_taken_pair_by_pair():
    features = torch.eye(3)
    assert feature_cosine(features, 5 * features) == pytest.approx(1)
    assert feature_cosine(features, features.roll(1, 0)) == pytest.approx(0)


# ---- kernel and nearest-neighbour metrics


@pytest.fixture
def small_tiles(monkeypatch):
    """Many tiles a side, the last one short."""
    monkeypatch.setattr(metrics, "_TILE", 111)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("k", [3, 5])
def test_neighbour_metrics_are_exactly_the_reference(kind, k, small_tiles):
    found = precision_recall(kind(REAL), kind(FAKE), k)
    assert found == {name: float(REFERENCE[f"prdc/k{k}/{name}"]) for name in found}
    assert found.keys() == {"precision", "recall", "density", "coverage"}


def test_kid_is_the_reference(small_tiles):
    expected = float(REFERENCE["kid_full_unbiased"])
    assert kid(REAL, FAKE) == pytest.approx(expected, abs=1e-9, rel=0)
    assert kid(FAKE, torch.from_numpy(REAL)) == pytest.approx(expected, abs=1e-9, rel=0)


def test_kid_of_subsets_is_clean_fids():
    # clean-fid works in the features' float32.
    expected = float(REFERENCE["cleanfid/kernel_distance_seed0"])
    assert kid_subsets(REAL, FAKE) == pytest.approx(expected, abs=1e-8, rel=0)
    assert kid_subsets(REAL, FAKE, seed=1) != kid_subsets(REAL, FAKE)


@pytest.mark.parametrize("metric", [kid, precision_recall])
def test_tiles_do_not_change_a_metric(metric, monkeypatch):
    whole = metric(REAL[:300], FAKE[:200])
    monkeypatch.setattr(metrics, "_TILE", 7)
    assert metric(REAL[:300], FAKE[:200]) == pytest.approx(whole, rel=1e-12)


@given(seeds, st.integers(1, 6), st.integers(8, 40), st.integers(8, 40))
@settings(max_examples=20, deadline=None)
def test_neighbour_metrics_are_their_definitions(seed, k, n, m):
    real, fake = features(seed, n, 3), features(seed + 1, m, 3)
    to = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=-1)  # noqa: E731
    real_radii, fake_radii = (np.sort(to(points, points), 1)[:, k] for points in (real, fake))
    between = to(real, fake)
    assert precision_recall(real, fake, k) == pytest.approx(
        {
            "precision": np.mean([(between[:, j] < real_radii).any() for j in range(m)]),
            "recall": np.mean([(between[i] < fake_radii).any() for i in range(n)]),
            "density": np.mean([(between[:, j] < real_radii).sum() / k for j in range(m)]),
            "coverage": np.mean([between[i].min() < real_radii[i] for i in range(n)]),
        }
    )


def test_kid_of_halves_of_one_set_is_about_zero_and_unbiased():
    values = [kid(*np.split(features(seed, 60, 4), 2)) for seed in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0 < max(values)


@pytest.mark.parametrize("metric", [kid, precision_recall])
def test_bad_sets_of_features_are_one_clear_line(metric, refuses):
    with refuses("width 10 and 64 differ", "one extractor"):
        metric(REAL[:, :10], FAKE)
    with refuses("shape (1, 64)", "n >= 2"):
        metric(REAL, FAKE[:1])
    with refuses("1 of 1000 feature rows hold NaN"):
        metric(REAL, np.where(np.arange(1000)[:, None] == 7, np.inf, FAKE))


def test_neighbours_need_more_images_than_there_are_neighbours(refuses):
    with refuses("5 neighbours need more than 5 images in each set, not 5"):
        precision_recall(REAL, FAKE[:5])


def test_fd_infinity_takes_the_bias_away():
    random = np.random.default_rng(0)
    samples = random.standard_normal((4000, 32))
    shift = np.full(32, 0.1)
    raw = frechet_from_moments(*moments(samples), shift, np.eye(32))
    assert fd_infinity(samples, shift, np.eye(32)) == pytest.approx(0.32, abs=0.03)
    assert raw > 0.38  # the distance of the means is 0.32, the rest is bias
    assert fd_infinity(samples, shift, np.eye(32)) == fd_infinity(samples, shift, np.eye(32))


def test_fd_infinity_is_the_line_through_distances_of_random_subsets():
    random, sizes = np.random.default_rng(0), np.linspace(128, 1200, 15).astype(int)
    subsets = [REAL[random.permutation(1200)[:size]] for size in sizes]
    distances = [frechet_distance(subset, FAKE) for subset in subsets]
    expected = pytest.approx(np.polyfit(1 / sizes, distances, 1)[1], rel=1e-5)
    assert fd_infinity(REAL, *moments(FAKE)) == expected
    assert fd_infinity(torch.from_numpy(REAL), *moments(FAKE)) == expected


def test_fd_infinity_refuses_to_extrapolate_from_too_few(refuses):
    with refuses("127 samples of width 32 are too few", "draw 128"):
        fd_infinity(np.zeros((127, 32)), np.zeros(32), np.eye(32))


# ---- from class logits


def test_inception_score_has_closed_forms():
    assert inception_score(torch.zeros(6, 5)) == pytest.approx(1)
    assert inception_score(1e6 * torch.eye(5)) == pytest.approx(5)
    assert inception_score(1e6 * torch.eye(5)[[0, 0, 1]]) == pytest.approx(
        np.exp(-(2 * np.log(2 / 3) + np.log(1 / 3)) / 3)
    )


def test_class_gap_is_the_total_variation_of_shares():
    one, two = (Classes.of(torch.eye(4)[rows]).shares for rows in ([0, 0, 1, 1], [1, 2, 3, 3]))
    assert one.tolist() == [0.5, 0.5, 0, 0]
    assert class_gap(one, two) == 0.75
    assert class_gap(one, one) == 0


def test_classes_of_parts_add_up_and_outlive_a_file():
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    whole, both = Classes.of(logits), Classes.of(logits[:20]) + Classes.of(logits[20:])
    p = logits.double().softmax(1)
    assert (whole.n, whole.assigned.tolist()) == (50, torch.bincount(logits.argmax(1), minlength=4).tolist())
    assert whole.entropy == pytest.approx(-(p * p.log()).sum().item())
    for other in (both, Classes.from_tensors(both.tensors())):
        assert (other.n, other.entropy) == (50, pytest.approx(whole.entropy))
        assert torch.equal(other.assigned, whole.assigned)
        torch.testing.assert_close(other.probability, p.sum(0))
        assert other.inception_score == pytest.approx(inception_score(logits))
