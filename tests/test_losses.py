"""Distances by name, and the velocity loss."""

import sys

import pytest
import torch

from onestep_bench import compat, losses
from onestep_bench.denoiser import flow_denoiser
from onestep_bench.losses import by_row, distance, pseudo_huber, same_dropout, velocity_loss, weighting


class Recorder(torch.nn.Module):
    """Stands for the LPIPS network: keeps what it was shown."""

    def forward(self, a, b):
        self.shown = (a, b)
        return (a - b).abs().mean((1, 2, 3))


@pytest.fixture
def pair():
    return torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()


def test_distances_are_means(pair):
    a, b = pair
    assert distance("l2")(a, b).item() == pytest.approx(((a - b) ** 2).mean().item())
    assert distance("l1")(a, b).item() == pytest.approx((a - b).abs().mean().item())
    assert distance("l1+l2")(a, b).item() == pytest.approx((distance("l1")(a, b) + distance("l2")(a, b)).item())


class Layered(torch.nn.Module):
    """Of the layers that LPIPS has: frozen convolutions, in-place ReLU, pooling, normalised features."""

    def __init__(self):
        super().__init__()
        layers = [torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(inplace=True), torch.nn.MaxPool2d(2)]
        self.layers = torch.nn.Sequential(*layers).eval().requires_grad_(False)

    def forward(self, a, b):
        a, b = (features / (features.norm(dim=1, keepdim=True) + 1e-10) for features in map(self.layers, (a, b)))
        return (a - b).square().sum(1, keepdim=True).mean((2, 3), keepdim=True)


@pytest.mark.parametrize("name", ["l2", "l1", "lpips", "lpips@224+l2"])
def test_a_distance_of_each_row_is_that_of_the_row_alone(name, pair, monkeypatch):
    network = Layered()
    monkeypatch.setattr(losses, "_lpips_network", lambda device: network)
    a, b = pair[0].clone().requires_grad_(), pair[1]
    found = by_row(distance(name), a, b)
    alone = torch.stack([distance(name)(a[row : row + 1], b[row : row + 1]) for row in range(len(a))])
    torch.testing.assert_close(found, alone)
    slopes = (torch.autograd.grad((torch.arange(4) * rows).sum(), a)[0] for rows in (found, alone))
    torch.testing.assert_close(*slopes)


def test_the_pseudo_huber_distance_is_smooth_at_0_and_the_norm_far_off():
    difference = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    difference[1] = 3e4
    difference.requires_grad_()
    found = pseudo_huber(difference, 0.5)
    assert found.tolist() == pytest.approx([0, 6e4 - 0.5])
    assert torch.autograd.grad(found[0], difference)[0].abs().max() == 0


def test_weightings_are_their_formulas(refuses):
    t, r = torch.tensor([2.0], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    expected = {"uniform": 1, "gap": 1 / 1.5, "root-gap": 1.5**-0.5, "karras": 4.25, "c-out-squared": 4.25}
    for name, value in expected.items():
        assert weighting(name)(t, r).item() == pytest.approx(value)
    assert weighting("c-out")(t, r).item() == pytest.approx(4.25**0.5)
    with refuses("'gab'", "did you mean 'gap'?"):
        weighting("gab")


def test_a_function_is_its_own_distance():
    assert distance(max) is max


def test_unknown_distances_are_named(refuses):
    with refuses("'lpisp'", "did you mean 'lpips'?"):
        distance("l2+lpisp")
    with refuses("'l2@224'"):
        distance("l2@224")


@pytest.mark.parametrize("channels", [1, 3])
def test_lpips_sees_colour_images_of_64_pixels(channels, pair, monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(losses, "_lpips_network", lambda device: recorder)
    a, b = (image[:, :channels] for image in pair)
    assert distance("lpips")(a, b).ndim == 0
    for seen, image in zip(recorder.shown, (a, b), strict=True):
        assert seen.shape == (4, 3, 64, 64)
        # Corners are aligned, so they stay what they were.
        torch.testing.assert_close(seen[..., ::63, ::63], image[..., ::7, ::7].expand(-1, 3, -1, -1))


def test_lpips_at_224_is_resized_by_pixel_centres(pair, monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(losses, "_lpips_network", lambda device: recorder)
    a, b = pair
    assert distance("lpips@224+l2")(a, b).ndim == 0
    for seen, image in zip(recorder.shown, (a, b), strict=True):
        assert seen.shape == (4, 3, 224, 224)
        # 8 pixels become 28 each: between the centres of two, at 3.5 pixels and at 17.5, lies their mean.
        torch.testing.assert_close(seen[..., :14, :14], image[..., :1, :1].expand(-1, -1, 14, 14))
        middle = seen[..., 27:29, 0].mean(-1)
        torch.testing.assert_close(middle, image[..., :2, 0].mean(-1))


@pytest.mark.parametrize("name", ["lpips@", "lpips@4", "lpips@big", "lpips@-64"])
def test_lpips_wants_a_side(name, refuses):
    with refuses(repr(name), "'lpips@224'"):
        distance(name)


def test_lpips_without_its_package_says_what_to_install(pair, monkeypatch, refuses):
    monkeypatch.setattr(compat, "import_torchvision", lambda: None)
    monkeypatch.setitem(sys.modules, "lpips", None)
    with refuses("'lpips'", "pip install"):
        distance("lpips")(*pair)


def test_velocity_loss_is_zero_for_the_true_velocity_only(pair):
    data, noise = pair
    t = torch.tensor([0.1, 0.4, 0.6, 0.9])

    class Known(torch.nn.Module):
        def forward(self, x, level, labels=None):
            torch.testing.assert_close(x, (1 - t).reshape(-1, 1, 1, 1) * data + t.reshape(-1, 1, 1, 1) * noise)
            return noise - data + self.error

    flow = flow_denoiser(Known())
    flow.net.error = 0.0
    assert velocity_loss(flow, data, noise, t).item() == 0
    flow.net.error = 0.5
    assert velocity_loss(flow, data, noise, t).item() == pytest.approx(0.25)


def test_the_same_dropout_every_call_and_other_dropout_afterwards():
    drop, ones = torch.nn.Dropout(0.5), torch.ones(100)
    with same_dropout(ones.device):
        first = drop(ones)
    assert torch.equal(drop(ones), first)
    assert not torch.equal(drop(ones), first)


@pytest.mark.slow
def test_compiled_networks_drop_the_same_with_gradients_and_without():
    torch.manual_seed(0)
    net = torch.compile(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 8)))
    x = torch.randn(4, 8)
    with torch.no_grad(), same_dropout(x.device):
        first = net(x)
    torch.testing.assert_close(net(x), first)
    assert not torch.allclose(net(x), first)


def test_the_pseudo_huber_distance_takes_its_constant_from_one_image_and_not_from_the_batch():
    draw = torch.Generator().manual_seed(0)
    a, b = 0.01 * torch.randn(2, 40, 1, 3, 3, generator=draw, dtype=torch.float64)
    c = 0.00054 * 9**0.5
    by_hand = (((a - b) ** 2).sum((1, 2, 3)) + c**2).sqrt() - c
    torch.testing.assert_close(distance("pseudo-huber")(a, b), by_hand.mean(), rtol=1e-9, atol=0)


def test_a_move_against_a_direction_has_it_as_its_gradient(pair):
    x, direction = pair[0].clone().requires_grad_(True), pair[1]
    loss = losses.moved(x, direction)
    assert loss.item() == pytest.approx((direction**2).mean().item() / 2)
    loss.backward()
    torch.testing.assert_close(x.grad, direction / x.numel(), rtol=1e-4, atol=1e-8)
