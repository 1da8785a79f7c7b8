"""What real images score: a memoriser is caught, and what is new is left in peace."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onestep_bench import data
from onestep_bench.scoring import evaluation, judging, metrics, nearest, real, references
from onestep_bench.scoring.judging import judged

pytestmark = pytest.mark.usefixtures("store_folder")


@given(st.integers(2, 30), st.integers(2, 30), st.integers(0, 2**32 - 1))
def test_the_nearest_are_those_of_all_pairs(n, m, seed):
    random = np.random.default_rng(seed)
    points, others = random.normal(size=(n, 3)), random.normal(size=(m, 3))
    every = np.linalg.norm(points[:, None] - others[None], axis=2)
    np.testing.assert_allclose(metrics.nearest(points, others), every.min(1), rtol=1e-9)
    among = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag(np.full(n, np.inf))
    np.testing.assert_allclose(metrics.nearest(points, points, skip_self=True), among.min(1), rtol=1e-6)


@pytest.mark.parametrize("chunk", [7, 899])
def test_the_training_images_nearest_to_a_strip_are_found_among_all(monkeypatch, chunk):
    monkeypatch.setattr(nearest, "_CHUNK", chunk)
    train = data.load("digits")
    strip = train.images[[3, 400, 898]].clone()
    strip[:, 0, 0, 0] += 1
    images, index = nearest.nearest_training(strip, train)
    assert index == [3, 400, 898]
    assert torch.equal(images, train.images[index])


def test_a_ratio_of_neighbours_is_a_median_without_what_is_in_both_sets():
    to_train, to_held_out = torch.tensor([1.0, 2.0, 4.0, 0.0]), torch.tensor([2.0, 2.0, 2.0, 0.0])
    assert metrics.neighbour_ratio(to_train, to_held_out) == 1
    assert metrics.neighbour_ratio(torch.zeros(4), to_held_out) == 0


def scored(images, split, features):
    """A row's scores of images against a split of the digits."""
    against = data.load("digits", split=split)
    judge = references.judge(features, against)
    found = judged(judge, [images], len(images))
    return real.held_out(judge, against, found, len(images)) | {
        "fid": metrics.frechet_from_moments(found.mu, found.cov, *moments_of(judge, against))
    }


def moments_of(judge, against):
    reference = references.reference(judge, against)
    return reference.mu, reference.cov


@pytest.mark.parametrize("features", ["pixels", "digits"])
def test_a_memoriser_is_caught_by_the_gap_and_by_its_neighbours(features):
    train = data.load("digits").images
    near, far = (scored(train, split, features) for split in ("train", "test"))
    assert near["fid"] < 0.1 * far["fid"]  # the gap: at home in one split, and to the other as far as real images are
    assert far["fid"] == pytest.approx(far["floor"], rel=1e-5)
    assert far["nn_ratio"] == pytest.approx(0, abs=1e-6)  # rounding of the product differs between processors
    assert near["nn_ratio"] is None


@pytest.mark.parametrize("features", ["pixels", "digits"])
def test_new_images_are_as_near_to_the_training_set_as_held_out_ones(features):
    """Noise on images of both halves: as far from the one as from the other."""
    both = torch.cat([data.load("digits", split=split).images[:400] for split in ("train", "test")])
    noisy = (both + 25 * torch.randn(both.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255).byte()
    assert 0.75 < scored(noisy, "test", features)["nn_ratio"] < 1.25


def test_images_of_a_folder_are_scored_against_both_splits_by_both_judges():
    digits = data.load("digits")
    images = data.Images("copies", len(digits), digits.shape, lambda: iter(digits.images.split(100)))
    rows = evaluation.evaluate_images(images, digits)["rows"]
    assert [(row["split"], row["features"]) for row in rows] == [
        *(("train", judge) for judge in ("digits", "pixels")),
        *(("test", judge) for judge in ("digits", "pixels")),
    ]
    assert all(row["fid"] < 1e-6 for row in rows if row["split"] == "train")
    assert [row["nn_ratio"] for row in rows[:2]] == [None, None]
    assert [row["nn_ratio"] for row in rows[2:]] == pytest.approx([0, 0], abs=1e-6)


def test_some_of_a_set_that_alternates_are_of_both_kinds():
    kinds = torch.arange(4000) % 2
    chosen = judging.some(kinds[:, None].float(), 200)
    assert 80 < int(chosen.sum()) < 120
    assert torch.equal(chosen, judging.some(kinds[:, None].float(), 200))
    assert judging.some(kinds[:, None].float(), 5000).shape == (4000, 1)
    rows = judging.some(torch.arange(4000.0)[:, None], 200)[:, 0]
    assert bool((rows.diff() > 0).all())
    assert rows.max() > 3500  # from all of them, and not the first ones
