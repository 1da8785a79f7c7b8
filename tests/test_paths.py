"""Paths are consistent with themselves: inverses invert, derivatives derive."""

import copy
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onestep_bench.paths import FLOW, VE, VP, alphas_cumprod, path_from, posterior, spread, ve_up_to
from onestep_bench.samplers import default_times

SCHEDULES = ["linear", "cosine", "sigmoid"]
VPS = {name: VP(alphas_cumprod(name, 64)) for name in SCHEDULES}
PATHS = {"flow": FLOW, "ve": VE, **VPS}

schedules = st.sampled_from(SCHEDULES)
paths = st.sampled_from([*PATHS.values()])
shares = st.floats(0, 1)


def level(share, path):
    return torch.tensor(share * path.t_max, dtype=torch.float64)


def images(seed=0):
    return torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_linear_schedule_is_that_of_ddpm():
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    torch.testing.assert_close(alphas_cumprod("linear", 1000), (1 - betas).cumprod(0))
    assert alphas_cumprod("linear", 1000)[-1].item() == pytest.approx(4.04e-5, rel=0.01)


def test_linear_schedule_of_fewer_levels_ends_as_noisy():
    """Ho et al.'s betas times 1000/T: of 50 levels from 0.002 to 0.4."""
    betas = torch.linspace(2e-3, 0.4, 50, dtype=torch.float64)
    torch.testing.assert_close(alphas_cumprod("linear", 50), (1 - betas).cumprod(0))


def test_discrete_paths_are_equal_by_their_levels_and_not_by_their_number():
    assert VPS["linear"] != VPS["cosine"]
    assert VPS["linear"] == VP(alphas_cumprod("linear", 64))
    assert hash(VPS["linear"]) == hash(VP(alphas_cumprod("linear", 64)))


def test_cosine_and_sigmoid_schedules_are_their_formulas_up_to_the_clipped_end():
    t = torch.arange(1, 101, dtype=torch.float64) / 100
    cosine = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(alphas_cumprod("cosine", 100)[:-1], cosine[:-1])
    low, high = 1 / (1 + math.e**3), 1 / (1 + math.e**-3)
    torch.testing.assert_close(
        alphas_cumprod("sigmoid", 100)[:-1], ((high - torch.sigmoid(6 * t - 3)) / (high - low))[:-1]
    )


@pytest.mark.parametrize("steps", [1, 10, 1000])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_fall_from_data_to_noise(schedule, steps):
    abar = alphas_cumprod(schedule, steps)
    assert abar.shape == (steps,)
    assert abar.dtype == torch.float64
    assert ((abar > 0) & (abar < 1)).all()
    assert (abar.diff() < 0).all()
    assert VP(abar).t_max == steps
    if steps == 1000:
        assert abar[0] > 0.99
        assert abar[-1] < 1e-4


def test_unusable_schedules_are_refused(refuses):
    with refuses("'liner'", "did you mean 'linear'?"):
        alphas_cumprod("liner", 10)
    with refuses("at least 1 level, not 0"):
        alphas_cumprod("linear", 0)
    for values in ([0.5, 0.6], [0.5, 0.5], [1.0, 0.5], [0.5, 0.0], [float("nan")], [], [[0.5]]):
        with refuses("strictly falling"):
            VP(values)


@given(share=shares, name=schedules)
def test_vp_levels_are_found_again_by_their_ratio(share, name):
    path = VPS[name]
    t = level(share, path)
    assert path.t_at(path.ratio(t)).item() == pytest.approx(t.item(), abs=1e-6)


