"""Samplers against the released ones, and against the exact solution for an ideal denoiser."""

import math
import re
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from two_times import Arrays, Velocity, holds

from onestep_bench.denoiser import EDM, Denoiser, Flow, IdealDenoiser, counting, edm_denoiser
from onestep_bench.paths import FLOW, VE, VP, alphas_cumprod, ve_up_to
from onestep_bench.samplers import (
    SAMPLERS,
    ancestral,
    ddim,
    ddim_times,
    default_times,
    dpmpp_2m,
    encode,
    euler,
    heun,
    interpolate,
    karras_times,
    register,
    rk45,
    sampler,
    times_of,
    uniform_times,
)

VP_PATH = VP(alphas_cumprod("cosine", 100))


@dataclass(frozen=True)
class ReleasedFlow:
    """SlimFlow's sampling code asks at the paper's times i/N (1 - 1e-3) + 1e-3; its Heun also scales its steps."""

    scale: float = 1.0
    path = FLOW

    def __call__(self, net, x, t, labels):
        paper_time = (1 - t) * (1 - 1e-3) + 1e-3
        return "velocity", self.scale * net(x, 999 * paper_time)


class Zero(torch.nn.Module):
    def forward(self, x, noise_labels, labels=None):
        return torch.zeros_like(x)


@contextmanager
def counting_calls(denoiser):
    calls = []
    handle = denoiser.register_forward_hook(lambda *given: calls.append(1))
    yield calls
    handle.remove()


