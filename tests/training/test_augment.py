"""EDM's augmentation: against the released pipeline's images, and where a closed form is known."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from onestep_bench.seeds import Draw
from onestep_bench.training import augment
from onestep_bench.training.augment import Augment, Warp, drawn
from onestep_bench.training.source import Source

FIELDS = ("mirrored", "upended", "scale", "angle", "stretch", "direction", "right", "down")


def warp(count=1, **given):
    """The same warp for all; nothing but what is given."""
    values = {name: torch.full((count,), float(given.get(name, 0))) for name in FIELDS}
    return Warp(**values | {name: values[name] > 0 for name in ("mirrored", "upended")})


def images(height=8, width=8):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def warped(given, **how):
    return Augment(*given.shape[2:], "cpu")(given, warp(len(given), **how))


def draw(rows=slice(0, 64), step=0, batch_size=64):
    return Draw(0, step, batch_size=batch_size, rows=rows, progress=0.0)


def test_images_and_labels_are_those_of_the_released_pipeline():
    with np.load(Path(__file__).parents[1] / "reference" / "edm_augment.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    given = Warp(**{name: arrays[f"warp/{name}"] for name in FIELDS})
    given = Warp(**vars(given) | {"mirrored": given.mirrored > 0, "upended": given.upended > 0})
    result = Augment(*arrays["images"].shape[2:], "cpu")(arrays["images"], given)
    torch.testing.assert_close(result, arrays["warped"], rtol=0, atol=1e-4)
    torch.testing.assert_close(given.labels(), arrays["labels"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(8, 8), (6, 10), (28, 28)])
def test_nothing_done_is_nothing_seen_or_told(shape):
    given = images(*shape)
    torch.testing.assert_close(warped(given), given, rtol=0, atol=1e-4)
    assert not warp().labels().any()


def test_mirrored_and_upended():
    given = images()
    torch.testing.assert_close(warped(given, mirrored=1), given.flip(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(warped(given, upended=1), given.flip(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(warp(mirrored=1).labels()[0, :2], torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(warp(upended=1).labels()[0, :2], torch.tensor([0.0, 1.0]))


def test_shifted_by_whole_pixels_with_the_reflection_coming_in():
    given = images(8, 16)
    # An eighth of 16 is 2 pixels to the right, twice an eighth of 8 as many down.
    result = warped(given, right=1, down=2)
    padded = torch.nn.functional.pad(given, (2, 0, 2, 0), mode="reflect")[..., :8, :16]
    torch.testing.assert_close(result, padded, rtol=0, atol=1e-5)
    torch.testing.assert_close(warp(right=1, down=2).labels()[0, -2:], torch.tensor([1.0, 2.0]))


def smooth(turns=0):
    """A picture with no symmetry that varies slowly, turned by quarters."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 16)] * 2, indexing="ij")
    return torch.rot90(torch.exp(-3 * (x - 0.2) ** 2 - 6 * (y + 0.3) ** 2), turns)[None, None]


@pytest.mark.parametrize("quarters", [1, 2, -1])
def test_turned_by_quarters(quarters):
    result = warped(smooth(), angle=quarters * math.pi / 2)
    torch.testing.assert_close(result, smooth(quarters), rtol=0, atol=0.03)
    told = warp(angle=quarters * math.pi / 2).labels()[0, 3:5]
    torch.testing.assert_close(told, torch.tensor([[0, 0], [-1, 1], [-2, 0], [-1, -1]])[quarters].float())


def blob(width, height):
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 16)] * 2, indexing="ij")
    return torch.exp(-(x**2) / (2 * width**2) - y**2 / (2 * height**2))[None, None]


@pytest.mark.parametrize(
    ("how", "width", "height"),
    [
        ({"scale": 5.0}, 0.5, 0.5),  # a fifth of an octave each
        ({"scale": -2.5}, 0.177, 0.177),
        ({"stretch": 5.0}, 0.5, 0.125),
        ({"stretch": 5.0, "direction": math.pi / 2}, 0.125, 0.5),
        ({"stretch": 5.0, "direction": math.pi / 2, "angle": math.pi / 2}, 0.125, 0.5),  # stretched after it is turned
    ],
)
def test_scaled_and_stretched_about_the_middle(how, width, height):
    middle = (..., slice(4, 12), slice(4, 12))  # reflections come in outside
    torch.testing.assert_close(warped(blob(0.25, 0.25), **how)[middle], blob(width, height)[middle], rtol=0, atol=0.03)


def test_each_is_done_with_its_probability_and_told():
    rows = 4000
    found = drawn(draw(slice(0, rows), batch_size=rows), 0.12)
    labels = found.labels()
    shares = (labels != 0).float().mean(0)
    # The second label of a stretch is 0 along the axis.
    assert shares.tolist() == pytest.approx([0.5, 0.06, 0.12, 0.12, 0.12, 0.12, 0.06, 0.12, 0.12], abs=0.03)
    # Where it is stretched, every second time along an axis.
    stretched = found.stretch != 0
    assert (found.direction[stretched] == 0).float().mean().item() == pytest.approx(0.5, abs=0.08)
    assert found.scale[found.scale != 0].std().item() == pytest.approx(1, abs=0.1)
    assert found.angle.abs().max() <= math.pi
    # Each by itself: two at once as often as chance has it.
    both = ((labels[:, 2] != 0) & (labels[:, 7] != 0)).float().mean().item()
    assert both == pytest.approx(0.12**2, abs=0.008)


def test_with_no_probability_nothing_is_done():
    assert not drawn(draw(), 0.0).labels().any()


def test_micro_batches_see_what_one_batch_would():
    pixels = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    source = Source(pixels, None, None, "cpu")
    whole = source.batch(draw(step=3), True, 0.5)
    parts = [source.batch(draw(slice(start, start + 16), step=3), True, 0.5) for start in range(0, 64, 16)]
    torch.testing.assert_close(torch.cat([part.images for part in parts]), whole.images, rtol=0, atol=1e-5)
    assert torch.equal(torch.cat([part.augment for part in parts]), whole.augment)
    assert not torch.equal(source.batch(draw(step=4), True, 0.5).augment, whole.augment)
    assert whole.augment.shape == (64, augment.LABELS)
    assert source.batch(draw(step=3), True).augment is None
