"""2-rectified flow++: against arrays of sangyun884/rfpp f7b10a5d71c6."""

import pytest
import torch
from torch.nn import functional as F
from two_times import Arrays, Velocity, edm, holds, holds_gradients

from onestep_bench.denoiser import Denoiser, Flow
from onestep_bench.methods.rfpp import RFPPConfig, density, level, perceptual, velocity_errors
from onestep_bench.paths import FLOW


@pytest.fixture(scope="module")
def arrays():
    return Arrays("consistency")


@pytest.mark.parametrize("a", [2, 4])
def test_levels_are_drawn_as_the_released_code_draws_them(arrays, a):
    group = f"rfpp/a{a}"
    torch.testing.assert_close(density(arrays[f"{group}/pdf_grid"], a), arrays[f"{group}/pdf"], rtol=1e-5, atol=0)
    uniform = arrays[f"{group}/half_ppf_uniform"]
    rising = level(uniform, torch.zeros_like(uniform, dtype=torch.bool), a)
    holds((rising - 1e-5) / (1 - 2e-5), arrays[f"{group}/half_ppf"])
    torch.testing.assert_close(
        rising + level(uniform, torch.ones_like(uniform, dtype=torch.bool), a), torch.ones(15).double()
    )


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


CASES = {
    "huber": ("huber", None),
    "l2_squared": ("l2", None),
    "weighted_huber": ("weighted-huber", None),
    "huber_perceptual_over_t": ("weighted-huber", stand_in),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_the_released_code(arrays, name):
    loss, distance = CASES[name]
    student, data, noise, t = student_of(arrays), arrays["x"], arrays["rfpp/z"], arrays["rfpp/t"]
    x = FLOW.mix(data, noise, t)
    velocity = student(x, t, want="velocity")
    found = velocity_errors(velocity, noise - data, t, loss).mean()
    if distance:
        found = found + perceptual(velocity, x, t, data, distance)
    holds(found.detach(), arrays[f"rfpp/{name}/loss"])
    holds_gradients(found, student.net, arrays, f"rfpp/{name}")


def test_a_diffusion_model_is_the_flow_that_the_released_code_starts_from(arrays):
    teacher = edm(arrays, "teacher").on(FLOW)
    holds(
        teacher(arrays["rfpp/z"], arrays["rfpp/edm_velocity/t"], want="velocity").detach(),
        arrays["rfpp/edm_velocity/v"],
    )


def test_the_exact_velocity_has_no_loss_and_no_slope():
    wanted = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    for loss in ("l2", "huber", "weighted-huber"):
        velocity = wanted.clone().requires_grad_()
        errors = velocity_errors(velocity, wanted, t, loss)
        assert errors.max() < 1e-12
        errors.sum().backward()
        assert velocity.grad.abs().max() < 1e-9


def test_bad_options(refuses):
    with refuses("'hubber'", "did you mean 'huber'?"):
        RFPPConfig(loss="hubber")
    with refuses("density"):
        RFPPConfig(density=-1.0)
