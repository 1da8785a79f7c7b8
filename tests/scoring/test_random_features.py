"""The judge that was never trained: the same everywhere, for any picture, and it sees what was done to one."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from onestep_bench.data.loading import load
from onestep_bench.data.registry import Dataset
from onestep_bench.data.streams import images_at
from onestep_bench.scoring import evaluation, references
from onestep_bench.scoring.judges import load_extractor, random_features
from onestep_bench.scoring.metrics import frechet_distance


@pytest.fixture(scope="module")
def judge():
    return load_extractor("random-features")


@pytest.fixture(scope="module")
def digits():
    return load("digits").images


def colour_noise(n, side, seed=0):
    return torch.randint(256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_same_on_every_machine(judge):
    """Whoever changes weights or network changes the stream of bits that `_signs` names, and these numbers."""
    assert judge.digest == "165fa5688989f6bac925710871116bb3782dd9dd2c6d205b2d9adcc2ce263e1c"
    assert judge.protocol == f"random-features@{judge.digest[:12]}; no resize"
    ramp = torch.arange(3 * 64).reshape(1, 3, 8, 8).to(torch.uint8)
    expected = [0.133948, 0.884271, 0.170487, 0.0, 0.0, 0.257056, 0.0, 0.151915]
    torch.testing.assert_close(judge(ramp)[0, ::73], torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", [1, 2, 5, 8, 33])
def test_it_takes_any_size_in_colour_and_grey(judge, side):
    colour = colour_noise(3, side)
    features = judge(colour)
    assert features.shape == (3, judge.dim) == (3, 512)
    assert features.isfinite().all()
    grey = colour[:, :1]
    assert torch.equal(judge(grey), judge(grey.expand(-1, 3, -1, -1)))


def test_features_do_not_depend_on_the_batch(judge, digits):
    together = judge(digits[:600])
    assert torch.equal(judge(digits[:600].flip(0)).flip(0), together)
    assert torch.equal(torch.cat([judge(image[None]) for image in digits[:5]]), together[:5])


def test_every_place_and_every_scale_tells_pictures_apart(judge):
    spread = judge(colour_noise(64, 16)).std(0).reshape(random_features.SCALES, random_features.CHANNELS, -1)
    assert (spread.mean(1) > 0.01).all()


def noisy(images, level):
    noise = np.random.default_rng(0).normal(size=images.shape)
    return np.clip(images + level * noise, 0, 255)


# What is done to the digits, and how much of it, from nothing to much.
DAMAGE = {
    "noise": (noisy, (0, 20, 60, 120)),
    "blur": (lambda images, width: gaussian_filter(images, (0, 0, width, width)), (0, 0.5, 0.8, 1.2)),
    "shift": (lambda images, pixels: np.roll(images, pixels, -1), (0, 1, 2, 3)),
    "brightness": (lambda images, levels: np.minimum(images + levels, 255), (0, 16, 48, 96)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_distance_grows_with_damage(judge, digits, kind):
    damaged, amounts = DAMAGE[kind]
    reference = judge(digits)
    pictures = (torch.from_numpy(damaged(digits.numpy().astype(float), amount).astype(np.uint8)) for amount in amounts)
    distances = [frechet_distance(judge(images), reference) for images in pictures]
    assert distances == sorted(distances)
    assert distances[0] < 1e-6
    assert distances[1] > 0.1


def test_images_without_labels_are_scored_by_it(store_folder, tmp_path):
    images = colour_noise(40, 12).permute(0, 2, 3, 1).numpy()
    for name, part in (("made", images[:20]), ("real", images[20:])):
        np.savez(tmp_path / name, part)
    real = Dataset("real", torch.cat(list(images_at(tmp_path / "real.npz").batches())), None, "0123456789abcdef")
    row, other = evaluation.evaluate_images(images_at(tmp_path / "made.npz"), real, features="random-features")["rows"]
    assert row["fid"] > 0
    assert (row["features"], other["features"]) == ("random-features", "pixels")
    assert "random-features" in references.names()
