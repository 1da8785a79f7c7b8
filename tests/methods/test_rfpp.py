"""2-rectified flow++: against arrays of sangyun884/rfpp f7b10a5d71c6."""

import math

import pytest
import torch
from torch.nn import functional as F
from two_times import Arrays, Velocity, edm, holds, holds_gradients

from onestep_bench.denoiser import Denoiser, Flow
from onestep_bench.methods.rfpp import LOSSES, RFPPConfig, density, level, perceptual, velocity_errors
from onestep_bench.paths import FLOW


@pytest.fixture(scope="module")
def arrays():
    return Arrays("consistency")


def test_levels_are_drawn_as_the_released_code_draws_them(arrays):
    groups = arrays.groups("rfpp/a", "pdf")
    assert groups
    for group in groups:
        a = float(group.removeprefix("rfpp/a"))
        torch.testing.assert_close(density(arrays[f"{group}/pdf_grid"], a), arrays[f"{group}/pdf"], rtol=1e-5, atol=0)
        uniform = arrays[f"{group}/half_ppf_uniform"]
        torch.testing.assert_close(rising(uniform, a), arrays[f"{group}/half_ppf"], rtol=1e-5, atol=1e-9)
        # A density is one over the slope of its quantiles; theirs is at numbers that are levels.
        at = probability(uniform, a).requires_grad_()
        (slope,) = torch.autograd.grad(rising(at, a).sum(), at)
        holds(1 / slope, arrays[f"{group}/half_pdf_at_uniform"])


def test_half_of_the_levels_are_mirrored(arrays):
    for group in arrays.groups("rfpp/a", "t"):
        a, half, permuted = float(group.removeprefix("rfpp/a")), arrays[f"{group}/half_draw"], arrays[f"{group}/t"]
        place = arrays[f"{group}/permutation"][: len(permuted)]
        found = level(probability(half, a)[place % len(half)], place >= len(half), a)
        torch.testing.assert_close(found, permuted.double(), rtol=0, atol=3e-7)  # theirs are of single precision


def rising(uniform, a):
    """Levels of the half that is not mirrored, before they are scaled."""
    return (level(uniform, torch.zeros_like(uniform, dtype=torch.bool), a) - 1e-5) / (1 - 2e-5)


def probability(levels, a):
    """Of a level of that half at or below these."""
    return torch.expm1(a * levels) / math.expm1(a)


def test_uniform_levels_are_a_switch():
    uniform = torch.tensor([0.0, 0.5])
    assert level(uniform, torch.tensor([False, False]), 0.0).tolist() == pytest.approx([1e-5, 0.5])


def student_of(arrays):
    return Denoiser(Velocity(arrays, "rfpp/net"), Flow(plain=True))


def stand_in(a, b):
    """What the arrays have in the place of LPIPS."""
    larger = [F.interpolate(image, 224, mode="bilinear") for image in (a, b)]
    one, other = (image * 0.5 + 0.5 for image in larger)
    return (one - other).abs().pow(1.5).mean()


# Names of the released losses: ours, and whether the perceptual one stands beside, over t or not.
CASES = {
    "huber": ("huber", None),
    "l2": ("root-l2", None),
    "l2_squared": ("l2", None),
    "weighted_huber": ("weighted-huber", None),
    "huber_perceptual": ("weighted-huber", False),
    "huber_perceptual_over_t": ("weighted-huber", True),
    "perceptual_over_t": ("none", True),
}


def test_losses_and_gradients_are_those_of_the_released_code(arrays):
    data, noise, t = arrays["x"], arrays["rfpp/z"], arrays["rfpp/t"]
    x = FLOW.mix(data, noise, t)
    assert set(arrays.groups("rfpp/", "loss")) == {f"rfpp/{name}" for name in CASES}
    for name, (loss, over_t) in CASES.items():
        student = student_of(arrays)
        velocity = student(x, t, want="velocity")
        found = velocity_errors(velocity, noise - data, t, loss)
        if over_t is not None:
            found = found + perceptual(velocity, x, t, data, stand_in, over_t=over_t)
        if f"rfpp/{name}/per_sample" in arrays:
            holds(found.detach(), arrays[f"rfpp/{name}/per_sample"])
        holds(found.mean().detach(), arrays[f"rfpp/{name}/loss"])
        holds_gradients(found.mean(), student.net, arrays, f"rfpp/{name}")
    assert arrays["rfpp/huber_c"] == pytest.approx(0.00054 * data[0].numel())


def test_a_diffusion_model_is_the_flow_that_the_released_code_starts_from(arrays):
    teacher = edm(arrays, "teacher").on(FLOW)
    holds(
        teacher(arrays["rfpp/z"], arrays["rfpp/edm_velocity/t"], want="velocity").detach(),
        arrays["rfpp/edm_velocity/v"],
    )


def test_the_exact_velocity_has_no_loss_and_no_slope():
    wanted = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    for loss in LOSSES:
        velocity = wanted.clone().requires_grad_()
        errors = velocity_errors(velocity, wanted, t, loss)
        assert errors.max() < 1e-12
        (errors.sum() + 0 * velocity.sum()).backward()
        assert velocity.grad.abs().max() < 1e-9


def test_bad_options(refuses):
    with refuses("'hubber'", "did you mean 'huber'?"):
        RFPPConfig(loss="hubber")
    with refuses("'none'", "name a distance"):
        RFPPConfig(loss="none")
    with refuses("density"):
        RFPPConfig(density=-1.0)