@pytest.fixture(scope="module")
def digits_like():
    """Six images of 8x8 in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(6, 1, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1


@pytest.fixture(scope="module")
def noise():
    return torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def close(output, expected):
    assert ((output - expected).norm() / expected.norm()).item() < 1e-5


@pytest.mark.parametrize("steps", [2, 6])
def test_heun_makes_the_images_of_the_released_edm_sampler(released_edm, steps):
    denoiser, arrays = released_edm
    close(heun(denoiser, arrays["latents"], karras_times(steps), arrays.get("class_labels")), arrays[f"heun/{steps}"])


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_euler_makes_the_images_of_the_released_slimflow_sampler(slimflow, slimflow_toy, steps):
    flow = Denoiser(slimflow_toy("teacher"), ReleasedFlow())
    close(euler(flow, slimflow["noise"], uniform_times(steps)), slimflow[f"euler/{steps}"])


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_heun_makes_the_images_of_the_released_slimflow_sampler(slimflow, slimflow_toy, steps):
    flow = Denoiser(slimflow_toy("teacher"), ReleasedFlow(scale=1 - 1e-3))
    close(heun(flow, slimflow["noise"], uniform_times(steps)), slimflow[f"heun/{steps}"])


def test_rk45_makes_the_images_of_the_released_slimflow_sampler(slimflow, slimflow_toy):
    flow = Denoiser(slimflow_toy("teacher"), ReleasedFlow(scale=1 - 1e-3))
    with counting(flow) as counter:
        close(rk45(flow, slimflow["noise"]), slimflow["rk45/1e-5"])
    assert counter.calls == pytest.approx(slimflow["rk45/nfe"], abs=6)


class FromOne(type(FLOW)):
    """FLOW, whose samplers here begin with the noise itself at a level of 1 - 1e-5."""

    def prior_std(self, t):
        return torch.ones_like(t)


class ReleasedReflow(Flow):
    path = FromOne()


RELEASED_REFLOW = {
    ("euler", "default"): euler,
    ("euler", "new"): sampler("same-noise"),
    ("heun", "default"): heun,
    ("heun", "new"): sampler("same-noise-heun"),
}


def test_samples_are_those_of_the_released_2_rf():
    arrays = Arrays("consistency")
    student = Denoiser(Velocity(arrays, "rfpp/net"), ReleasedReflow(plain=True))
    names = [name for name in arrays.found if name.startswith("rfpp/sample/")]
    assert names
    for name in names:
        solver, count, kind = re.fullmatch(r"rfpp/sample/([a-z]+)(\d+)_([a-z]+)", name).groups()
        steps = (int(count) + 1) // 2 if solver == "heun" else int(count)
        times = uniform_times(steps)
        times[0] = 1 - 1e-5
        with counting(student) as counter:
            holds(RELEASED_REFLOW[solver, kind](student, arrays["rfpp/z"], times), arrays[name])
        assert counter.calls == int(count)


def order(step, denoiser, noise, grid):
    """Slope of log error over log steps, against the same method on a grid 16 times finer than the finest."""
    exact = step(denoiser, noise, grid(1024))
    errors = [(step(denoiser, noise, grid(steps)) - exact).norm().item() for steps in (32, 64)]
    return math.log2(errors[0] / errors[1])


def log_times(steps):
    """Levels evenly spaced in log sigma: the whole of them smooth, so that a method shows its order."""
    return torch.logspace(math.log10(3), math.log10(0.5), steps + 1, dtype=torch.float64)


@pytest.mark.parametrize(("step", "expected"), [(euler, 1), (heun, 2), (dpmpp_2m, 2)])
def test_order_of_convergence_on_ve(step, expected, digits_like, noise):
    assert order(step, IdealDenoiser(digits_like), noise, log_times) == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize(("step", "expected"), [(euler, 1), (heun, 2)])
def test_order_of_convergence_on_flow(step, expected, digits_like, noise):
    flow = IdealDenoiser(digits_like).on(FLOW)
    assert order(step, flow, noise, lambda n: 0.4 + 0.6 * uniform_times(n)) == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "rk45", "push-forward"])
@pytest.mark.parametrize("path", [FLOW, VE, VP_PATH], ids=lambda path: path.name)
def test_every_sampler_ends_at_an_image_of_the_set_on_every_path(name, path, digits_like, noise):
    denoiser = IdealDenoiser(digits_like).on(path)
    images = sampler(name)(denoiser, noise, default_times(path, 40))
    distances = (images[:, None] - digits_like).flatten(2).norm(dim=2).amin(1)
    assert (distances < 0.05 * 8).float().mean() > 0.9  # a few may end between two images


def test_rk45_follows_the_same_flow_as_a_fine_heun(digits_like, noise):
    flow = IdealDenoiser(digits_like).on(FLOW)
    torch.testing.assert_close(
        rk45(flow, noise, tol=1e-8), heun(flow, noise, uniform_times(2000)), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("path", [FLOW, VE], ids=lambda path: path.name)
def test_euler_is_ddim_and_a_plain_euler_step(path, digits_like, noise):
    denoiser = IdealDenoiser(digits_like).on(path)
    times = default_times(path, 5)
    images = euler(denoiser, noise, times)
    assert torch.equal(images, ddim(denoiser, noise, times))
    x = path.t_max * noise
    for t, t_next in pairwise(times):
        x = x + (t_next - t) * denoiser(x, t, want="velocity")
    torch.testing.assert_close(images, x)


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [
        ("euler", lambda n: n),
        *[(name, lambda n: 2 * n - 1) for name in ("heun", "same-noise-heun")],
        *[(name, lambda n: n) for name in ("dpmpp_2m", "push-forward", "re-noising", "ancestral", "same-noise")],
    ],
)
@pytest.mark.parametrize("steps", [1, 3])
def test_number_of_evaluations(name, evaluations, steps, digits_like, noise):
    denoiser = IdealDenoiser(digits_like)
    with counting(denoiser) as counter:
        sampler(name)(denoiser, noise, karras_times(steps))
    assert counter.rows / len(noise) == evaluations(steps)


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "push-forward", "re-noising", "ancestral", "same-noise"])
def test_one_step_is_the_denoised_noise(name, digits_like, noise):
    flow = IdealDenoiser(digits_like + 0.5).on(FLOW)
    image = sampler(name)(flow, noise, uniform_times(1))
    torch.testing.assert_close(image, flow(noise, 1.0))
    torch.testing.assert_close(image, (digits_like + 0.5).mean(0).expand_as(image), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_images_come_back_in_the_dtype_of_the_noise(name, digits_like, noise):
    assert sampler(name)(IdealDenoiser(digits_like), noise.float(), karras_times(3)).dtype == torch.float32


def test_ddim_clips_what_it_predicts(noise):
    bright = IdealDenoiser(torch.full((1, 1, 8, 8), 3.0))
    assert (ddim(bright, noise, karras_times(4), clip=True) == 1).all()
    assert (sampler("ddim-clip")(bright, noise, karras_times(4)) == 1).all()
    torch.testing.assert_close(ddim(bright, noise, karras_times(4)), torch.full_like(noise, 3.0))
    dark = IdealDenoiser(torch.full((1, 1, 8, 8), -3.0))
    assert (sampler("ddim-clip")(dark, noise, karras_times(4)) == -1).all()


def test_re_noising_adds_no_noise_that_the_answers_hold_already(noise):
    """Of a function that is the identity at 0.002, noised again to 0.003: of the variance, what is lacking."""
    denoiser, fresh = Denoiser(Zero(), EDM(boundary=0.002)), torch.ones_like(noise)
    first = denoiser(80 * noise.double(), torch.tensor(80.0, dtype=torch.float64), want="x0")
    level = torch.tensor(0.003, dtype=torch.float64)
    expected = denoiser(first + (0.003**2 - 0.002**2) ** 0.5 * fresh, level, want="x0")
    made = sampler("re-noising")(denoiser, noise, torch.tensor([80.0, 0.003, 0.0]), fresh=[fresh])
    torch.testing.assert_close(made, expected.to(made.dtype), rtol=1e-4, atol=1e-6)


def test_one_step_of_an_edm_network_starts_at_80(noise):
    # F = 0 leaves D = c_skip x.
    image = euler(edm_denoiser(Zero()), noise, karras_times(1))
    torch.testing.assert_close(image, 80 * noise * 0.25 / (80**2 + 0.25))


def test_karras_times():
    assert karras_times(1).tolist() == pytest.approx([80, 0])
    times = karras_times(18)
    assert times.dtype == torch.float64
    assert len(times) == 19
    assert (times.diff() < 0).all()
    assert times[[0, -2, -1]].tolist() == pytest.approx([80, 0.002, 0])
    assert karras_times(5, sigma_min=0.01, sigma_max=2, rho=1).tolist() == pytest.approx(
        [2, 1.5025, 1.005, 0.5075, 0.01, 0]
    )


def test_times_of_the_other_paths():
    assert uniform_times(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert ddim_times(4, 10).tolist() == [10, 8, 5, 2, 0]
    assert torch.equal(default_times(VE, 7), karras_times(7))
    assert torch.equal(default_times(FLOW, 7), uniform_times(7))
    assert torch.equal(default_times(VP_PATH, 7), ddim_times(7, 100))
    assert len(ddim_times(100, 100).unique()) == 101


@pytest.mark.parametrize("path", [FLOW, VE, VP_PATH], ids=lambda path: path.name)
def test_jumps_meet_at_the_same_noise_to_signal_ratios_on_every_path(path):
    times = times_of("push-forward", path, 4)
    assert times[0] == path.t_max
    torch.testing.assert_close(path.ratio(times[1:]), torch.tensor([3, 1, 1 / 3, 0], dtype=torch.float64))
    for name in ("re-noising", "ancestral", "same-noise", "same-noise-heun"):
        assert torch.equal(times_of(name, path, 4), times)
    assert torch.equal(times_of("heun", path, 4), default_times(path, 4))


@pytest.mark.parametrize("times", [karras_times, uniform_times, lambda steps: ddim_times(steps, 10)])
def test_no_steps_are_refused(times, refuses):
    with refuses("at least 1 step, not 0"):
        times(0)


def test_more_steps_than_levels_are_refused(refuses):
    with refuses("11 steps", "at most 10"):
        ddim_times(11, 10)


def test_a_generator_of_little_noise_has_no_levels_between(digits_like, noise, refuses):
    assert times_of("push-forward", ve_up_to(1.0), 1).tolist() == [1.0, 0.0]
    assert times_of("push-forward", ve_up_to(1.5), 2).tolist() == [1.5, 1.0, 0.0]
    generator = edm_denoiser(IdealDenoiser(digits_like).net).on(ve_up_to(1.0))
    with refuses("strictly falling", "not 1, 1, 0; take fewer steps: every model can 1"):
        sampler("push-forward")(generator, noise, times_of("push-forward", ve_up_to(1.0), 2))


@pytest.mark.parametrize("times", [[1.0], [0.0, 1.0], [1.0, 1.0, 0.0]])
@pytest.mark.parametrize("step", [euler, heun, dpmpp_2m])
def test_levels_must_fall(step, times, digits_like, noise, refuses):
    with refuses("strictly falling"):
        step(IdealDenoiser(digits_like), noise, torch.tensor(times))


def test_an_unknown_sampler_is_named(refuses):
    with refuses("'huen'", "did you mean 'heun'?"):
        sampler("huen")


def test_a_sampler_is_known_by_the_name_it_registers(monkeypatch):
    monkeypatch.setitem(SAMPLERS, "twice", None)  # for the test alone

    @register("twice")
    def twice(denoiser, noise, times, labels=None):
        return 2 * denoiser(noise, times[0], labels)

    assert sampler("twice") is twice


def test_ancestral_sampling_draws_the_data_in_their_shares_where_re_noising_forgets():
    """In many small steps both are right: of two images the nearer one to the mean noise is not favoured."""
    data = torch.tensor([-0.8, -0.4, 0.6]).double().reshape(3, 1, 1, 1)
    ideal = IdealDenoiser(data)
    noise = torch.randn(1500, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = ancestral(ideal, noise, times_of("ancestral", VE, 64))
    shares = (made - data.reshape(1, 3, 1, 1)).abs().flatten(1).argmin(1).bincount(minlength=3) / len(made)
    assert (shares - 1 / 3).abs().max() < 0.05
    torch.testing.assert_close(ancestral(ideal, noise[[4, 1]], times_of("ancestral", VE, 64)), made[[4, 1]])


def test_ancestral_keeps_as_much_of_the_states_noise_as_the_next_level_leaves():
    """From sigma 2 to 1 on VE, of an image 0: a quarter of the state, and fresh noise for the rest of the variance."""
    ideal = IdealDenoiser(torch.zeros(1, 1, 1, 1, dtype=torch.float64))
    seen, asked = [], torch.ones(1, 1, 1, 1, dtype=torch.float64)

    class Watched:
        path = VE

        def __call__(self, x, t, labels=None, *, want="x0"):
            seen.append(x)
            return ideal(x, t, want=want)

    ancestral(Watched(), asked, torch.tensor([2.0, 1.0, 0.0]), fresh=[asked])
    torch.testing.assert_close(seen[1], torch.full_like(asked, 2 / 4 + (1 - 1 / 4) ** 0.5))


# ---- the way up


@pytest.mark.parametrize("steps", [1, 2, 40])
def test_the_way_up_is_the_way_down_walked_backwards(digits_like, steps, refuses):
    ideal = IdealDenoiser(digits_like)
    eps = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    if steps == 1:
        with refuses("at least 2 steps"):
            encode(ideal, digits_like, eps, karras_times(1))
        return
    with counting_calls(ideal) as calls:
        noise = encode(ideal, digits_like, eps, karras_times(steps))
    assert len(calls) == 2 * steps - 2
    if steps == 40:
        assert (heun(ideal, noise, karras_times(steps)) - digits_like).abs().max() < 0.01


def test_encoded_noise_is_normal_and_one_image_has_many(digits_like):
    ideal = IdealDenoiser(digits_like)
    images = digits_like.repeat(300, 1, 1, 1)
    eps = torch.randn(images.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    noise = encode(ideal, images, eps, karras_times(40))
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert (noise[:6] - noise[6:12]).abs().mean() > 0.5


def test_between_two_noises_the_sphere_keeps_their_size_and_the_line_does_not():
    a, b = (torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    for spherical in (True, False):
        for weight, end in ((0.0, a), (1.0, b)):
            torch.testing.assert_close(interpolate(a, b, weight, spherical=spherical), end)
    a, b = (
        torch.ones(1, 1, 2, 2),
        torch.tensor([1.0, -1, 1, -1]).reshape(1, 1, 2, 2),
    )  # at right angles, of equal length
    third = interpolate(a, b, 1 / 3, spherical=True)
    torch.testing.assert_close(third, math.cos(math.pi / 6) * a + math.sin(math.pi / 6) * b)
    torch.testing.assert_close(interpolate(a, b, 0.25, spherical=False), 0.75 * a + 0.25 * b)
