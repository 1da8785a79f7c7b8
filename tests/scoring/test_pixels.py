"""The judge without a network: blocks of pixels, grey in 64 numbers and colour in 192."""

import pytest
import torch

from onestep_bench.data.loading import load
from onestep_bench.data.pixels import to_unit
from onestep_bench.data.registry import Dataset
from onestep_bench.scoring import references
from onestep_bench.scoring.judges import load_extractor
from onestep_bench.scoring.metrics import frechet_distance


def noise(channels, side, count=5):
    random = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, channels, side, side), dtype=torch.uint8, generator=random)


def data_set(channels, side):
    return Dataset("noise", noise(channels, side), None, f"{channels:08d}{side:08d}")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [4, 8, 28, 32])
def test_it_takes_any_size_grey_and_colour(channels, side):
    judge = references.judge("pixels", data_set(channels, side))
    features = judge(noise(channels, side))
    assert features.shape == (5, judge.dim) == (5, 64 * channels)
    assert features.dtype == torch.float32
    assert judge.logits(noise(channels, side)) is None


def test_an_8x8_picture_is_its_pixels_and_a_larger_one_their_means():
    grey, colour = noise(1, 8), noise(3, 32)
    torch.testing.assert_close(references.judge("pixels", data_set(1, 8))(grey), to_unit(grey).flatten(1))
    means = to_unit(colour).reshape(5, 3, 8, 4, 8, 4).mean((3, 5)).flatten(1)
    torch.testing.assert_close(references.judge("pixels", data_set(3, 32))(colour), means)


def test_grey_and_colour_are_two_protocols(refuses):
    grey, colour = (references.judge("pixels", data_set(channels, 8)) for channels in (1, 3))
    assert grey.digest != colour.digest
    assert grey.protocol == f"pixels@{grey.digest[:12]}, grey; means of 8x8 blocks"
    with refuses("'pixels' judge expects uint8 (n, 1, h, w)", "(5, 3, 8, 8)"):
        grey(noise(3, 8))
    assert torch.equal(colour(noise(1, 8)), colour(noise(1, 8).expand(-1, 3, -1, -1)))


def test_it_is_the_same_in_every_batch():
    judge, images = load_extractor("pixels"), noise(3, 28, 300)
    assert torch.equal(torch.cat([judge(images[:7]), judge(images[7:])]), judge(images))


def test_it_sees_what_is_done_to_digits():
    digits = load("digits")
    judge = references.judge("pixels", digits)
    reference = judge(digits.images)
    shifted = [frechet_distance(judge(digits.images.roll(pixels, -1)), reference) for pixels in (0, 1, 2)]
    assert shifted[0] < 1e-6 < shifted[1] < shifted[2]
