from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onestep_bench.errors import OnestepError
from onestep_bench.metrics import feature_cosine, frechet_distance, frechet_from_moments, moments, psnr

REFERENCE = np.load(Path(__file__).parent / "reference" / "metrics.npz")
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