@given(share=shares)
def test_flow_levels_are_found_again_by_their_ratio(share):
    t = level(share, FLOW)
    assert FLOW.t_at(FLOW.ratio(t)).item() == pytest.approx(t.item(), abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_vp_stands_on_its_levels(name):
    path, abar = VPS[name], VPS[name].alphas_cumprod
    t = torch.arange(1, 65, dtype=torch.float64)
    torch.testing.assert_close(path.alpha(t) ** 2, abar)
    torch.testing.assert_close(path.t_at(path.ratio(t)), t)
    assert path.alpha(torch.zeros(1)).item() == 1
    assert path.sigma(torch.zeros(1)).item() == 0
    assert path.t_at(torch.tensor(math.inf)).item() == path.t_max


def test_a_single_level_is_a_path():
    path = VP([0.25])
    assert path.ratio(torch.tensor([0.5, 1.0], dtype=torch.float64)).tolist() == pytest.approx([3**0.5 / 2, 3**0.5])
    assert path.t_at(torch.tensor([3**0.5 / 2, 3**0.5, 9])).tolist() == pytest.approx([0.5, 1, 1])


@given(share=shares, name=schedules)
def test_vp_preserves_variance(share, name):
    path = VPS[name]
    t = level(share, path)
    assert (path.alpha(t) ** 2 + path.sigma(t) ** 2).item() == pytest.approx(1)
    assert (path.sigma(t) / path.alpha(t)).item() == pytest.approx(path.ratio(t).item())


@given(share=st.floats(1e-3, 1 - 1e-3), path=paths)
def test_derivatives_are_those_of_finite_differences(share, path):
    t, h = level(share, path), 1e-6
    if abs(t.item() - round(t.item())) < 2 * h:
        t = t + 0.01  # a VP path bends at its levels
    for of, derivative in ((path.alpha, path.dalpha), (path.sigma, path.dsigma)):
        difference = (of(t + h) - of(t - h)) / (2 * h)
        assert derivative(t).item() == pytest.approx(difference.item(), rel=1e-5, abs=1e-7)


@given(share=shares, path=paths, seed=st.integers(0, 1000))
def test_velocity_is_inverted(share, path, seed):
    (x0, eps), t = images(seed), level(share, path)
    found_x0, found_eps = path.from_velocity(path.mix(x0, eps, t), path.velocity(x0, eps, t), t)
    torch.testing.assert_close(found_x0, x0, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found_eps, eps, rtol=1e-6, atol=1e-6)


@given(share=st.floats(0.01, 0.99), path=paths)
def test_x0_and_eps_are_found_from_each_other(share, path):
    (x0, eps), t = images(), level(share, path)
    x = path.mix(x0, eps, t)
    torch.testing.assert_close(path.from_x0(x, x0, t), eps, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(path.from_eps(x, eps, t), x0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_each_image_has_its_own_level(path):
    x0, eps = images()
    t = path.t_max * torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    rows = [path.mix(x0[i : i + 1], eps[i : i + 1], t[i]) for i in range(3)]
    torch.testing.assert_close(path.mix(x0, eps, t), torch.cat(rows))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_levels_keep_their_dtype(path):
    for dtype in (torch.float32, torch.float64):
        t = torch.tensor([0.3, 0.7], dtype=dtype)
        functions = (path.alpha, path.sigma, path.dalpha, path.dsigma, path.ratio, path.t_at)
        assert {function(t).dtype for function in functions} == {dtype}


def test_integer_levels_are_levels():
    x0, eps = images()
    torch.testing.assert_close(spread(torch.tensor([1, 2, 3]), x0).flatten(), torch.tensor([1.0, 2, 3]).double())
    torch.testing.assert_close(VE.mix(x0, eps, torch.tensor(2)), x0 + 2 * eps)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_path_is_made_again_from_its_spec(path):
    assert path_from(json.loads(json.dumps(path.spec()))) == path


def test_an_unknown_path_is_named(refuses):
    with refuses("'flo'", "did you mean 'flow'?"):
        path_from({"name": "flo"})


def test_samplers_start_from_the_noise_a_network_knows():
    t = torch.tensor(0.5, dtype=torch.float64)
    assert FLOW.prior_std(t) == VE.prior_std(t) == 0.5
    assert VPS["linear"].prior_std(t) == 1  # as DDPM does, though sigma(T) < 1


def test_paths_are_equal_by_what_they_are():
    for path in PATHS.values():
        clone = copy.deepcopy(path)
        assert clone == path
        assert hash(clone) == hash(path)
    assert len({FLOW, VE, *VPS.values(), VP(alphas_cumprod("linear", 64))}) == 5
    assert FLOW != VE
    assert VPS["linear"] != VE


def test_ve_may_end_lower(refuses):
    low = ve_up_to(2.5)
    assert low.t_max == 2.5
    assert low == ve_up_to(2.5) != ve_up_to(3.0)
    assert low not in (VE, FLOW)
    assert path_from(low.spec()) == low
    assert path_from(VE.spec()) == VE
    assert default_times(low, 1).tolist() == pytest.approx([2.5, 0])
    for level in (0.0, math.inf, math.nan):
        with refuses("a level of noise is a positive number"):
            ve_up_to(level)


@given(paths, shares, shares)
def test_what_is_drawn_a_level_down_has_that_levels_share_of_data_and_noise(path, high, low):
    """q(x_s | x_t, x0) over all x_t is q(x_s | x0): its mean is alpha_s x0, its variance sigma_s^2."""
    t, s = level(0.1 + 0.9 * high, path), level((0.1 + 0.9 * high) * 0.99 * low, path)
    x0, zero, one = torch.tensor([[[[0.7]]]], dtype=torch.float64), torch.zeros(1), torch.ones(1)
    at_mean = path.alpha(t) * x0
    mean = posterior(path, at_mean, x0, zero, t, s)
    from_state = posterior(path, at_mean + path.sigma(t), x0, zero, t, s) - mean  # of one deviation of x_t's noise
    from_fresh = posterior(path, at_mean, x0, one, t, s) - mean
    torch.testing.assert_close(mean, path.alpha(s) * x0)
    torch.testing.assert_close(from_state**2 + from_fresh**2, (path.sigma(s) ** 2).expand_as(mean))


@pytest.mark.parametrize("index", [1, 5, 40, 63])
def test_a_level_down_is_ancestral_sampling_as_ddpm_writes_it(index):
    """Ho et al. 2020, Eq. 7: coefficients of x0 and x_t, and the variance, by the betas."""
    path = VPS["cosine"]
    abar = path.alphas_cumprod
    beta = 1 - abar[index] / abar[index - 1]
    x, x0, fresh = torch.randn(3, 2, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean = abar[index - 1].sqrt() * beta / (1 - abar[index]) * x0
    mean = mean + (1 - beta).sqrt() * (1 - abar[index - 1]) / (1 - abar[index]) * x
    deviation = ((1 - abar[index - 1]) / (1 - abar[index]) * beta).sqrt()
    t = torch.tensor(index + 1.0, dtype=torch.float64)
    torch.testing.assert_close(posterior(path, x, x0, fresh, t, t - 1), mean + deviation * fresh)
