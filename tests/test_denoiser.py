"""Every native prediction answers for x0, eps and velocity, on its own path and on any other."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onestep_bench.denoiser import (
    DDPM,
    EDM,
    NOISE_END,
    Denoiser,
    Flow,
    IdealDenoiser,
    counting,
    ddpm_denoiser,
    edm_denoiser,
    flow_denoiser,
    native_from,
)
from onestep_bench.networks.build import sized
from onestep_bench.paths import FLOW, VE, VP, alphas_cumprod, spread

ABAR = alphas_cumprod("linear", 50)
PATHS = [FLOW, VE, VP(ABAR), VP(alphas_cumprod("cosine", 20))]
WANTS = ["x0", "eps", "velocity"]


class Probe(torch.nn.Module):
    """A smooth network that remembers how it was asked."""

    def __init__(self, label_dim=0):
        super().__init__()
        self.label_dim, self.asked = label_dim, []

    def forward(self, x, level, labels=None):
        self.asked.append((x, level, labels))
        output = torch.tanh(x.roll(1, -1)) * torch.cos(level / 30).reshape(-1, 1, 1, 1)
        return output if labels is None else output + labels.argmax(1).reshape(-1, 1, 1, 1)


class Augmented(torch.nn.Module):
    """A network called with fixed augment labels, which a denoiser never gives."""

    def __init__(self, net, augment_labels):
        super().__init__()
        self.net, self.augment_labels, self.label_dim = net, augment_labels, net.label_dim

    def forward(self, x, level, labels):
        return self.net(x, level, labels, self.augment_labels)


NATIVES = {
    "edm": edm_denoiser,
    "flow": flow_denoiser,
    "eps": lambda net: ddpm_denoiser(net, ABAR),
    "v": lambda net: ddpm_denoiser(net, ABAR, "v"),
}


@pytest.fixture(params=NATIVES)
def native(request):
    return NATIVES[request.param](Probe())


@pytest.fixture
def x():
    return torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def inner_levels(path, n=5):
    """Levels from near the data to near the noise, none at an end."""
    return path.t_max * torch.linspace(0.1, 0.9, n, dtype=torch.float64)


def test_denoises_as_the_released_edm_networks(released_edm):
    denoiser, arrays = released_edm
    if "augment_labels" in arrays:
        denoiser = edm_denoiser(Augmented(denoiser.net, arrays["augment_labels"]))
    sigma, expected = arrays["sigma"], arrays["EDMPrecond/denoised"]
    with torch.inference_mode():
        output = denoiser(arrays["x"] * sigma.reshape(-1, 1, 1, 1), sigma, arrays.get("class_labels"), want="x0")
    assert ((output - expected).abs().max() / expected.abs().max()).item() < 1e-5


def test_a_flow_network_is_its_velocity_at_999_times_one_minus_t(x):
    net = Probe()
    flow, t = flow_denoiser(net), torch.tensor([0.0, 0.25, 0.5, 0.75, NOISE_END], dtype=torch.float64)
    assert torch.equal(flow(x, t, want="velocity"), net(x, 999 * (1 - t)))


@pytest.mark.parametrize("t", [0.9995, 1.0])
def test_a_flow_network_is_asked_no_later_than_it_was_trained(x, t):
    flow = flow_denoiser(Probe())
    assert torch.equal(flow(x, t, want="velocity"), flow(x, NOISE_END, want="velocity"))


def test_v_is_alpha_eps_minus_sigma_x0(x):
    net = Probe()
    denoiser, t = ddpm_denoiser(net, ABAR, "v"), torch.tensor([1.0, 10, 20, 35, 50], dtype=torch.float64)
    x0, eps = denoiser(x, t, want="x0"), denoiser(x, t, want="eps")
    alpha, sigma = (spread(of(t), x) for of in (denoiser.path.alpha, denoiser.path.sigma))
    torch.testing.assert_close(alpha * eps - sigma * x0, net(x, t - 1))


@pytest.mark.parametrize("path", [None, *PATHS], ids=lambda path: path.name if path else "own")
def test_answers_agree_with_each_other(native, path, x):
    denoiser = native.on(path) if path else native
    t = inner_levels(denoiser.path)
    x0, eps, velocity = (denoiser(x, t, want=want) for want in WANTS)
    torch.testing.assert_close(denoiser.path.mix(x0, eps, t), x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(denoiser.path.velocity(x0, eps, t), velocity, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_a_view_sees_the_same_image_at_the_level_of_equal_ratio(native, path, x):
    own = native.path
    ratio = torch.tensor([0.05, 0.2, 1.0, 3.0, 7.0], dtype=torch.float64)
    t, level = path.t_at(ratio), own.t_at(ratio)
    scale = spread(own.alpha(level) / path.alpha(t), x)
    torch.testing.assert_close(native.on(path)(x, t), native(x * scale, level), rtol=1e-6, atol=1e-6)


def test_a_view_of_a_view_is_the_network_itself(native, x):
    t = inner_levels(native.path)
    again = native.on(FLOW).on(VE).on(native.path)
    assert again.net is native.net
    assert torch.equal(again(x, t), native(x, t))


def test_a_copy_is_on_the_same_path(native, x):
    clone = copy.deepcopy(native)
    t = inner_levels(native.path)
    assert clone.path == native.path
    assert torch.equal(clone(x, t), native(x, t))


@pytest.mark.parametrize("want", WANTS)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_views_are_finite_at_both_ends(native, path, want, x):
    if path == native.path:
        path = VP(alphas_cumprod("sigmoid", 30))
    for t in (0.0, path.t_max):
        for dtype in (torch.float32, torch.float64):
            assert native.on(path)(x.to(dtype), t, want=want).isfinite().all()


def test_an_edm_network_on_flow_is_asked_at_80_for_pure_noise(x):
    net = Probe()
    edm_denoiser(net).on(FLOW)(x, 1.0)
    seen, noise_label, _ = net.asked[-1]
    assert noise_label.tolist() == [math.log(80) / 4] * len(x)
    torch.testing.assert_close(seen, 80 * x / math.sqrt(80**2 + 0.25))


def test_an_edm_network_on_flow_is_asked_no_lower_than_it_was_trained(x):
    net = Probe()
    edm_denoiser(net).on(FLOW)(x, 0.0)
    assert net.asked[-1][1].tolist() == pytest.approx([math.log(0.002) / 4] * len(x))


@given(t=st.floats(0.05, 0.95))
def test_a_discrete_network_on_flow_is_asked_at_the_fractional_level_of_equal_ratio(t):
    net, x = Probe(), torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    denoiser = ddpm_denoiser(net, ABAR)
    denoiser.on(FLOW)(x, t)
    level = net.asked[-1][1] + 1  # a network is told its index, from 0
    ratio = denoiser.path.ratio(level).item()
    assert ratio == pytest.approx(max(t / (1 - t), denoiser.native.ratios[0]))
    assert net.asked[-1][1].item() >= 0


def test_the_network_runs_in_its_own_precision_and_answers_in_that_of_x(x):
    net = torch.nn.Module()
    net.scale = torch.nn.Parameter(torch.ones(()))
    net.forward = lambda x, level, labels: net.scale * x * level.reshape(-1, 1, 1, 1)
    assert flow_denoiser(net)(x, 0.5).dtype == torch.float64
    assert flow_denoiser(net)(x.float(), 0.5).dtype == torch.float32


@pytest.mark.parametrize("path", [None, FLOW], ids=["own", "flow"])
def test_labels_become_one_hot(x, path):
    net = Probe(label_dim=3)
    denoiser = edm_denoiser(net).on(path) if path else edm_denoiser(net)
    labels = torch.tensor([2, 0, 1, 1, 0])
    output = denoiser(x, 0.5, labels)
    one_hot = net.asked[-1][2]
    assert one_hot.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert torch.equal(denoiser(x, 0.5, one_hot), output)


@pytest.mark.parametrize("labels", [torch.zeros(5, dtype=torch.int64), torch.ones(5, 3)], ids=["integers", "one-hot"])
def test_labels_for_a_network_without_classes_are_refused(x, labels, refuses):
    with refuses("without classes"):
        edm_denoiser(Probe())(x, 0.5, labels)


def test_the_networks_say_how_many_classes_they_know():
    assert edm_denoiser(sized("0.05M", 8, 1, label_dim=10)).num_classes == 10
    assert edm_denoiser(sized("0.05M", 8, 1)).num_classes == 0


def test_an_unknown_prediction_is_named(x, refuses):
    with refuses("'velocty'", "did you mean 'velocity'?"):
        flow_denoiser(Probe())(x, 0.5, want="velocty")


@pytest.mark.parametrize("native", [EDM(0.7), Flow(), DDPM(VP(ABAR), "v")], ids=lambda native: native.spec()["name"])
def test_a_native_is_made_again_from_its_spec(native):
    assert native_from(native.spec()) == native


def test_unknown_natives_are_named(refuses):
    with refuses("'emd'", "did you mean 'edm'?"):
        native_from({"name": "emd"})
    with refuses("'eps' or 'v', not 'x0'"):
        ddpm_denoiser(Probe(), ABAR, "x0")


def test_counting_counts_what_went_through_the_network(native, x):
    with counting(native) as counter:
        native(x, 0.5)
        native.on(FLOW)(x[:2], 0.5)
    native(x, 0.5)
    assert (counter.rows, counter.calls) == (7, 2)


def posterior_mean(x, images, t):
    """Brute force: one point, one image at a time."""
    results = []
    for point in x:
        distances = [(point - image).square().sum().item() for image in images]
        weights = [math.exp((min(distances) - distance) / (2 * t**2)) for distance in distances]
        results.append(sum(w * image for w, image in zip(weights, images, strict=True)) / sum(weights))
    return torch.stack(results)


@given(t=st.floats(0.05, 20), seed=st.integers(0, 1000))
def test_the_ideal_denoiser_is_the_posterior_mean(t, seed):
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(7, 1, 3, 3, generator=random, dtype=torch.float64) * 2 - 1
    x = images[:4] + t * torch.randn(4, 1, 3, 3, generator=random, dtype=torch.float64)
    torch.testing.assert_close(IdealDenoiser(images)(x, t), posterior_mean(x, images, t))


def test_the_ideal_denoiser_picks_the_nearest_of_images_far_apart():
    images = torch.stack([torch.full((1, 2, 2), value) for value in (-1.0, 0.0, 1.0)])
    x = images[[2, 0, 1]] + 0.05
    assert torch.equal(IdealDenoiser(images)(x, 0.01), images[[2, 0, 1]])


def test_the_ideal_denoiser_takes_no_labels(x, refuses):
    with refuses("without classes"):
        IdealDenoiser(x)(x, 1.0, torch.zeros(5, dtype=torch.int64))


def test_a_denoiser_stands_on_the_path_it_is_given():
    assert Denoiser(Probe(), EDM()).path == VE
    assert Denoiser(Probe(), EDM(), FLOW).path == FLOW
